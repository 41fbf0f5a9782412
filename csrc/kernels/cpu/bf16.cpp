#include "bf16.h"

#include <algorithm>
#include <cstring>

namespace cyclip::cpu {

namespace {

Bf16Pair pair(Bf16 low, Bf16 high) { return static_cast<Bf16Pair>(low) | static_cast<Bf16Pair>(high) << 16; }

}  // namespace

void pair_columns(const Bf16* x, int64_t rows, int64_t d, Bf16Pair* pairs) {
  for (int64_t i = 0; i < rows; ++i, x += d) {
    for (int64_t k = 0; k < d / 2; ++k) *pairs++ = pair(x[2 * k], x[2 * k + 1]);
    if (d % 2) *pairs++ = pair(x[d - 1], Bf16{});
  }
}

void pair_rows(const Bf16* x, int64_t rows, int64_t d, int64_t panel_cols, int64_t panel_stride, Bf16Pair* pairs) {
  for (int64_t i = 0; i < rows; i += 2, pairs += panel_cols) {
    Bf16Pair* panel = pairs;
    for (int64_t begin = 0; begin < d; begin += panel_cols, panel += panel_stride) {
      const Bf16* low = x + i * d + begin;
      const int64_t cols = std::min(panel_cols, d - begin);
      if (i + 1 < rows) {
        for (int64_t k = 0; k < cols; ++k) panel[k] = pair(low[k], low[d + k]);
      } else {
        for (int64_t k = 0; k < cols; ++k) panel[k] = pair(low[k], Bf16{});
      }
      std::fill(panel + cols, panel + panel_cols, 0);
    }
  }
}

}  // namespace cyclip::cpu
