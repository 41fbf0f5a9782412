// Labels of the lines of a consumer's tile on compute capability 9.0a, where a thread holds more entries than the
// bits of labels.cuh represent.

#pragma once

#include "hopper_engine.cuh"
#include "labels.cuh"

namespace cyclip::cuda {

// The labels of the columns of one consumer's tile, in shared memory.
template <typename MaybeLabels>
struct ColumnLabels {
  int64_t values[128];

  // Before the product, as ColumnNorms::load.
  __device__ void load(const Window& window, const Labels& labels) {
    const int col = static_cast<int>(threadIdx.x) % 128;
    values[col] = window.of_col(labels.cols, col);
  }
};
template <>
struct ColumnLabels<NoLabels> {
  __device__ void load(const Window&, const NoLabels&) {}
};

// The labels of a thread's rows. of_column(b)(a) is whether the labels of an entry are equal; for lines outside
// the matrix, the result is arbitrary.
template <typename Tile, typename MaybeLabels>
class SameEntries {
 public:
  __device__ SameEntries(const Place<Tile>& place, const Window& window, const Labels& labels,
                         const ColumnLabels<MaybeLabels>& cols)
      : place_(place), cols_(cols) {
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) rows_[a] = window.of_row(labels.rows, place.row(a));
  }

  __device__ auto of_column(int b) const {
    const int64_t col = cols_.values[place_.col(b)];
    return [this, col](int a) { return rows_[a] == col; };
  }

 private:
  const Place<Tile>& place_;
  const ColumnLabels<MaybeLabels>& cols_;
  int64_t rows_[Tile::kThreadRows];
};
template <typename Tile>
class SameEntries<Tile, NoLabels> {
 public:
  __device__ SameEntries(const Place<Tile>&, const Window&, const NoLabels&, const ColumnLabels<NoLabels>&) {}

  __device__ auto of_column(int) const {
    return [](int) { return false; };
  }
};

}  // namespace cyclip::cuda
