// Element types, and arithmetic on single numbers.

#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "../common.h"
#include "primitives.cuh"

namespace cyclip::cuda {

// 16-bit storage. The vendor's types are not used, because kernels need only these conversions.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <typename To, typename From>
__device__ inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float widen(f16 x) { return f16_bits_to_float(x.bits); }

// Rounds to nearest even. A double is converted to float first: results in 16 bits come from sums
// in float at best.
template <typename To>
__device__ inline To narrow(double x) {
  if constexpr (sizeof(To) == sizeof(double)) {
    return x;
  } else if constexpr (sizeof(To) == sizeof(float)) {
    return static_cast<float>(x);
  } else {
    const float nearest = static_cast<float>(x);
    return To{std::is_same_v<To, bf16> ? float_to_bf16_bits(nearest) : float_to_f16_bits(nearest)};
  }
}

// Stores two neighbouring elements as one word. A struct of two elements is not enough: nvcc copies its
// members one by one.
template <typename T>
__device__ inline void store_pair(T* to, T first, T second) {
  using Half = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  if constexpr (sizeof(T) == 8) {
    to[0] = first;
    to[1] = second;
  } else {
    using Word = std::conditional_t<sizeof(T) == 2, uint32_t, uint64_t>;
    *reinterpret_cast<Word*>(to) = bit_cast<Half>(first) | static_cast<Word>(bit_cast<Half>(second))
                                                               << (8 * sizeof(T));
  }
}

// ---------------------------------------------------------------- exponentials in base 2

// 2^exponent for exponents from -2^29 to 0; zero below the normal numbers.
__device__ inline double power_of_two(int exponent) {
  return exponent < -1022 ? 0 : bit_cast<double>(int64_t{exponent + 1023} << 52);
}

__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// z log2(e) = S (hi + lo): two terms, so that rounding s log2(e) to T costs nothing.
template <typename T>
struct Base2Scale {
  T hi, lo;
};

template <typename T>
__device__ inline Base2Scale<T> base2_scale(double scale) {
  const double value = usable_scale(scale) * kLog2e;
  const T hi = static_cast<T>(value);
  return {hi, static_cast<T>(value - static_cast<double>(hi))};
}

// 2^(x s' - shift), without a separate rounding of x s'.
template <typename T>
__device__ inline T exp2_scaled(T x, Base2Scale<T> scale, T shift) {
  const T exponent = multiply_add(x, scale.lo, multiply_add(x, scale.hi, -shift));
  if constexpr (sizeof(T) == sizeof(float)) return exp2_approximately(exponent);
  return exp2(exponent);
}

// The integer shift nearest to the exponent of 2^(largest z'), or kNoShift if there are no entries.
template <typename T>
__device__ inline int shift_of(T largest) {
  constexpr T limit = static_cast<T>(-kNoShift);
  if (!(largest >= -limit)) return kNoShift;  // -inf, NaN
  return static_cast<int>(rint(largest > limit ? limit : largest));
}

}  // namespace cyclip::cuda
