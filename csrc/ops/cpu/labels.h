// Labels of the rows and columns of the similarity matrix.

#pragma once

#include <algorithm>
#include <vector>

#include "../../kernels/cpu/tile_kernels.h"
#include "../checks.h"
#include "buffer.h"

namespace cyclip::cpu {

// Labels that are as wide as T, for vector comparisons. Two of them are equal if and only if the
// original ones are.
template <typename T>
class DenseLabels {
 public:
  DenseLabels(const Vector<int64_t>& rows, int64_t n, const Vector<int64_t>& cols, int64_t m)
      : rows_(n), cols_(padded(m), -1) {
    std::vector<int64_t> known(rows.data, rows.data + n);
    known.insert(known.end(), cols.data, cols.data + m);
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    const auto place = [&](int64_t label) {
      return static_cast<LaneInt<T>>(std::lower_bound(known.begin(), known.end(), label) - known.begin());
    };
    std::transform(rows.data, rows.data + n, rows_.data(), place);
    std::transform(cols.data, cols.data + m, cols_.data(), place);
  }

  Labels<T> of(const Tile<T>& tile) const {
    return {rows_.data() + tile.row_begin, cols_.data() + tile.col_begin};
  }

 private:
  Buffer<LaneInt<T>> rows_, cols_;
};

// The same, or no labels.
template <typename T>
class MaybeLabels {
 public:
  MaybeLabels(const OptionalLabels& labels, int64_t n, int64_t m) {
    if (labels.given()) dense_.emplace(*labels.rows, n, *labels.cols, m);
  }

  Labels<T> of(const Tile<T>& tile) const { return dense_ ? dense_->of(tile) : Labels<T>{}; }

 private:
  std::optional<DenseLabels<T>> dense_;
};

}  // namespace cyclip::cpu
