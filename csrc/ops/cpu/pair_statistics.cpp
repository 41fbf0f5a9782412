// Softmax statistics of the negatives, and the gradient through them.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "../../kernels/cpu/sparse_gradients.h"
#include "../checks.h"
#include "gradient_panels.h"
#include "labels.h"

namespace cyclip::cpu {

namespace {

constexpr double kLargestShift = -kNoShift;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Partial statistics of one side of the matrix: `parts` vectors of `size` entries.
template <typename T>
class PartialStatistics {
 public:
  PartialStatistics(int64_t parts, int64_t size)
      : parts_(parts),
        pitch_(padded(size)),
        shift_(parts * pitch_, kNoShift),
        sum_(parts * pitch_, 0),
        hardest_(parts * pitch_, kNoShift),
        hardest_index_(parts * pitch_, -1) {}

  NegativeStatistics<T> at(int64_t part, int64_t entry) {
    const int64_t i = part * pitch_ + entry;
    return {shift_.data() + i, sum_.data() + i, hardest_.data() + i, hardest_index_.data() + i};
  }

  // Merges the parts of each entry, in order. Parts are in order of index, so the first of tied
  // hardest negatives is chosen. Without `needs_hardest` they are -inf, with index -1.
  void merge(int64_t size, bool needs_hardest, double* lse, double* hardest, int64_t* hardest_index) {
    for_each_block(size, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t entry = begin; entry < end; ++entry) {
        merge_entry(entry, needs_hardest, lse + entry, hardest + entry, hardest_index + entry);
      }
    });
  }

 private:
  void merge_entry(int64_t entry, bool needs_hardest, double* lse, double* hardest, int64_t* hardest_index) {
    LaneInt<T> shift = kNoShift;
    for (int64_t part = 0; part < parts_; ++part) shift = std::max(shift, shift_[part * pitch_ + entry]);
    double sum = 0;
    *hardest = -kInfinity;
    *hardest_index = -1;
    for (int64_t i = entry; i < parts_ * pitch_; i += pitch_) {
      sum += std::ldexp(sum_[i], static_cast<int>(shift_[i] - shift));
      if (hardest_index_[i] >= 0 && hardest_[i] > *hardest) {
        *hardest = hardest_[i];
        *hardest_index = hardest_index_[i];
      }
    }
    *lse = sum == 0 ? -kInfinity : kLn2 * (static_cast<double>(shift) + std::log2(sum));
    // A comparison with NaN is false, so NaN is detected by the sum.
    if (std::isnan(sum) && needs_hardest) *hardest = sum;
  }

  int64_t parts_, pitch_;
  Buffer<LaneInt<T>> shift_;
  Buffer<double> sum_;
  Buffer<T> hardest_;
  Buffer<LaneInt<T>> hardest_index_;
};

using Statistics = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename Products>
Statistics forward(const Products& products, double scale, int64_t offset, int64_t keep_bytes, bool needs_hardest,
                   const OptionalLabels& given_labels, bool same_are_positives) {
  using T = typename Products::Number;
  const int64_t n = products.image.rows, m = products.text.rows;
  const Regions regions(n, m);
  const KeptDots<T> kept(n, m, keep_bytes);
  const MaybeLabels<T> labels(given_labels, n, m);
  PartialStatistics<T> row_parts(regions.across, n), col_parts(regions.down, m);
  Tensor positive = empty<double>({n});
  double* positive_data = positive.mutable_data_ptr<double>();
  std::fill_n(positive_data, n, 0.0);

  const TileKernels<T>& kernels = tile_kernels<T>();
  const Base2Scale<T> base2 = base2_scale<T>(scale);
  regions.for_each_tile(products, offset, kept, [&](int64_t i, int64_t j, const Tile<T>& tile) {
    Buffer<T> scratch(2 * padded(tile.cols));
    kernels.softmax_forward({tile, base2, row_parts.at(j, tile.row_begin), col_parts.at(i, tile.col_begin),
                             positive_data + tile.row_begin, scratch.data(), needs_hardest, labels.of(tile),
                             same_are_positives});
  });

  Tensor row_lse = empty<double>({n}), col_lse = empty<double>({m});
  Tensor row_hardest = empty<double>({n}), col_hardest = empty<double>({m});
  Tensor row_index = empty<int64_t>({n}), col_index = empty<int64_t>({m});
  row_parts.merge(n, needs_hardest, row_lse.mutable_data_ptr<double>(), row_hardest.mutable_data_ptr<double>(),
                  row_index.mutable_data_ptr<int64_t>());
  col_parts.merge(m, needs_hardest, col_lse.mutable_data_ptr<double>(), col_hardest.mutable_data_ptr<double>(),
                  col_index.mutable_data_ptr<int64_t>());
  return {row_lse, col_lse, positive, row_hardest, col_hardest, row_index, col_index, kept.tensor()};
}

// Softmax weights g e^(z - lse) in base 2: the integer shift nearest to lse / ln 2, with the
// remainder folded into the weight.
template <typename T>
struct Weights {
  Buffer<LaneInt<T>> shift;
  Buffer<T> weight;

