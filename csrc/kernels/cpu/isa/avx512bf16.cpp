// bfloat16 products with AVX-512: two multiply-adds per lane and a sum in float32.

#if defined(__x86_64__)

#include <immintrin.h>

#include "../bf16.h"
#include "../tile_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif

#define CYCLIP_ISA avx512bf16
#define CYCLIP_VECTOR_BYTES 64

#include "../simd.inl.h"
#include "../product.inl.h"

namespace cyclip::cpu::avx512bf16 {

template <>
struct Arithmetic<Bf16Pair> {
  using Words = __m512i;
  using Sums = __m512;

  static Words splat_word(Bf16Pair word) { return _mm512_set1_epi32(static_cast<int>(word)); }
  static Sums multiply_add(Sums sum, Words a, Words b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

namespace {

// Rounds both to nearest, ties to even; `low` in the lower half.
__m512i round_both(__m512 low, __m512 high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

// Rounds both, and pairs element w of one with element w of the other in word w.
__m512i round_pairs(__m512 low, __m512 high) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), round_both(low, high));
}

}  // namespace

void round_tile(const RoundTile& args);
void round_tile(const RoundTile& args) {
  for (int64_t row = 0; row < args.rows; row += 2) {
    const float* even = args.values + row * args.pitch;
    const bool has_odd = row + 1 < args.rows;
    const float* odd = has_odd ? even + args.pitch : even;
    for (int64_t col = 0; col < args.cols; col += 16) {
      const __m512 low = _mm512_loadu_ps(even + col);
      const __m512 high = has_odd ? _mm512_loadu_ps(odd + col) : _mm512_setzero_ps();
      _mm512_storeu_si512(args.by_column + row / 2 * args.column_pitch + col, round_pairs(low, high));
    }
    const auto round_row = [&](const float* from, Bf16Pair* to) {
      for (int64_t col = 0; col < args.cols; col += 32) {
        _mm512_storeu_si512(to + col / 2,
                            round_both(_mm512_loadu_ps(from + col), _mm512_loadu_ps(from + col + 16)));
      }
    };
    round_row(even, args.by_row + row * args.row_pitch);
    if (has_odd) round_row(odd, args.by_row + (row + 1) * args.row_pitch);
  }
}

void round_rows(const float* x, int64_t rows, int64_t d, int64_t panel_cols, int64_t panel_stride,
                Bf16Pair* pairs);
void round_rows(const float* x, int64_t rows, int64_t d, int64_t panel_cols, int64_t panel_stride,
                Bf16Pair* pairs) {
  for (int64_t row = 0; row < rows; row += 2, pairs += panel_cols) {
    const float* even = x + row * d;
    const bool has_odd = row + 1 < rows;
    for (int64_t col = 0; col < round_up(d, panel_cols); col += 16) {
      const int64_t rest = d - col;
      const auto present = static_cast<__mmask16>(rest >= 16 ? 0xffff : rest > 0 ? (1 << rest) - 1 : 0);
      const float* from = rest > 0 ? even + col : even;
      const __m512 low = _mm512_maskz_loadu_ps(present, from);
      const __m512 high = has_odd ? _mm512_maskz_loadu_ps(present, from + d) : _mm512_setzero_ps();
      const __m512i words = round_pairs(low, high);
      _mm512_storeu_si512(pairs + col / panel_cols * panel_stride + col % panel_cols, words);
    }
  }
}

extern const Bf16Kernels kernels;
const Bf16Kernels kernels = {
    {kPanelCols<Bf16Pair>, product_block<Bf16Pair>, gather_by_depth<Bf16Pair>}, round_tile, round_rows};

}  // namespace cyclip::cpu::avx512bf16

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
