// Conversion of a tile of dot products to the cosines of its negatives.

#pragma once

#include "lines.cuh"

namespace cyclip::cuda {

// Both sides' 1 / norm, and the positions of the positives: that of row i is in column i + offset.
template <typename T>
struct Pairing {
  const T* row_inv_norms;  // [rows]
  const T* col_inv_norms;  // [cols]
  int64_t offset;
};

// A cosine for comparisons: NaN becomes -infinity.
template <typename T>
__device__ inline T comparable(T cosine) {
  return isnan(cosine) ? static_cast<T>(-INFINITY) : cosine;
}

// The offset of a pairing without positives: all entries of the matrix are negatives.
inline constexpr int64_t kNoPositives = int64_t{1} << 40;

// The value of entries that are not negatives: positives, and entries outside the matrix. It is far from every
// cosine.
template <typename T>
inline constexpr T kMasked = static_cast<T>(-1267650600228229401496703205376.0);  // -2^100

// The cosine of masked entries for which s S is far below all logits, whatever the sign of s.
template <typename T>
__device__ inline T masked_cosine(T scale) {
  return scale < 0 ? -kMasked<T> : kMasked<T>;
}

// Returns a scale s' for which 2^(s' masked_cosine) is zero. Nothing else changes: nearer to zero than 2^-64,
// 2^(s' S) is 1.
template <typename T>
__device__ inline T masking_scale(T scale) {
  constexpr T least = static_cast<T>(0x1p-64);
  return fabs(scale) < least ? (scale < 0 ? -least : least) : scale;  // NaN stays NaN
}
template <typename T>
__device__ inline Base2Scale<T> masking_scale(Base2Scale<T> scale) {
  const T hi = masking_scale(scale.hi);
  return {hi, hi == scale.hi ? scale.lo : T{0}};
}

// Turns dot products into cosines, multiplying in an order in which neither product can overflow
// first. Calls on_positive(row, cosine) for each positive in the tile. `masked` becomes the value of
// entries that are not negatives.
template <typename Tile, typename OnPositive>
__device__ inline void to_cosines(typename Tile::Fragment& values, const Place<Tile>& place, const Window& window,
                                  const Pairing<typename Tile::Accumulator>& pairing,
                                  const OnPositive& on_positive,
                                  typename Tile::Accumulator masked = kMasked<typename Tile::Accumulator>) {
  using T = typename Tile::Accumulator;
  T col_inv_norms[Tile::kThreadCols];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b)
    col_inv_norms[b] = window.of_col(pairing.col_inv_norms, place.col(b));
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const T row_inv_norm = window.of_row(pairing.row_inv_norms, place.row(a));
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      const T cosine = values[a][b] * row_inv_norm * col_inv_norms[b];
      values[a][b] = multiply_add(cosine, T{0}, cosine);  // NaN if the dot product overflowed
    }
  }

  // The numbers of the tile's rows and columns that lie inside the matrix, and the column of row
  // 0's positive.
  const int64_t rows = window.rows - window.row_begin, cols = window.cols - window.col_begin;
  const int64_t positive = window.row_begin + pairing.offset - window.col_begin;
  const bool is_whole = rows >= Tile::kRows && cols >= Tile::kCols;
  if (is_whole && (positive >= Tile::kCols || positive <= -Tile::kRows)) return;  // true for most tiles
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const int row = place.row(a);
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      const int col = place.col(b);
      const bool is_inside = row < rows && col < cols, is_positive = col == row + positive;
      if (is_inside && is_positive) on_positive(window.row_begin + row, values[a][b]);
      if (!is_inside || is_positive) values[a][b] = masked;
    }
  }
}

// For a negative scale: the cosines whose logits by the scale's magnitude are the same.
template <typename Tile>
__device__ inline void negate_cosines(typename Tile::Fragment& cosines) {
  using T = typename Tile::Accumulator;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      if (cosines[a][b] != kMasked<T>) cosines[a][b] = -cosines[a][b];
    }
  }
}

// For kernels that do not use the positives.
struct IgnorePositives {
  template <typename T>
  __device__ void operator()(int64_t, T) const {}
};

}  // namespace cyclip::cuda
