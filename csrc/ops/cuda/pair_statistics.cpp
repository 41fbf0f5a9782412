// Softmax statistics of the negatives, and the gradient through them.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "device.h"

namespace cyclip::cuda {

using Statistics = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Statistics pair_statistics(const Tensor& image_features, const Tensor& text_features, const Tensor& logit_scale,
                           int64_t offset, bool allow_tf32, bool allow_bf16, int64_t /*keep_bytes*/,
                           bool needs_hardest, std::optional<Tensor> row_labels, std::optional<Tensor> col_labels,
                           bool same_are_positives) {
  check_feature_pair(image_features, text_features);
  check_offset(offset);
  check_same_device(
      {{image_features, "image_features"}, {text_features, "text_features"}, {logit_scale, "logit_scale"}});
  check_label_devices(image_features, row_labels, col_labels);
  const int64_t n = image_features.size(0), m = text_features.size(0);
  const OptionalLabels labels(row_labels, n, col_labels, m);
  const Call call(image_features, allow_tf32);
  const Tower image(multiplied(image_features, allow_bf16)), text(multiplied(text_features, allow_bf16));
  const Scalar scale(logit_scale, "logit_scale");
  const Tensor row_lse = call.empty<double>({n}), col_lse = call.empty<double>({m});
  const Tensor positive = call.empty<double>({n});
  const Tensor row_hardest = call.empty<double>({n}), col_hardest = call.empty<double>({m});
  const Tensor row_index = call.empty<int64_t>({n}), col_index = call.empty<int64_t>({m});

  PairStatisticsForward args;
  args.image = image;
  args.text = text;
  args.logit_scale = scale.data;
  args.offset = offset;
  args.row_lse = row_lse.mutable_data_ptr<double>();
  args.col_lse = col_lse.mutable_data_ptr<double>();
  args.positive = positive.mutable_data_ptr<double>();
  args.row_hardest = row_hardest.mutable_data_ptr<double>();
  args.col_hardest = col_hardest.mutable_data_ptr<double>();
  args.row_hardest_index = row_index.mutable_data_ptr<int64_t>();
  args.col_hardest_index = col_index.mutable_data_ptr<int64_t>();
  args.needs_hardest = needs_hardest;
  args.row_labels = labels.row_data();
  args.col_labels = labels.col_data();
  args.same_are_positives = same_are_positives;
  STD_CUDA_CHECK(launch_pair_statistics_forward(args, call.context()));
  return {row_lse, col_lse, positive, row_hardest, col_hardest, row_index, col_index, no_dots(image_features)};
}

std::tuple<Tensor, Tensor, Tensor> pair_statistics_backward(
    const Tensor& image_features, const Tensor& text_features, const Tensor& logit_scale, int64_t offset,
    const Tensor& row_lse, const Tensor& col_lse, const Tensor& row_hardest_index, const Tensor& col_hardest_index,
    const Tensor& /*dots*/, const Tensor& grad_row_lse, const Tensor& grad_col_lse, const Tensor& grad_positive,
    const Tensor& grad_row_hardest, const Tensor& grad_col_hardest, bool needs_image_grad, bool needs_text_grad,
    bool allow_tf32, bool allow_bf16, std::optional<Tensor> row_labels, std::optional<Tensor> col_labels) {
  check_feature_pair(image_features, text_features);
  check_offset(offset);
  check_same_device({{image_features, "image_features"},
                     {text_features, "text_features"},
                     {logit_scale, "logit_scale"},
                     {row_lse, "row_lse"},
                     {col_lse, "col_lse"},
                     {row_hardest_index, "row_hardest_index"},
                     {col_hardest_index, "col_hardest_index"},
                     {grad_row_lse, "grad_row_lse"},
                     {grad_col_lse, "grad_col_lse"},
                     {grad_positive, "grad_positive"},
                     {grad_row_hardest, "grad_row_hardest"},
                     {grad_col_hardest, "grad_col_hardest"}});
  check_label_devices(image_features, row_labels, col_labels);
  const int64_t n = image_features.size(0), m = text_features.size(0);
  const OptionalLabels labels(row_labels, n, col_labels, m);
  const Call call(image_features, allow_tf32);
  const Tensor multiplied_image = multiplied(image_features, allow_bf16);
  const Tensor multiplied_text = multiplied(text_features, allow_bf16);
  const Tower image(multiplied_image), text(multiplied_text);
  const Scalar scale(logit_scale, "logit_scale");
  const Vector<double> row_lses(row_lse, n, "row_lse"), col_lses(col_lse, m, "col_lse");
  const Vector<int64_t> row_indices(row_hardest_index, n, "row_hardest_index");
  const Vector<int64_t> col_indices(col_hardest_index, m, "col_hardest_index");
  const Vector<double> row_lse_grads(grad_row_lse, n, "grad_row_lse");
  const Vector<double> col_lse_grads(grad_col_lse, m, "grad_col_lse");
  const Vector<double> positive_grads(grad_positive, n, "grad_positive");
  const Vector<double> row_hardest_grads(grad_row_hardest, n, "grad_row_hardest");
  const Vector<double> col_hardest_grads(grad_col_hardest, m, "grad_col_hardest");
  const Tensor image_grad = empty_gradient(multiplied_image, needs_image_grad);
  const Tensor text_grad = empty_gradient(multiplied_text, needs_text_grad);
  const Tensor scale_grad = call.empty<double>({});

  PairStatisticsBackward args;
  args.image = image;
  args.text = text;
  args.logit_scale = scale.data;
  args.offset = offset;
  args.row_lse = row_lses.data;
  args.col_lse = col_lses.data;
  args.row_hardest_index = row_indices.data;
  args.col_hardest_index = col_indices.data;
  args.grad_row_lse = row_lse_grads.data;
  args.grad_col_lse = col_lse_grads.data;
  args.grad_positive = positive_grads.data;
  args.grad_row_hardest = row_hardest_grads.data;
  args.grad_col_hardest = col_hardest_grads.data;
  args.image_grad = image_grad.mutable_data_ptr();
  args.text_grad = text_grad.mutable_data_ptr();
  args.logit_scale_grad = scale_grad.mutable_data_ptr<double>();
  args.row_labels = labels.row_data();
  args.col_labels = labels.col_data();
  STD_CUDA_CHECK(launch_pair_statistics_backward(args, call.context()));
  return {torch::stable::to(image_grad, image_features.scalar_type()),
          torch::stable::to(text_grad, text_features.scalar_type()), scale_grad};
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CUDA, m) {
  m.impl("pair_statistics", TORCH_BOX(&pair_statistics));
  m.impl("pair_statistics_backward", TORCH_BOX(&pair_statistics_backward));
}

}  // namespace cyclip::cuda
