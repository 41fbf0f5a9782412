// Helpers of a test program: comparisons that print failures, and the exit code.

#pragma once

#include <cmath>
#include <cstdio>
#include <string>

namespace cyclip::test {

inline int failures = 0;

// Relative to the larger of |expected| and 1.
inline void check_close(double actual, double expected, double tolerance, const std::string& what) {
  const double error = std::abs(actual - expected) / std::fmax(1, std::abs(expected));
  if (error <= tolerance) return;  // false for NaN
  std::printf("%s: got %.17g, expected %.17g\n", what.c_str(), actual, expected);
  ++failures;
}

inline int exit_code() {
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace cyclip::test
