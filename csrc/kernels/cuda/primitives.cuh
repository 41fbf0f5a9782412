// Device primitives that are not plain C++. Kernels use these and no intrinsics of their own, so that
// this header is all that a second implementation has to replace.

#pragma once

namespace cyclip::cuda {

inline constexpr int kWarpSize = 32;

// The value of the lane whose index differs in the bits of `mask`. The whole warp takes part.
template <typename T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

}  // namespace cyclip::cuda
