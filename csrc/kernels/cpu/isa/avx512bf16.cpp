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
__m512i round_both(const float* low, const float* high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low)));
}

}  // namespace

void round_tile(const RoundTile& args);
void round_tile(const RoundTile& args) {
  // Word w of the result: element w of the lower half, then element w of the upper one.
  alignas(64) uint16_t order[32];
  for (int w = 0; w < 16; ++w) {
    order[2 * w] = static_cast<uint16_t>(w);
    order[2 * w + 1] = static_cast<uint16_t>(16 + w);
  }
  const __m512i interleave = _mm512_load_si512(order);
  const __m512i low_half = _mm512_set1_epi32(0xffff);
  for (int64_t row = 0; row < args.rows; row += 2) {
    const float* even = args.values + row * args.pitch;
    const bool has_odd = row + 1 < args.rows;
    const float* odd = has_odd ? even + args.pitch : even;
    for (int64_t col = 0; col < args.cols; col += 16) {
      const __m512i words = _mm512_permutexvar_epi16(interleave, round_both(even + col, odd + col));
      _mm512_storeu_si512(args.by_column + row / 2 * args.column_pitch + col,
                          has_odd ? words : _mm512_and_si512(words, low_half));
    }
    for (int64_t col = 0; col < args.cols; col += 32) {
      Bf16Pair* to = args.by_row + row * args.row_pitch + col / 2;
      _mm512_storeu_si512(to, round_both(even + col, even + col + 16));
      if (has_odd) _mm512_storeu_si512(to + args.row_pitch, round_both(odd + col, odd + col + 16));
    }
  }
}

extern const Bf16Kernels kernels;
const Bf16Kernels kernels = {{kPanelCols<Bf16Pair>, product_block<Bf16Pair>, gather_by_depth<Bf16Pair>},
                             round_tile};

}  // namespace cyclip::cpu::avx512bf16

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
