// Reduces the entries of a tile to its lines, which are rows and columns. Each thread holds some
// entries of many lines. Reductions go over the lanes that share a line, then through shared memory
// over the warps that share it. The order is fixed by the tile's shape.
//
// Afterwards every thread owns one line of the tile: the first kRows threads own a row each, the
// others a column each.

#pragma once

#include <climits>

#include "tile.cuh"

namespace cyclip::cuda {

// Reduces the values of the lanes whose numbers differ in the bits from kMask down to kLastMask.
// For each bit, a lane passes half of its lines to the other lane, so that in the end it has the
// first kCount / (number of lanes) values, which belong to its own lines. combine(x, y) must be
// commutative.
template <int kMask, int kLastMask, int kCount, int kSize, typename T, typename Combine>
__device__ inline void reduce_by_halving(T (&values)[kSize], const Combine& combine) {
  constexpr int kHalf = kCount / 2;
  static_assert(kCount % 2 == 0);
  const bool is_upper = (threadIdx.x & kMask) != 0;
  CYCLIP_UNROLL
  for (int i = 0; i < kHalf; ++i) {
    const T sent = is_upper ? values[i] : values[i + kHalf];
    const T own = is_upper ? values[i + kHalf] : values[i];
    values[i] = combine(own, shuffle_xor(sent, kMask));
  }
  if constexpr (kMask > kLastMask) reduce_by_halving<kMask / 2, kLastMask, kHalf>(values, combine);
}

// One value for each line and each warp that holds a part of it.
template <typename Tile, typename T>
struct LineScratch {
  T rows[Tile::kWarpsAcross][Tile::kRows];
  T cols[Tile::kWarpsDown][Tile::kCols];

  // This thread's parts of row(a). The lanes 4g + t with equal g share rows, those with equal t
  // share columns.
  template <typename Combine>
  __device__ void put_rows(const Place<Tile>& place, T (&values)[Tile::kThreadRows], const Combine& combine) {
    reduce_by_halving<2, 1, Tile::kThreadRows>(values, combine);
    constexpr int kOwn = Tile::kThreadRows / 4;
    CYCLIP_UNROLL
    for (int i = 0; i < kOwn; ++i) rows[place.warp_col][place.row(place.t * kOwn + i)] = values[i];
  }

  // This thread's parts of col(b).
  template <typename Combine>
  __device__ void put_cols(const Place<Tile>& place, T (&values)[Tile::kThreadCols], const Combine& combine) {
    reduce_by_halving<16, 4, Tile::kThreadCols>(values, combine);
    constexpr int kOwn = Tile::kThreadCols / 8;
    CYCLIP_UNROLL
    for (int i = 0; i < kOwn; ++i) cols[place.warp_row][place.col(place.g * kOwn + i)] = values[i];
  }

  // The value of this thread's line, combined over all warps in order. Call it after a barrier.
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

// Operations for LineScratch.
struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {  // ignores NaN
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return fmax(a, b);
  }
};

// The part of a matrix that a tile covers, and the position of this thread's line in it.
struct Window {
  int64_t rows, cols;            // of the matrix
  int64_t row_begin, col_begin;  // of the tile

  template <typename Tile>
  __device__ static bool owns_row() {
    return threadIdx.x < Tile::kRows;
  }
  // The element of `values` for this row or column of the tile, or for another one if that lies outside the
  // matrix. Offsets from the tile's first line fit into 32 bits, which saves half of the address arithmetic.
  template <typename T>
  __device__ const T& of_row(const T* values, int row) const {
    return (values + row_begin)[row < most(rows - row_begin) ? row : 0];
  }
  template <typename T>
  __device__ const T& of_col(const T* values, int col) const {
    return (values + col_begin)[col < most(cols - col_begin) ? col : 0];
  }
  // Index of the row or column that this thread owns; it may lie outside the matrix.
  template <typename Tile>
  __device__ int64_t line() const {
    return owns_row<Tile>() ? row_begin + threadIdx.x : col_begin + (threadIdx.x - Tile::kRows);
  }
  template <typename Tile>
  __device__ bool has_line() const {
    return line<Tile>() < (owns_row<Tile>() ? rows : cols);
  }

 private:
  __device__ static int most(int64_t lines) { return lines < INT_MAX ? static_cast<int>(lines) : INT_MAX; }
};

}  // namespace cyclip::cuda
