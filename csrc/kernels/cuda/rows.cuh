// Row-wise arithmetic, a warp per row: O(N d), bound by memory. Sums are in double, in an order
// that depends only on the shape and the alignment.

#pragma once

#include "scalars.cuh"

namespace cyclip::cuda {

inline constexpr double kEps = 1e-12;  // as in torch.nn.functional.normalize

// The row that this warp processes. Blocks are one-dimensional and consist of whole warps.
__device__ inline int64_t warp_index() { return (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarpSize; }

__device__ inline double warp_sum(double value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// max(|x|, eps) on all lanes. Computed in double, because the squares of float and bfloat16 exceed
// the range of float long before the norm does. NaN stays NaN.
template <typename T>
__device__ inline double row_norm(const T* x, int64_t d, int lane) {
  constexpr int kItems = 16 / sizeof(T);
  struct alignas(16) Pack {
    T items[kItems];
  };
  const int64_t packs = reinterpret_cast<uintptr_t>(x) % sizeof(Pack) == 0 ? d / kItems : 0;
  double sum = 0;
  for (int64_t i = lane; i < packs; i += kWarpSize) {
    const Pack pack = reinterpret_cast<const Pack*>(x)[i];
    CYCLIP_UNROLL
    for (int item = 0; item < kItems; ++item) {
      const double value = widen(pack.items[item]);
      sum += value * value;
    }
  }
  for (int64_t k = packs * kItems + lane; k < d; k += kWarpSize) {
    const double value = widen(x[k]);
    sum += value * value;
  }
  const double norm = sqrt(warp_sum(sum));
  return norm < kEps ? kEps : norm;
}

// out = factor (g - <g, x^> x^), the gradient without its part along x, because the loss is
// constant along x. A norm that was clamped to eps is a constant, and nothing is subtracted.
// `gradient(k)` is entry k of g. It is called once for each of the first entries, which stay in
// registers, and twice for the entries after them.
template <typename T, typename Gradient>
__device__ inline void store_projected(const T* x, double norm, int64_t d, int lane, double factor,
                                       const Gradient& gradient, T* out) {
  constexpr int kHeld = 24;  // 768 entries of a row
  double held[kHeld], dot = 0;
  CYCLIP_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    const int64_t k = lane + i * kWarpSize;
    held[i] = k < d ? gradient(k) : 0;
    if (k < d) dot += static_cast<double>(widen(x[k])) * held[i];
  }
  for (int64_t k = lane + kHeld * kWarpSize; k < d; k += kWarpSize) {
    dot += static_cast<double>(widen(x[k])) * gradient(k);
  }
  dot = warp_sum(dot);
  const double along = norm <= kEps ? 0 : dot / (norm * norm);
  CYCLIP_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    const int64_t k = lane + i * kWarpSize;
    if (k < d) out[k] = narrow<T>((held[i] - along * widen(x[k])) * factor);
  }
  for (int64_t k = lane + kHeld * kWarpSize; k < d; k += kWarpSize) {
    out[k] = narrow<T>((gradient(k) - along * widen(x[k])) * factor);
  }
}

}  // namespace cyclip::cuda
