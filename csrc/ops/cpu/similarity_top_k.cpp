// The k most similar candidates of each query: a sorted list per row and region, then one merge per row.

#include <torch/csrc/stable/library.h>

#include <array>
#include <limits>
#include <tuple>

#include "../checks.h"
#include "tiles.h"

namespace cyclip::cpu {

namespace {

// Lists of one row's best entries, one per region from left to right.
template <typename T>
struct RegionLists {
  int64_t regions, rows, capacity;
  Buffer<T> values;  // [regions, rows, capacity]; NaN marks a free entry
  Buffer<LaneInt<T>> indices;

  // A list is never longer than its region is wide, so the lists of one row together hold at most a row of the
  // matrix, or 8 k entries if that is less.
  RegionLists(const Regions& shape, int64_t k)
      : regions(shape.across),
        rows(shape.rows),
        capacity(std::min(k, shape.region_cols)),
        values(regions * rows * capacity, std::numeric_limits<T>::quiet_NaN()),
        indices(regions * rows * capacity) {}

  int64_t at(int64_t region, int64_t row) const { return (region * rows + row) * capacity; }

  // Equal entries are ordered by column: regions are visited in order, and the comparison is strict.
  void merge(int64_t row, int64_t k, double* out_values, int64_t* out_indices) const {
    std::array<int64_t, Regions::kMost> taken = {};
    for (int64_t place = 0; place < k; ++place) {
      int64_t best = -1;
      T largest = std::numeric_limits<T>::quiet_NaN();
      for (int64_t region = 0; region < regions; ++region) {
        if (taken[region] == capacity) continue;
        const T head = values[at(region, row) + taken[region]];
        if (std::isnan(head) || head <= largest) continue;
        best = region;
        largest = head;
      }
      out_values[place] = largest;
      out_indices[place] = indices[at(best, row) + taken[best]++];
    }
  }
};

}  // namespace

std::tuple<Tensor, Tensor> similarity_top_k(const Tensor& query_features, const Tensor& candidate_features,
                                            int64_t k, bool /*allow_tf32*/) {
  check_feature_pair(query_features, candidate_features, "query_features", "candidate_features");
  check_k(k, candidate_features);
  const int64_t n = query_features.size(0), m = candidate_features.size(0);
  const Regions regions(n, m);
  Tensor values = empty<double>({n, k}), indices = empty<int64_t>({n, k});
  double* values_data = values.mutable_data_ptr<double>();
  int64_t* indices_data = indices.mutable_data_ptr<int64_t>();
  with_products(query_features, candidate_features, {}, [&](const auto& products) {
    using T = NumberOf<std::decay_t<decltype(products)>>;
    const KeptDots<T> none(n, m, 0);
    RegionLists<T> lists(regions, k);
    regions.for_each_tile(products, 0, none, [&](int64_t, int64_t j, const Tile<T>& tile) {
      const int64_t list = lists.at(j, tile.row_begin);
      Buffer<T> cosines(padded(tile.cols));
      tile_kernels<T>().top_k(
          {tile, cosines.data(), lists.capacity, lists.values.data() + list, lists.indices.data() + list});
    });
    for_each_block(n, row_block(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) lists.merge(i, k, values_data + i * k, indices_data + i * k);
    });
  });
  return {values, indices};
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) { m.impl("similarity_top_k", TORCH_BOX(&similarity_top_k)); }

}  // namespace cyclip::cpu
