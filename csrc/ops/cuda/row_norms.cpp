#include <torch/csrc/stable/library.h>

#include "device.h"

namespace cyclip::cuda {

// The norms of float64 features are float64, all others float32.
Tensor row_norms(const Tensor& features) {
  check_features(features, "features");
  const Call call(features);
  const bool is_double = features.scalar_type() == ScalarType::Double;
  const Tensor norms = is_double ? call.empty<double>({features.size(0)}) : call.empty<float>({features.size(0)});
  STD_CUDA_CHECK(launch_row_norms_forward(Tower(features), norms.mutable_data_ptr(), call.context()));
  return norms;
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CUDA, m) { m.impl("row_norms", TORCH_BOX(&row_norms)); }

}  // namespace cyclip::cuda
