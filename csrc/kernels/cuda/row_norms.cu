#include "host.h"
#include "rows.cuh"

namespace cyclip::cuda {

namespace {

// Norms of 16-bit features are float: a rounded norm would scale all of a row's similarities.
template <typename T, typename Norm>
__global__ void __launch_bounds__(kThreadsPerBlock)
    row_norms_forward_kernel(const T* features, int64_t rows, int64_t d, int64_t pitch, Norm* norms) {
  const int64_t row = warp_index();
  if (row >= rows) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  const double norm = row_norm(features + row * pitch, d, lane);
  if (lane == 0) norms[row] = static_cast<Norm>(norm);
}

template <typename T, typename Norm>
Error launch_rows(const Features& features, void* norms, const Context& context) {
  return launch(row_norms_forward_kernel<T, Norm>, blocks_for(features.rows * kWarpSize), dim3(kThreadsPerBlock),
                0, context.stream, static_cast<const T*>(features.data), features.rows, features.d, features.pitch,
                static_cast<Norm*>(norms));
}

}  // namespace

Error launch_row_norms_forward(const Features& features, void* norms, const Context& context) {
  switch (features.type) {
    case ElementType::kBFloat16:
      return launch_rows<bf16, float>(features, norms, context);
    case ElementType::kFloat16:
      return launch_rows<f16, float>(features, norms, context);
    case ElementType::kFloat64:
      return launch_rows<double, double>(features, norms, context);
    default:
      return launch_rows<float, float>(features, norms, context);
  }
}

}  // namespace cyclip::cuda