  Weights(const double* lse, const double* grad, int64_t size)
      : shift(padded(size), 0), weight(size + kColumnPadding, 0) {
    for (int64_t i = 0; i < size; ++i) {
      if (lse[i] == -kInfinity) continue;  // no negatives
      if (std::isnan(lse[i])) {
        weight[i] = std::numeric_limits<T>::quiet_NaN();
        continue;
      }
      const double base2 = lse[i] / kLn2;
      const double nearest = std::clamp(std::nearbyint(base2), -kLargestShift, kLargestShift);
      shift[i] = static_cast<LaneInt<T>>(nearest);
      weight[i] = static_cast<T>(grad[i] * std::exp2(nearest - base2));
    }
  }
};

}  // namespace

Statistics pair_statistics(const Tensor& image_features, const Tensor& text_features, const Tensor& logit_scale,
                           int64_t offset, bool /*allow_tf32*/, bool allow_bf16, int64_t keep_bytes,
                           bool needs_hardest, std::optional<Tensor> row_labels, std::optional<Tensor> col_labels,
                           bool same_are_positives) {
  check_feature_pair(image_features, text_features);
  check_offset(offset);
  const OptionalLabels labels(row_labels, image_features.size(0), col_labels, text_features.size(0));
  const double scale = scalar_value(logit_scale, "logit_scale");
  return with_products(image_features, text_features, {allow_bf16}, [&](const auto& products) {
    return forward(products, scale, offset, keep_bytes, needs_hardest, labels, same_are_positives);
  });
}

std::tuple<Tensor, Tensor, Tensor> pair_statistics_backward(
    const Tensor& image_features, const Tensor& text_features, const Tensor& logit_scale, int64_t offset,
    const Tensor& row_lse, const Tensor& col_lse, const Tensor& row_hardest_index, const Tensor& col_hardest_index,
    const Tensor& dots, const Tensor& grad_row_lse, const Tensor& grad_col_lse, const Tensor& grad_positive,
    const Tensor& grad_row_hardest, const Tensor& grad_col_hardest, bool needs_image_grad, bool needs_text_grad,
    bool /*allow_tf32*/, bool allow_bf16, std::optional<Tensor> row_labels, std::optional<Tensor> col_labels) {
  check_feature_pair(image_features, text_features);
  check_offset(offset);
  const int64_t n = image_features.size(0), m = text_features.size(0);
  const OptionalLabels given_labels(row_labels, n, col_labels, m);
  const Vector<double> row_lse_values(row_lse, n, "row_lse"), col_lse_values(col_lse, m, "col_lse");
  const Vector<int64_t> row_indices(row_hardest_index, n, "row_hardest_index");
  const Vector<int64_t> col_indices(col_hardest_index, m, "col_hardest_index");
  const Vector<double> row_grads(grad_row_lse, n, "grad_row_lse"), col_grads(grad_col_lse, m, "grad_col_lse");
  const Vector<double> positive_grads(grad_positive, n, "grad_positive");
  const Vector<double> row_hardest_grads(grad_row_hardest, n, "grad_row_hardest");
  const Vector<double> col_hardest_grads(grad_col_hardest, m, "grad_col_hardest");
  const double scale = scalar_value(logit_scale, "logit_scale");

  return with_products(
      image_features, text_features, {allow_bf16, dots.numel() == 0},
      [&](const auto& products) -> std::tuple<Tensor, Tensor, Tensor> {
        using T = NumberOf<std::decay_t<decltype(products)>>;
        const KeptDots<T> kept(n, m, dots);
        const Weights<T> rows(row_lse_values.data, row_grads.data, n),
            cols(col_lse_values.data, col_grads.data, m);
        const MaybeLabels<T> labels(given_labels, n, m);
        const WantedGradients wanted = {needs_image_grad, needs_text_grad};
        const TileKernels<T>& kernels = tile_kernels<T>();
        const Base2Scale<T> base2 = base2_scale<T>(scale);

        const auto fill = [&](const Tile<T>& tile, const GradientTile<T>& out, ScalarGradients* scalars) {
          const int64_t r = tile.row_begin, c = tile.col_begin;
          const SoftmaxWeights<T> weights = {rows.shift.data() + r, rows.weight.data() + r, cols.shift.data() + c,
                                             cols.weight.data() + c};
          const SparseGradients sparse = {positive_grads.data + r, row_hardest_grads.data + r,
                                          row_indices.data + r, col_hardest_grads.data + c, col_indices.data + c};
          kernels.softmax_backward({tile, out, base2, scale, weights, scalars, labels.of(tile)});
          add_sparse_gradients(tile, out, sparse);
        };
        const PairGradients gradients =
            pair_gradients(products, offset, kept, wanted, image_features.scalar_type(), fill);
        return {gradients.image, gradients.text, scalar_tensor(gradients.scalars.scale)};
      });
}

int64_t dots_column_multiple() { return kTileColumns; }

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CompositeExplicitAutograd, m) {
  m.impl("dots_column_multiple", TORCH_BOX(&dots_column_multiple));
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) {
  m.impl("pair_statistics", TORCH_BOX(&pair_statistics));
  m.impl("pair_statistics_backward", TORCH_BOX(&pair_statistics_backward));
}

}  // namespace cyclip::cpu
