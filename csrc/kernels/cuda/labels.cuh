// Labels of the rows and columns of a matrix, as template arguments of kernels: without labels, a
// kernel contains no instruction for them.

#pragma once

#include "lines.cuh"

namespace cyclip::cuda {

struct NoLabels {};

// Pairs of equal labels belong together.
struct Labels {
  const int64_t* rows;  // [n]
  const int64_t* cols;  // [m]
};

// Bit a kThreadCols + b represents entry (a, b) of a thread.
template <typename Tile>
__device__ inline bool test(uint64_t entries, int a, int b) {
  return entries >> (a * Tile::kThreadCols + b) & 1;
}

// The entries of this thread whose labels are equal. The bits of lines outside the matrix are
// arbitrary.
template <typename Tile>
__device__ inline uint64_t same_entries(const Place<Tile>& place, const Window& window, const Labels& labels) {
  int64_t col_labels[Tile::kThreadCols];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) col_labels[b] = labels.cols[window.inner_col(place.col(b))];
  uint64_t same = 0;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const int64_t row_label = labels.rows[window.inner_row(place.row(a))];
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      same |= uint64_t{row_label == col_labels[b]} << (a * Tile::kThreadCols + b);
    }
  }
  return same;
}

}  // namespace cyclip::cuda
