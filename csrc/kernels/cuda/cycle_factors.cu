#include "cycle_factors.cuh"

#include "rows.cuh"

namespace cyclip::cuda {

namespace {

// A warp per row.
template <typename T, typename Work>
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_factors_forward_kernel(CycleFeatures features, int64_t begin, CycleFactors<Work> factors) {
  const int64_t local_row = warp_index();
  if (local_row >= factors.rows) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  const int64_t d = factors.d, row = begin + local_row;
  const T* x = static_cast<const T*>(features.image.data) + row * features.image.pitch;
  const T* y = static_cast<const T*>(features.text.data) + row * features.text.pitch;
  const double x_norm = row_norm(x, d, lane), y_norm = row_norm(y, d, lane);
  if (lane == 0) {
    features.image_norms[row] = x_norm;
    features.text_norms[row] = y_norm;
  }
  const Work x_inv_norm = static_cast<Work>(1 / x_norm), y_inv_norm = static_cast<Work>(1 / y_norm);
  Work* plus = factors.plus + local_row * factors.pitch;
  Work* minus = factors.minus + local_row * factors.pitch;
  for (int64_t k = lane; k < factors.pitch; k += kWarpSize) {
    const Work a = k < d ? normalized(x[k], x_inv_norm) : Work{0};
    const Work b = k < d ? normalized(y[k], y_inv_norm) : Work{0};
    plus[k] = a + b;
    minus[k] = a - b;
  }
}

// A warp per row.
template <typename T, typename Work>
__global__ void __launch_bounds__(kThreadsPerBlock, 1)
    cycle_factors_backward_kernel(CycleFeatures features, int64_t begin, CycleFactors<Work> gradients,
                                  T* image_grad, T* text_grad) {
  const int64_t local_row = warp_index();
  if (local_row >= gradients.rows) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  const int64_t d = gradients.d, row = begin + local_row;
  const T* x = static_cast<const T*>(features.image.data) + row * features.image.pitch;
  const T* y = static_cast<const T*>(features.text.data) + row * features.text.pitch;
  const Work* plus = gradients.plus + local_row * gradients.pitch;
  const Work* minus = gradients.minus + local_row * gradients.pitch;
  const auto sum = [&](int64_t k) { return static_cast<double>(plus[k]) + static_cast<double>(minus[k]); };
  const auto difference = [&](int64_t k) { return static_cast<double>(plus[k]) - static_cast<double>(minus[k]); };
  const double x_norm = features.image_norms[row], y_norm = features.text_norms[row];
  store_projected(x, x_norm, d, lane, 1 / x_norm, sum, image_grad + row * d);
  store_projected(y, y_norm, d, lane, 1 / y_norm, difference, text_grad + row * d);
}

}  // namespace

template <typename Work>
Error launch_cycle_factors_forward(const CycleFeatures& features, int64_t begin, const CycleFactors<Work>& factors,
                                   const Context& context) {
  return with_element<Work>(features.image.type, [&](auto element) {
    return launch(cycle_factors_forward_kernel<decltype(element), Work>, blocks_for(factors.rows * kWarpSize),
                  dim3(kThreadsPerBlock), 0, context.stream, features, begin, factors);
  });
}

template <typename Work>
Error launch_cycle_factors_backward(const CycleFeatures& features, int64_t begin,
                                    const CycleFactors<Work>& gradients, void* image_grad, void* text_grad,
                                    const Context& context) {
  return with_element<Work>(features.image.type, [&](auto element) {
    using T = decltype(element);
    return launch(cycle_factors_backward_kernel<T, Work>, blocks_for(gradients.rows * kWarpSize),
                  dim3(kThreadsPerBlock), 0, context.stream, features, begin, gradients,
                  static_cast<T*>(image_grad), static_cast<T*>(text_grad));
  });
}

#define CYCLIP_INSTANTIATE(Work)                                                                               \
  template Error launch_cycle_factors_forward<Work>(const CycleFeatures&, int64_t, const CycleFactors<Work>&,  \
                                                    const Context&);                                           \
  template Error launch_cycle_factors_backward<Work>(const CycleFeatures&, int64_t, const CycleFactors<Work>&, \
                                                     void*, void*, const Context&);
CYCLIP_INSTANTIATE(float)
CYCLIP_INSTANTIATE(double)

}  // namespace cyclip::cuda
