// Row-wise arithmetic, a warp per row: O(N d), bound by memory. Sums are in double, in an order that
// depends on the shape and the alignment alone.

#pragma once

#include "scalars.cuh"

namespace cyclip::cuda {

inline constexpr double kEps = 1e-12;  // as in torch.nn.functional.normalize

// The row that this warp works on, one-dimensional blocks of whole warps given.
__device__ inline int64_t warp_index() { return (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarpSize; }

__device__ inline double warp_sum(double value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// max(|x|, eps) on all lanes. Double, because the squares of float and bfloat16 leave the range of float
// long before the norm does. NaN stays NaN.
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

// c with c x = <g, x^> x^, the part of a gradient along x: the loss does not change along x. A norm clamped to
// eps is a constant: no such part. `gradient(k)` is entry k of g.
template <typename T, typename Gradient>
__device__ inline double projection(const T* x, double norm, int64_t d, int lane, const Gradient& gradient) {
  double dot = 0;
  for (int64_t k = lane; k < d; k += kWarpSize) dot += static_cast<double>(widen(x[k])) * gradient(k);
  dot = warp_sum(dot);
  return norm <= kEps ? 0 : dot / (norm * norm);
}

}  // namespace cyclip::cuda
