// Labels of the lines of a consumer's tile on compute capability 9.0a. A thread holds more entries there than the
// bits of labels.cuh represent.

#pragma once

#include "cosines.cuh"
#include "hopper_engine.cuh"
#include "labels.cuh"

namespace cyclip::cuda {

__device__ inline const Labels& labels_of(const Labels& labels) { return labels; }
__device__ inline const Labels& labels_of(const SameLabels& same) { return same.labels; }

// The labels of the columns of one consumer's tile, in shared memory.
template <typename MaybeLabels>
struct ColumnLabels {
  int64_t values[128];

  // Before the product, as ColumnNorms::load.
  __device__ void load(const Window& window, const MaybeLabels& labels) {
    const int col = static_cast<int>(threadIdx.x) % 128;
    values[col] = window.of_col(labels_of(labels).cols, col);
  }
};
template <>
struct ColumnLabels<NoLabels> {
  __device__ void load(const Window&, const NoLabels&) {}
};

// The two meanings of equal labels, as template arguments of the code for one tile.
struct MaskedLabels {};
struct PositiveLabels {};

// Calls f(meaning) once.
template <typename F>
__device__ inline void with_meaning(const NoLabels& none, const F& f) {
  f(none);
}
template <typename F>
__device__ inline void with_meaning(const SameLabels& same, const F& f) {
  if (same.are_positives) {
    f(PositiveLabels{});
  } else {
    f(MaskedLabels{});
  }
}

// Whether pairs of equal labels are positives instead of masked.
template <typename MaybeLabels>
__device__ inline bool are_positives(const MaybeLabels&) {
  return false;
}
__device__ inline bool are_positives(const SameLabels& same) { return same.are_positives; }

// Masks an entry whose labels are equal, or returns whether it is a positive.
__device__ inline bool apply_labels(NoLabels, bool, float&, float) { return false; }
__device__ inline bool apply_labels(MaskedLabels, bool is_same, float& cosine, float masked) {
  if (is_same) cosine = masked;
  return false;
}
__device__ inline bool apply_labels(PositiveLabels, bool is_same, float cosine, float) {
  return is_same && fabs(cosine) != -kMasked<float>;
}

// The labels of a thread's rows. of_column(b)(a) is whether the labels of an entry are equal; for lines outside
// the matrix, the result is arbitrary.
template <typename Tile, typename MaybeLabels>
class SameEntries {
 public:
  __device__ SameEntries(const Place<Tile>& place, const Window& window, const MaybeLabels& labels,
                         const ColumnLabels<MaybeLabels>& cols)
      : place_(place), cols_(cols) {
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) rows_[a] = window.of_row(labels_of(labels).rows, place.row(a));
  }

  __device__ auto of_column(int b) const {
    const int64_t col = cols_.values[place_.col(b)];
    return [this, col](int a) { return rows_[a] == col; };
  }

  __device__ void mask(typename Tile::Fragment& cosines) const {
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      const auto is_same = of_column(b);
      CYCLIP_UNROLL
      for (int a = 0; a < Tile::kThreadRows; ++a) {
        if (is_same(a)) cosines[a][b] = kMasked<float>;
      }
    }
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
  __device__ void mask(typename Tile::Fragment&) const {}
};

}  // namespace cyclip::cuda
