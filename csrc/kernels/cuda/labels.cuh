// Labels of the rows and columns of a matrix, as template arguments of kernels: without labels, a
// kernel contains no instruction for them.

#pragma once

#include "lines.cuh"

namespace cyclip::cuda {

struct NoLabels {};

// Rows and columns of equal labels belong together.
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
  for (int b = 0; b < Tile::kThreadCols; ++b) col_labels[b] = window.of_col(labels.cols, place.col(b));
  uint64_t same = 0;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const int64_t row_label = window.of_row(labels.rows, place.row(a));
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      same |= uint64_t{row_label == col_labels[b]} << (a * Tile::kThreadCols + b);
    }
  }
  return same;
}

// Replaces the entries whose labels are equal.
template <typename Tile>
__device__ inline void mask_same(typename Tile::Fragment& values, const Place<Tile>& place, const Window& window,
                                 const Labels& labels, typename Tile::Accumulator masked) {
  const uint64_t same = same_entries(place, window, labels);
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      if (test<Tile>(same, a, b)) values[a][b] = masked;
    }
  }
}
template <typename Tile>
__device__ inline void mask_same(typename Tile::Fragment&, const Place<Tile>&, const Window&, const NoLabels&,
                                 typename Tile::Accumulator) {}

// Pairs of equal labels are positives, or do not count.
struct SameLabels {
  Labels labels;
  bool are_positives;
};

template <typename Tile>
__device__ inline void mask_same(typename Tile::Fragment& cosines, const Place<Tile>& place, const Window& window,
                                 const SameLabels& same, typename Tile::Accumulator masked) {
  if (!same.are_positives) mask_same<Tile>(cosines, place, window, same.labels, masked);
}

// The entries of this thread that are positives by their labels; masked ones may be among them.
template <typename Tile>
__device__ inline uint64_t more_positives(const Place<Tile>& place, const Window& window, const SameLabels& same) {
  return same.are_positives ? same_entries(place, window, same.labels) : 0;
}
template <typename Tile>
__device__ inline uint64_t more_positives(const Place<Tile>&, const Window&, const NoLabels&) {
  return 0;
}

}  // namespace cyclip::cuda
