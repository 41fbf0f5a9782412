// From the entries of a tile to its lines: rows and columns. Each thread holds some entries of many lines;
// reductions go over the lanes that share a line, then over the warps that do, through shared memory. The
// order is fixed by the tile's shape.
//
// Afterwards every thread owns one line of the tile, the first kRows threads a row each, the others a
// column each.

#pragma once

#include "tile.cuh"

namespace cyclip::cuda {

// One value per line and per warp that has a part of it.
template <typename Tile, typename T>
struct LineScratch {
  T rows[Tile::kWarpsAcross][Tile::kRows];
  T cols[Tile::kWarpsDown][Tile::kCols];

  // This thread's part of row(a). The lanes 4g + t of equal g share rows, those of equal t share columns.
  // combine(x, y) must not care which is which.
  template <typename Combine>
  __device__ void put_row(const Place<Tile>& place, int a, T value, const Combine& combine) {
    for (int mask = 1; mask < 4; mask *= 2) value = combine(value, shuffle_xor(value, mask));
    if (place.t == 0) rows[place.warp_col][place.row(a)] = value;
  }

  // This thread's part of col(b).
  template <typename Combine>
  __device__ void put_col(const Place<Tile>& place, int b, T value, const Combine& combine) {
    for (int mask = 4; mask < kWarpSize; mask *= 2) value = combine(value, shuffle_xor(value, mask));
    if (place.g == 0) cols[place.warp_row][place.col(b)] = value;
  }

  // The line of this thread, over all warps, in order. After a barrier.
  template <typename Combine>
  __device__ T get(const Combine& combine) const {
    const int line = threadIdx.x;
    if (line < Tile::kRows) {
      T result = rows[0][line];
      for (int warp = 1; warp < Tile::kWarpsAcross; ++warp) result = combine(result, rows[warp][line]);
      return result;
    }
    T result = cols[0][line - Tile::kRows];
    for (int warp = 1; warp < Tile::kWarpsDown; ++warp) result = combine(result, cols[warp][line - Tile::kRows]);
    return result;
  }
};

// For LineScratch.
struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Which part of a matrix a tile covers, and where this thread's line lies in it.
struct Window {
  int64_t rows, cols;            // of the matrix
  int64_t row_begin, col_begin;  // of the tile

  template <typename Tile>
  __device__ static bool owns_row() {
    return threadIdx.x < Tile::kRows;
  }
  // The matrix's row or column at this place of the tile, or some other one where that lies beyond.
  __device__ int64_t inner_row(int row) const { return row_begin + row < rows ? row_begin + row : row_begin; }
  __device__ int64_t inner_col(int col) const { return col_begin + col < cols ? col_begin + col : col_begin; }
  // Index of the row or column that this thread owns; it may lie beyond the matrix.
  template <typename Tile>
  __device__ int64_t line() const {
    return owns_row<Tile>() ? row_begin + threadIdx.x : col_begin + (threadIdx.x - Tile::kRows);
  }
  template <typename Tile>
  __device__ bool has_line() const {
    return line<Tile>() < (owns_row<Tile>() ? rows : cols);
  }
};

}  // namespace cyclip::cuda
