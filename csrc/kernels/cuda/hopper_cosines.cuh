// Conversion of a tile of dot products to cosines on compute capability 9.0a. Unlike cosines.cuh, it needs few
// registers beside the tile.

#pragma once

#include "cosines.cuh"
#include "hopper_engine.cuh"

namespace cyclip::cuda {

// The norms of the columns of one consumer's tile, in shared memory.
struct ColumnNorms {
  float inv_norms[128];

  // Before the product, whose barrier makes the norms visible to the other threads of the consumer.
  __device__ void load(const Window& window, const Pairing<float>& pairing) {
    const int col = static_cast<int>(threadIdx.x) % 128;
    inv_norms[col] = window.of_col(pairing.col_inv_norms, col);
  }
};

// Entries that are not negatives become `masked`. Calls on_positive(row, cosine) for each positive in the tile.
template <typename Tile, typename OnPositive>
__device__ inline void mask_hopper_tile(typename Tile::Fragment& values, const Place<Tile>& place,
                                        const Window& window, int64_t offset, float masked,
                                        const OnPositive& on_positive) {
  // The numbers of the tile's rows and columns that lie inside the matrix, and the column of row 0's positive.
  const int64_t rows = window.rows - window.row_begin, cols = window.cols - window.col_begin;
  const int64_t positive = window.row_begin + offset - window.col_begin;
  const bool is_whole = rows >= Tile::kRows && cols >= Tile::kCols;
  const bool has_positives = positive < Tile::kCols && positive > -Tile::kRows;
  if (is_whole && !has_positives) return;  // true for most tiles

  // Relative to this thread's first column, so that the columns are constants.
  const int first = place.col(0), end = static_cast<int>(cols < Tile::kCols ? cols : Tile::kCols) - first;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const int row = place.row(a);
    const bool has_row = row < rows;
    const int positive_col = has_positives ? row + static_cast<int>(positive) - first : -1;
    float positive_cosine = 0;
    bool is_found = false;
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      const int col = Place<Tile>::col_step(b);
      const bool is_positive = col == positive_col;
      positive_cosine = is_positive ? values[a][b] : positive_cosine;
      is_found = is_found || is_positive;
      values[a][b] = is_positive || !has_row || col >= end ? masked : values[a][b];
    }
    if (is_found && has_row && positive_col < end) on_positive(window.row_begin + row, positive_cosine);
  }
}

template <typename Tile, typename OnPositive>
__device__ inline void to_hopper_cosines(typename Tile::Fragment& values, const Place<Tile>& place,
                                         const Window& window, const Pairing<float>& pairing,
                                         const ColumnNorms& norms, float masked, const OnPositive& on_positive) {
  float row_inv_norms[Tile::kThreadRows];
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a)
    row_inv_norms[a] = window.of_row(pairing.row_inv_norms, place.row(a));
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) {
    const float col_inv_norm = norms.inv_norms[place.col(b)];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      const float cosine = values[a][b] * row_inv_norms[a] * col_inv_norm;
      values[a][b] = multiply_add(cosine, 0.0f, cosine);  // NaN if the dot product overflowed
    }
  }
  mask_hopper_tile(values, place, window, pairing.offset, masked, on_positive);
}

}  // namespace cyclip::cuda
