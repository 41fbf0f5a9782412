#include "../../kernels/cuda/row_norms.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"

namespace cyclip::cuda {

namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <typename T>
void launch(const Tensor& features, const Tensor& norms) {
  STD_CUDA_CHECK(launch_row_norms_forward(
      static_cast<const T*>(features.const_data_ptr()), features.size(0), features.size(1), features.stride(0),
      static_cast<Norm<T>*>(norms.mutable_data_ptr()), current_stream(features)));
}

// float32 norms, or float64 ones of float64 features.
Tensor row_norms(const Tensor& any_features) {
  check_features(any_features, "features");
  const torch::stable::accelerator::DeviceGuard guard(any_features.get_device_index());
  const bool rows_are_dense = any_features.stride(1) == 1;
  const Tensor features = rows_are_dense ? any_features : torch::stable::contiguous(any_features);

  const ScalarType dtype = features.scalar_type();
  const ScalarType norm_dtype = dtype == ScalarType::Double ? dtype : ScalarType::Float;
  const Tensor norms = torch::stable::new_empty(features, {features.size(0)}, norm_dtype);
  switch (dtype) {
    case ScalarType::Double:
      launch<double>(features, norms);
      break;
    case ScalarType::Half:
      launch<__half>(features, norms);
      break;
    case ScalarType::BFloat16:
      launch<__nv_bfloat16>(features, norms);
      break;
    default:  // check_features let nothing else through
      launch<float>(features, norms);
  }
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CUDA, m) { m.impl("row_norms", TORCH_BOX(&row_norms)); }

}  // namespace cyclip::cuda
