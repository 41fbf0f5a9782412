// One stage of one operand in shared memory: kLines lines (rows of the left, columns of the right factor),
// kStep deep, copied from global memory in chunks of 16 bytes.
//
// Chunks are swizzled (their number is combined by xor with a function of their row), so that the 8
// rows that a warp reads at a time lie in different banks, as do the scalars that it reads in the
// other layouts.

#pragma once

#include "tile.cuh"

namespace cyclip::cuda {

// The index that is contiguous in memory.
enum class Layout {
  kAlongDepth,   // [line][depth]: X and Y in X Y'
  kAcrossDepth,  // [depth][line]: Y in H Y, both in H' X
};

// A matrix in global memory, seen as one factor of a product. Data and pitch (elements between
// lines or, in the other layout, between steps in depth) are 16-byte aligned. With kAlongDepth, the
// elements of a last chunk beyond `depth` must be zero.
template <typename Element>
struct Operand {
  const Element* data;
  int64_t lines, depth, pitch;
};

template <typename Tile, Layout kLayout, int kLines>
struct OperandTile {
  using Element = typename Tile::Element;
  static constexpr int kChunkSize = kChunk<Element>;
  static constexpr bool kAlong = kLayout == Layout::kAlongDepth;
  static constexpr int kPitch = kAlong ? Tile::kStep : kLines;  // elements of one row in shared memory
  static constexpr int kRowsInMemory = kAlong ? kLines : Tile::kStep;
  static constexpr int kChunks = kPitch / kChunkSize;

  alignas(kStepBytes) Element data[kLines * Tile::kStep];

  // The block reads 8 rows at a time or, as scalars, 4 rows by 2 chunks.
  static constexpr bool kByScalars = sizeof(Element) == 8 || (!kAlong && sizeof(Element) == 4);
  __device__ static int swizzle(int row) { return kByScalars ? 2 * (row % 4) : row % 8; }

  __device__ static int offset(int line, int depth) {
    const int row = kAlong ? line : depth, col = kAlong ? depth : line;
    return row * kPitch + ((col / kChunkSize) ^ swizzle(row)) * kChunkSize + col % kChunkSize;
  }

  __device__ const Element& at(int line, int depth) const { return data[offset(line, depth)]; }

  // Starts the copies of the lines from `line_begin` and the depth from `depth_begin` on, with
  // zeros outside the matrix. All threads of the block take part. Each copies chunks one below the
  // other, whose addresses and swizzle follow from the first chunk's.
  __device__ void copy_async(const Operand<Element>& from, int64_t line_begin, int64_t depth_begin) {
    static_assert(Tile::kThreads % kChunks == 0 && kRowsInMemory * kChunks % Tile::kThreads == 0);
    constexpr int kRowsAtOnce = Tile::kThreads / kChunks;
    static_assert(kRowsAtOnce % (kByScalars ? 4 : 8) == 0);
    const int row = threadIdx.x / kChunks, col = threadIdx.x % kChunks * kChunkSize;
    const int64_t first = (kAlong ? line_begin : depth_begin) + row,
                  across = (kAlong ? depth_begin : line_begin) + col;
    const int64_t rows = kAlong ? from.lines : from.depth;
    const bool col_inside = across < (kAlong ? from.depth : from.lines);
    const Element* source = from.data + first * from.pitch + across;
    Element* const target = data + (kAlong ? offset(row, col) : offset(col, row));
    CYCLIP_UNROLL
    for (int i = 0; i < kRowsInMemory / kRowsAtOnce; ++i) {
      const bool inside = col_inside && first + i * kRowsAtOnce < rows;
      copy_async_16(target + i * kRowsAtOnce * kPitch, inside ? source : from.data, inside);
      source += kRowsAtOnce * from.pitch;
    }
  }
};

}  // namespace cyclip::cuda
