// The conversions between floating formats: all 16-bit numbers, and floats around all of their
// midpoints, compared with rounding to the nearest neighbours in double.

#include <bit>
#include <cmath>
#include <random>

#include "emulation_check.h"

namespace cyclip::test {

namespace {

// A binary format with a sign.
struct Format {
  const char* name;
  int exponent_bits, mantissa_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }

  // The value of a magnitude's bits. The value of infinity is the number that would follow the
  // largest one.
  double value(uint32_t bits) const {
    const uint32_t exponent = bits >> mantissa_bits, mantissa = bits & ((1u << mantissa_bits) - 1);
    if (exponent == 0) return std::ldexp(mantissa, 1 - bias() - mantissa_bits);
    return std::ldexp((1u << mantissa_bits) + mantissa, static_cast<int>(exponent) - bias() - mantissa_bits);
  }

  // The nearest magnitude, by bisection over all of them.
  uint32_t nearest(double magnitude, bool ties_to_even) const {
    if (magnitude >= value(infinity())) return infinity();
    uint32_t below = 0, above = infinity();
    while (above - below > 1) {
      const uint32_t middle = (below + above) / 2;
      (value(middle) <= magnitude ? below : above) = middle;
    }
    const double down = magnitude - value(below), up = value(above) - magnitude;  // exact
    if (down != up) return down < up ? below : above;
    return ties_to_even && below % 2 == 0 ? below : above;
  }
};

constexpr Format kBf16{"bf16", 8, 7}, kF16{"f16", 5, 10}, kTf32{"tf32", 8, 10};

uint32_t tf32_bits(float x) { return std::bit_cast<uint32_t>(cuda::round_to_tf32(x)) >> 13; }

template <typename Convert>
void check_rounding(const Format& format, bool ties_to_even, const Convert& convert, float x) {
  const uint32_t sign_bit = 1u << (format.exponent_bits + format.mantissa_bits);
  const uint32_t expected =
      format.nearest(std::fabs(static_cast<double>(x)), ties_to_even) | (std::signbit(x) ? sign_bit : 0);
  const uint32_t actual = convert(x);
  check(actual == expected, std::string(format.name) + " of " + std::to_string(x) + ": got bits " +
                                std::to_string(actual) + ", expected " + std::to_string(expected));
}

template <typename Convert>
void test_rounding(const Format& format, bool ties_to_even, const Convert& convert) {
  // Each number, the tie above it, and the floats next to both.
  const uint32_t step = format.mantissa_bits == 10 && format.exponent_bits == 8 ? 7 : 1;
  for (uint32_t bits = 0; bits < format.infinity(); bits += step) {
    const double value = format.value(bits), middle = (value + format.value(bits + 1)) / 2;
    for (const double center : {value, middle}) {
      const auto x = static_cast<float>(center);
      for (const float y : {x, std::nextafter(x, 0.0f), std::nextafter(x, INFINITY)}) {
        if (std::isinf(y)) continue;
        check_rounding(format, ties_to_even, convert, y);
        check_rounding(format, ties_to_even, convert, -y);
      }
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isfinite(x)) check_rounding(format, ties_to_even, convert, x);
  }
  for (const float x : {INFINITY, -INFINITY}) check_rounding(format, ties_to_even, convert, x);
  const uint32_t all_ones = format.infinity() | ((1u << format.mantissa_bits) - 1);
  for (const uint32_t bits : {0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0xFFFFFFFFu}) {
    check(convert(std::bit_cast<float>(bits)) == all_ones, std::string(format.name) + " of NaN is canonical");
  }
}

void test_widening() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const uint32_t magnitude = bits & 0x7FFF;
    const float sign = (bits & 0x8000) != 0 ? -1 : 1;
    const float actual = cuda::f16_bits_to_float(half);
    const std::string what = "float of f16 bits " + std::to_string(bits);
    if (magnitude > kF16.infinity()) {
      check(std::isnan(actual), what);
      continue;
    }
    const auto expected =
        sign * (magnitude == kF16.infinity() ? INFINITY : static_cast<float>(kF16.value(magnitude)));
    check(std::bit_cast<uint32_t>(actual) == std::bit_cast<uint32_t>(expected), what);
    check(cuda::float_to_f16_bits(actual) == bits, what + " and back");
    if (magnitude <= kBf16.infinity()) {
      const auto wide = emulation::bf16_to_float(half);
      check(std::isinf(wide) || std::fabs(static_cast<double>(wide)) == kBf16.value(magnitude),
            "float of bf16 bits " + std::to_string(bits));
      check(cuda::float_to_bf16_bits(wide) == bits, "bf16 " + std::to_string(bits) + " and back");
    }
  }
}

}  // namespace

}  // namespace cyclip::test

int main() {
  using namespace cyclip::test;
  if (cyclip::emulation::kThreadSanitizer) return 0;  // has nothing to find in one thread
  test_widening();
  test_rounding(kBf16, true, cyclip::cuda::float_to_bf16_bits);
  test_rounding(kF16, true, cyclip::cuda::float_to_f16_bits);
  test_rounding(kTf32, false, tf32_bits);
  return exit_code();
}
