// Cycle consistency by both routes, Gram matrices and pairs (docs/cycle.md).

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "device.h"

namespace cyclip::cuda {

std::tuple<Tensor, Tensor, Tensor> cycle_grams(const Tensor& image_features, const Tensor& text_features,
                                               bool cross) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  check_same_device({{image_features, "image_features"}, {text_features, "text_features"}});
  const int64_t d = image_features.size(1), cross_size = cross ? d : 0;
  const Call call(image_features);
  const Tower image(image_features), text(text_features);
  const Tensor plus = call.empty<double>({d, d}), minus = call.empty<double>({d, d});
  const Tensor crossed = call.empty<double>({cross_size, cross_size});
  STD_CUDA_CHECK(
      launch_cycle_grams_forward({image, text, plus.mutable_data_ptr<double>(), minus.mutable_data_ptr<double>(),
                                  cross ? crossed.mutable_data_ptr<double>() : nullptr},
                                 call.context()));
  return {plus, minus, crossed};
}

std::tuple<Tensor, Tensor> cycle_grams_backward(const Tensor& image_features, const Tensor& text_features,
                                                const Tensor& grad_plus_gram, const Tensor& grad_minus_gram,
                                                const Tensor& grad_cross_gram) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  check_same_device({{image_features, "image_features"},
                     {text_features, "text_features"},
                     {grad_plus_gram, "grad_plus_gram"},
                     {grad_minus_gram, "grad_minus_gram"},
                     {grad_cross_gram, "grad_cross_gram"}});
  const int64_t d = image_features.size(1);
  const Call call(image_features);
  const Tower image(image_features), text(text_features);
  const Tensor plus = square_matrix(grad_plus_gram, d, "grad_plus_gram");
  const Tensor minus = square_matrix(grad_minus_gram, d, "grad_minus_gram");
  const Tensor cross = cross_gradient(grad_cross_gram, d);
  const Tensor image_grad = empty_gradient(image_features), text_grad = empty_gradient(text_features);
  STD_CUDA_CHECK(
      launch_cycle_grams_backward({image, text, plus.const_data_ptr<double>(), minus.const_data_ptr<double>(),
                                   cross.numel() > 0 ? cross.const_data_ptr<double>() : nullptr,
                                   image_grad.mutable_data_ptr(), text_grad.mutable_data_ptr()},
                                  call.context()));
  return {image_grad, text_grad};
}

std::tuple<Tensor, Tensor, Tensor> cycle_direct(const Tensor& image_features, const Tensor& text_features,
                                                int64_t /*keep_bytes*/) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  check_same_device({{image_features, "image_features"}, {text_features, "text_features"}});
  const Call call(image_features);
  const Tower image(image_features), text(text_features);
  const Tensor in_modal = call.empty<double>({}), cross_modal = call.empty<double>({});
  STD_CUDA_CHECK(launch_cycle_direct_forward(
      {image, text, in_modal.mutable_data_ptr<double>(), cross_modal.mutable_data_ptr<double>()}, call.context()));
  return {in_modal, cross_modal, no_dots(image_features)};
}

std::tuple<Tensor, Tensor> cycle_direct_backward(const Tensor& image_features, const Tensor& text_features,
                                                 const Tensor& /*products*/, const Tensor& grad_in_modal_sum,
                                                 const Tensor& grad_cross_modal_sum) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  check_same_device({{image_features, "image_features"},
                     {text_features, "text_features"},
                     {grad_in_modal_sum, "grad_in_modal_sum"},
                     {grad_cross_modal_sum, "grad_cross_modal_sum"}});
  const Call call(image_features);
  const Tower image(image_features), text(text_features);
  const Scalar in_modal(grad_in_modal_sum, "grad_in_modal_sum");
  const Scalar cross_modal(grad_cross_modal_sum, "grad_cross_modal_sum");
  const Tensor image_grad = empty_gradient(image_features), text_grad = empty_gradient(text_features);
  STD_CUDA_CHECK(launch_cycle_direct_backward(
      {image, text, in_modal.data, cross_modal.data, image_grad.mutable_data_ptr(), text_grad.mutable_data_ptr()},
      call.context()));
  return {image_grad, text_grad};
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CUDA, m) {
  m.impl("cycle_grams", TORCH_BOX(&cycle_grams));
  m.impl("cycle_grams_backward", TORCH_BOX(&cycle_grams_backward));
  m.impl("cycle_direct", TORCH_BOX(&cycle_direct));
  m.impl("cycle_direct_backward", TORCH_BOX(&cycle_direct_backward));
}

}  // namespace cyclip::cuda
