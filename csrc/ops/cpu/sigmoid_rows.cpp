// The pairwise sigmoid loss, row by row, and its gradient.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../checks.h"
#include "gradient_panels.h"
#include "labels.h"

namespace cyclip::cpu {

std::tuple<Tensor, Tensor> sigmoid_rows(const Tensor& image_features, const Tensor& text_features,
                                        const Tensor& logit_scale, const Tensor& logit_bias, int64_t offset,
                                        bool /*allow_tf32*/, bool allow_bf16, int64_t keep_bytes,
                                        std::optional<Tensor> row_labels, std::optional<Tensor> col_labels,
                                        bool same_are_positives) {
  check_feature_pair(image_features, text_features);
  check_offset(offset);
  const double scale = usable_scale(scalar_value(logit_scale, "logit_scale"));
  const double bias = scalar_value(logit_bias, "logit_bias");
  const int64_t n = image_features.size(0), m = text_features.size(0);
  const OptionalLabels given_labels(row_labels, n, col_labels, m);
  const Regions regions(n, m);
  Buffer<double> parts(regions.across * n, 0);
  const Tensor dots = with_products(image_features, text_features, {allow_bf16}, [&](const auto& products) {
    using T = NumberOf<std::decay_t<decltype(products)>>;
    const KeptDots<T> kept(n, m, keep_bytes);
    const MaybeLabels<T> labels(given_labels, n, m);
    regions.for_each_tile(products, offset, kept, [&](int64_t, int64_t j, const Tile<T>& tile) {
      tile_kernels<T>().sigmoid_forward(
          {tile, scale, bias, parts.data() + j * n + tile.row_begin, labels.of(tile), same_are_positives});
    });
    return kept.tensor();
  });
  Tensor row_loss = empty<double>({n});
  double* out = row_loss.mutable_data_ptr<double>();
  std::fill_n(out, n, 0.0);
  for (int64_t part = 0; part < regions.across; ++part) {
    for (int64_t i = 0; i < n; ++i) out[i] += parts[part * n + i];
  }
  return {row_loss, dots};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_rows_backward(
    const Tensor& image_features, const Tensor& text_features, const Tensor& logit_scale, const Tensor& logit_bias,
    int64_t offset, const Tensor& dots, const Tensor& grad_rows, bool needs_image_grad, bool needs_text_grad,
    bool /*allow_tf32*/, bool allow_bf16, std::optional<Tensor> row_labels, std::optional<Tensor> col_labels,
    bool same_are_positives) {
  check_feature_pair(image_features, text_features);
  check_offset(offset);
  const int64_t n = image_features.size(0), m = text_features.size(0);
  const OptionalLabels given_labels(row_labels, n, col_labels, m);
  const Vector<double> row_grads(grad_rows, n, "grad_rows");
  const double scale = usable_scale(scalar_value(logit_scale, "logit_scale"));
  const double bias = scalar_value(logit_bias, "logit_bias");
  return with_products(
      image_features, text_features, {allow_bf16, dots.numel() == 0},
      [&](const auto& products) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
        using T = NumberOf<std::decay_t<decltype(products)>>;
        const KeptDots<T> kept(n, m, dots);
        const MaybeLabels<T> labels(given_labels, n, m);
        const WantedGradients wanted = {needs_image_grad, needs_text_grad};
        const auto fill = [&](const Tile<T>& tile, const GradientTile<T>& out, ScalarGradients* scalars) {
          tile_kernels<T>().sigmoid_backward({tile, out, scale, bias, row_grads.data + tile.row_begin, scalars,
                                              labels.of(tile), same_are_positives});
        };
        const PairGradients gradients =
            pair_gradients(products, offset, kept, wanted, image_features.scalar_type(), fill);
        return {gradients.image, gradients.text, scalar_tensor(gradients.scalars.scale),
                scalar_tensor(gradients.scalars.bias)};
      });
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) {
  m.impl("sigmoid_rows", TORCH_BOX(&sigmoid_rows));
  m.impl("sigmoid_rows_backward", TORCH_BOX(&sigmoid_rows_backward));
}

}  // namespace cyclip::cpu
