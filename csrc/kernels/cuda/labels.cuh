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

// Whether this thread may hold entries whose labels are equal: true if halves of two labels are. One comparison
// for each entry; most threads hold none.
template <typename Tile>
__device__ inline bool may_hold_same(const Place<Tile>& place, const Window& window, const Labels& labels) {
  const auto half = [](int64_t label) { return static_cast<uint32_t>(label); };
  uint32_t cols[Tile::kThreadCols];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) cols[b] = half(window.of_col(labels.cols, place.col(b)));
  bool found = false;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const uint32_t row = half(window.of_row(labels.rows, place.row(a)));
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) found |= row == cols[b];
  }
  return found;
}

// Calls f(a, b) for each entry of this thread whose labels are equal. Those of lines outside the matrix are
// arbitrary.
template <typename Tile, typename F>
__device__ inline void for_each_same(const Place<Tile>& place, const Window& window, const Labels& labels,
                                     const F& f) {
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const int64_t row_label = window.of_row(labels.rows, place.row(a));
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      if (row_label == window.of_col(labels.cols, place.col(b))) f(a, b);
    }
  }
}

// The entries of this thread whose labels are equal. The bits of lines outside the matrix are
// arbitrary.
template <typename Tile>
__device__ inline uint64_t same_entries(const Place<Tile>& place, const Window& window, const Labels& labels) {
  uint64_t same = 0;
  for_each_same(place, window, labels, [&](int a, int b) { same |= uint64_t{1} << (a * Tile::kThreadCols + b); });
  return same;
}

// Replaces the entries whose labels are equal.
template <typename Tile>
__device__ inline void mask_same(typename Tile::Fragment& values, const Place<Tile>& place, const Window& window,
                                 const Labels& labels, typename Tile::Accumulator masked) {
  if (may_hold_same(place, window, labels)) {
    for_each_same(place, window, labels, [&](int a, int b) { values[a][b] = masked; });
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
  const bool may_be_more = same.are_positives && may_hold_same(place, window, same.labels);
  return may_be_more ? same_entries(place, window, same.labels) : 0;
}
template <typename Tile>
__device__ inline uint64_t more_positives(const Place<Tile>&, const Window&, const NoLabels&) {
  return 0;
}

}  // namespace cyclip::cuda
