#include "bf16.h"

#include <algorithm>
#include <cstring>

namespace cyclip::cpu {

namespace {

uint32_t bits(float x) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof(word));
  return word;
}

Bf16Pair pair(float low, float high) { return bits(low) >> 16 | (bits(high) & 0xffff0000u); }

}  // namespace

void pair_columns(const float* x, int64_t rows, int64_t d, Bf16Pair* pairs) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < d / 2; ++k) *pairs++ = pair(x[2 * k], x[2 * k + 1]);
    if (d % 2) *pairs++ = pair(x[d - 1], 0);
    x += d;
  }
}

void pair_rows(const float* x, int64_t rows, int64_t d, int64_t pitch, Bf16Pair* pairs) {
  for (int64_t i = 0; i < rows; i += 2, pairs += pitch) {
    const float* low = x + i * d;
    const float* high = low + d;
    if (i + 1 < rows) {
      for (int64_t k = 0; k < d; ++k) pairs[k] = pair(low[k], high[k]);
    } else {
      for (int64_t k = 0; k < d; ++k) pairs[k] = pair(low[k], 0);
    }
    std::fill(pairs + d, pairs + pitch, 0);
  }
}

}  // namespace cyclip::cpu
