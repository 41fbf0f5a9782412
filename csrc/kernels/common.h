// Arithmetic that the CPU and the CUDA kernels share.

#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define CYCLIP_HOST_DEVICE __host__ __device__
#else
#define CYCLIP_HOST_DEVICE
#endif

namespace cyclip {

CYCLIP_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CYCLIP_HOST_DEVICE constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return ceil_div(value, multiple) * multiple;
}

inline constexpr double kLn2 = 0.69314718055994531;
inline constexpr double kLog2e = 1.4426950408889634;

// The exponent of a maximum over no entries: far below any real exponent, and safe to subtract. Its
// negative is the largest exponent that can be represented.
inline constexpr int32_t kNoShift = -(1 << 28);

// Returns `scale`, or NaN if it exceeds 1e6 in magnitude. Such a scale is meaningless as an inverse
// temperature, and its exponents would not fit into integers.
CYCLIP_HOST_DEVICE inline double usable_scale(double scale) {
  return fabs(scale) <= 1e6 ? scale : static_cast<double>(NAN);
}

}  // namespace cyclip
