// The pairwise sigmoid loss, row by row, and its gradient.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "device.h"

namespace cyclip::cuda {

std::tuple<Tensor, Tensor> sigmoid_rows(const Tensor& image_features, const Tensor& text_features,
                                        const Tensor& logit_scale, const Tensor& logit_bias, int64_t offset,
                                        bool allow_tf32, bool allow_bf16, int64_t /*keep_bytes*/,
                                        std::optional<Tensor> row_labels, std::optional<Tensor> col_labels,
                                        bool same_are_positives) {
  check_feature_pair(image_features, text_features);
  check_offset(offset);
  check_same_device({{image_features, "image_features"},
                     {text_features, "text_features"},
                     {logit_scale, "logit_scale"},
                     {logit_bias, "logit_bias"}});
  check_label_devices(image_features, row_labels, col_labels);
  const OptionalLabels labels(row_labels, image_features.size(0), col_labels, text_features.size(0));
  const Call call(image_features, allow_tf32);
  const Tower image(multiplied(image_features, allow_bf16)), text(multiplied(text_features, allow_bf16));
  const Scalar scale(logit_scale, "logit_scale"), bias(logit_bias, "logit_bias");
  const Tensor row_loss = call.empty<double>({image_features.size(0)});
  STD_CUDA_CHECK(
      launch_sigmoid_rows_forward({image, text, scale.data, bias.data, offset, row_loss.mutable_data_ptr<double>(),
                                   labels.row_data(), labels.col_data(), same_are_positives},
                                  call.context()));
  return {row_loss, no_dots(image_features)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_rows_backward(
    const Tensor& image_features, const Tensor& text_features, const Tensor& logit_scale, const Tensor& logit_bias,
    int64_t offset, const Tensor& /*dots*/, const Tensor& grad_rows, bool needs_image_grad, bool needs_text_grad,
    bool allow_tf32, bool allow_bf16, std::optional<Tensor> row_labels, std::optional<Tensor> col_labels,
    bool same_are_positives) {
  check_feature_pair(image_features, text_features);
  check_offset(offset);
  check_same_device({{image_features, "image_features"},
                     {text_features, "text_features"},
                     {logit_scale, "logit_scale"},
                     {logit_bias, "logit_bias"},
                     {grad_rows, "grad_rows"}});
  check_label_devices(image_features, row_labels, col_labels);
  const OptionalLabels labels(row_labels, image_features.size(0), col_labels, text_features.size(0));
  const Call call(image_features, allow_tf32);
  const Tensor multiplied_image = multiplied(image_features, allow_bf16);
  const Tensor multiplied_text = multiplied(text_features, allow_bf16);
  const Tower image(multiplied_image), text(multiplied_text);
  const Scalar scale(logit_scale, "logit_scale"), bias(logit_bias, "logit_bias");
  const Vector<double> row_grads(grad_rows, image_features.size(0), "grad_rows");
  const Tensor image_grad = empty_gradient(multiplied_image, needs_image_grad);
  const Tensor text_grad = empty_gradient(multiplied_text, needs_text_grad);
  const Tensor scale_grad = call.empty<double>({}), bias_grad = call.empty<double>({});

  SigmoidRowsBackward args;
  args.image = image;
  args.text = text;
  args.logit_scale = scale.data;
  args.logit_bias = bias.data;
  args.offset = offset;
  args.grad_rows = row_grads.data;
  args.image_grad = image_grad.mutable_data_ptr();
  args.text_grad = text_grad.mutable_data_ptr();
  args.logit_scale_grad = scale_grad.mutable_data_ptr<double>();
  args.logit_bias_grad = bias_grad.mutable_data_ptr<double>();
  args.row_labels = labels.row_data();
  args.col_labels = labels.col_data();
  args.same_are_positives = same_are_positives;
  STD_CUDA_CHECK(launch_sigmoid_rows_backward(args, call.context()));
  return {torch::stable::to(image_grad, image_features.scalar_type()),
          torch::stable::to(text_grad, text_features.scalar_type()), scale_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CUDA, m) {
  m.impl("sigmoid_rows", TORCH_BOX(&sigmoid_rows));
  m.impl("sigmoid_rows_backward", TORCH_BOX(&sigmoid_rows_backward));
}

}  // namespace cyclip::cuda
