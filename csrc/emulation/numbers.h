// Conversions between formats, equivalent to the instructions of primitives.cuh.

#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace cyclip::emulation {

inline constexpr uint32_t kSign = 0x80000000u, kInfinity = 0x7F800000u, kCanonicalNaN = 0x7FFFFFFFu;

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & ~kSign) > kInfinity) return kCanonicalNaN >> 16;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Without branches, so that loops over it vectorize.
inline float f16_to_float(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7FFFu;
  // Moves the fields into place and corrects the bias of the exponent by a product, which is exact
  // and normalizes subnormal numbers.
  constexpr auto kBias = std::bit_cast<float>(uint32_t{127 + 127 - 15} << 23);
  uint32_t wide = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * kBias);
  wide |= magnitude >= 0x7C00 ? kInfinity : 0;
  wide = magnitude > 0x7C00 ? kCanonicalNaN : wide | (bits & 0x8000u) << 16;
  return std::bit_cast<float>(wide);
}

inline uint16_t float_to_f16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & ~kSign;
  const auto sign = static_cast<uint16_t>((bits & kSign) >> 16);
  if (magnitude > kInfinity) return 0x7FFF;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                       // 2^-14: the result is subnormal, or the least normal
    // The last bit of numbers from 1/2 to 1 has the value 2^-24, like that of the result.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - (uint32_t{127 - 15} << 23)) >> 13));
}

// The instruction is accurate to 22 bits, this function to 24.
inline float exp2_approximately(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0 : y;
}

// The bits of a register that the tensor cores read.
inline float truncate_to_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xFFFFE000u); }

inline float round_to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & ~kSign) > kInfinity) return std::bit_cast<float>(kCanonicalNaN);
  return truncate_to_tf32(bits + 0x1000);
}

}  // namespace cyclip::emulation
