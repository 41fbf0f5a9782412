// The layout of a tile of a matrix product in a block: kinds of arithmetic, tile sizes, and the
// entries of the tile that a thread holds.

#pragma once

#include "scalars.cuh"

namespace cyclip::cuda {

// Kinds of arithmetic: the type in memory, the type of the sums, the depth of one instruction.
struct Bf16 {
  using Element = bf16;
  using Accumulator = float;
  static constexpr int kDepth = 16;
};
struct F16 {
  using Element = f16;
  using Accumulator = float;
  static constexpr int kDepth = 16;
};
struct Tf32 {  // floats that are already rounded to TF32
  using Element = float;
  using Accumulator = float;
  static constexpr int kDepth = 8;
};
struct F32 {  // multiply-adds, no tensor cores
  using Element = float;
  using Accumulator = float;
  static constexpr int kDepth = 4;
};
struct F64 {
  using Element = double;
  using Accumulator = double;
  static constexpr int kDepth = 4;
};

inline constexpr int kChunkBytes = 16;  // size of one asynchronous copy
inline constexpr int kStepBytes = 128;  // of each line of a tile per stage of the pipeline

template <typename Element>
inline constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(Element));

template <typename Math_, int kRows_, int kCols_, int kWarpsDown_, int kWarpsAcross_, int kStages_, int kResident_>
struct TileShape {
  using Math = Math_;
  using Element = typename Math::Element;
  using Accumulator = typename Math::Accumulator;

  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_;
  static constexpr int kThreads = kWarpsDown * kWarpsAcross * kWarpSize;
  static constexpr int kStages = kStages_;
  static constexpr int kAcross = 1;             // tiles side by side that a block multiplies at once
  static constexpr int kResident = kResident_;  // blocks that a multiprocessor's registers must hold
  static constexpr int kStep = kStepBytes / static_cast<int>(sizeof(Element));  // depth of a stage

  static constexpr int kWarpRows = kRows / kWarpsDown, kWarpCols = kCols / kWarpsAcross;
  static constexpr int kThreadRows = kWarpRows / 8, kThreadCols = kWarpCols / 4;

  // The entries of the tile that a thread holds, at rows Place::row(a) and columns Place::col(b).
  using Fragment = Accumulator[kThreadRows][kThreadCols];
  static_assert(kThreadRows % 4 == 0 && kThreadCols % 8 == 0);  // the lanes that share a row and a column
  static_assert(kThreadRows * kThreadCols <= 64);               // entries are also bits of a mask
  // One thread for each line of both sides, in epilogues that reduce over lines.
  static_assert(kRows + kCols == kThreads);
};

template <typename Math>
using LargeTile = TileShape<Math, 128, 128, 2, 4, 3, 1>;
template <typename Math>
using SmallTile = TileShape<Math, 64, 64, 2, 2, 3, sizeof(typename Math::Accumulator) == 4 ? 3 : 2>;

// Two tiles side by side, multiplied at once: a warp reads the fragments of its rows once for both, so it
// multiplies 64 x 64 entries. Everything after the product sees one tile after the other.
template <typename Tile>
struct TilePair : Tile {
  static constexpr int kStages = 2;
  static constexpr int kAcross = 2;
};

// Copies the last tile of a pair to the first one, so that one piece of code serves both: registers cannot be
// indexed.
template <typename Tile>
__device__ inline void copy_last(typename Tile::Fragment (&tiles)[Tile::kAcross]) {
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) tiles[0][a][b] = tiles[Tile::kAcross - 1][a][b];
  }
}

// The position of a thread in a tile. All kinds of arithmetic share the accumulator layout of
// mma.m16n8 (and m8n8): lane 4g + t holds rows g, g + 8, ... and columns 2t, 2t + 1, 2t + 8, ... of
// its warp's part.
template <typename Tile>
struct Place {
  int warp_row, warp_col;  // position of the warp's part of the tile
  int g, t;

  __device__ Place() {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    warp_row = warp / Tile::kWarpsAcross;
    warp_col = warp % Tile::kWarpsAcross;
    g = lane / 4;
    t = lane % 4;
  }

  __device__ int row(int a) const { return warp_row * Tile::kWarpRows + g + row_step(a); }
  __device__ int col(int b) const { return warp_col * Tile::kWarpCols + 2 * t + col_step(b); }

  // The distances from row(0) and col(0), which are the same for all threads.
  __device__ static constexpr int row_step(int a) { return 8 * a; }
  __device__ static constexpr int col_step(int b) { return 8 * (b / 2) + b % 2; }
};

}  // namespace cyclip::cuda
