// Retrieval ranks in both directions, in two passes over the tiles: the first finds the best own entries, the
// second counts the foreign entries that reach them.

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "../checks.h"
#include "labels.h"
#include "tiles.h"

namespace cyclip::cpu {

namespace {

// The dot products are stored for the second pass if they fit into this many bytes.
constexpr int64_t kKeptBytes = int64_t{64} << 20;

// One vector of type E per region across or down, padded for vector access.
template <typename E>
struct Parts {
  int64_t parts, size;
  Buffer<E> data;

  Parts(int64_t parts, int64_t size, E value) : parts(parts), size(size), data(parts * padded(size), value) {}

  E* at(int64_t part, int64_t entry) { return data.data() + part * padded(size) + entry; }
};

// Broadcasts the maximum over all parts, ignoring NaN.
template <typename T>
void share_best(Parts<T>& best) {
  for (int64_t entry = 0; entry < best.size; ++entry) {
    T largest = *best.at(0, entry);
    for (int64_t part = 1; part < best.parts; ++part) largest = std::fmax(largest, *best.at(part, entry));
    for (int64_t part = 0; part < best.parts; ++part) *best.at(part, entry) = largest;
  }
}

template <typename T>
Tensor ranks(Parts<T>& best, Parts<LaneInt<T>>& count) {
  Tensor result = empty<int64_t>({best.size});
  int64_t* rank = result.mutable_data_ptr<int64_t>();
  for (int64_t entry = 0; entry < best.size; ++entry) {
    rank[entry] = 0;
    for (int64_t part = 0; part < count.parts; ++part) rank[entry] += *count.at(part, entry);
    if (std::isnan(*best.at(0, entry))) rank[entry] = -1;
  }
  return result;
}

}  // namespace

std::tuple<Tensor, Tensor> retrieval_ranks(const Tensor& image_features, const Tensor& text_features,
                                           const Tensor& image_labels, const Tensor& text_labels,
                                           bool /*allow_tf32*/) {
  check_feature_pair(image_features, text_features);
  const int64_t n = image_features.size(0), m = text_features.size(0);
  const Vector<int64_t> image_label_values(image_labels, n, "image_labels");
  const Vector<int64_t> text_label_values(text_labels, m, "text_labels");
  const Regions regions(n, m);
  return with_products(image_features, text_features, {}, [&](const auto& products) -> std::tuple<Tensor, Tensor> {
    using T = NumberOf<std::decay_t<decltype(products)>>;
    const KeptDots<T> kept(n, m, kKeptBytes);
    const DenseLabels<T> labels(image_label_values, n, text_label_values, m);
    const TileKernels<T>& kernels = tile_kernels<T>();

    constexpr T kNone = std::numeric_limits<T>::quiet_NaN();
    Parts<T> row_best(regions.across, n, kNone), col_best(regions.down, m, kNone);
    regions.for_each_tile(products, 0, kept, [&](int64_t i, int64_t j, const Tile<T>& tile) {
      kernels.own_best({tile, labels.of(tile), row_best.at(j, tile.row_begin), col_best.at(i, tile.col_begin)});
    });
    share_best(row_best);
    share_best(col_best);

    Parts<LaneInt<T>> row_count(regions.across, n, 0), col_count(regions.down, m, 0);
    regions.for_each_tile(
        products, 0, kept,
        [&](int64_t i, int64_t j, const Tile<T>& tile) {
          kernels.foreign_count({tile, labels.of(tile), row_best.at(j, tile.row_begin),
                                 col_best.at(i, tile.col_begin), row_count.at(j, tile.row_begin),
                                 col_count.at(i, tile.col_begin)});
        },
        /*are_computed=*/!kept.is_empty());
    return {ranks(row_best, row_count), ranks(col_best, col_count)};
  });
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) { m.impl("retrieval_ranks", TORCH_BOX(&retrieval_ranks)); }

}  // namespace cyclip::cpu
