// bfloat16 products on the tile registers of AMX.

#include "../isa.h"

#if defined(CYCLIP_HAS_AMX)

#include <immintrin.h>

#include "../amx.h"
#include "../bf16.h"

#if defined(CYCLIP_AMX_TWIN)
#include "tests/amx_twin.h"
#endif

namespace cyclip::cpu {

namespace avx512bf16 {
void round_tile(const RoundTile& args);
void round_rows(const float* x, int64_t rows, int64_t d, int64_t panel_cols, int64_t panel_stride,
                Bf16Pair* pairs);
}  // namespace avx512bf16

namespace amx {

namespace {

#if defined(CYCLIP_AMX_TWIN)
using Tiles = test::AmxTwin;
#else
// The registers of this thread. The caller's configuration is restored, but not the contents of the
// registers. Written in assembly, because the compilers' intrinsics do not accept template
// arguments.
class Tiles {
 public:
  Tiles() { asm volatile("sttilecfg %0" : "=m"(callers_)); }
  ~Tiles() {
    asm volatile("tilerelease" ::: "memory");
    if (callers_.palette != 0) configure(callers_);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
  template <int kTile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kSums, int kLeft, int kRight>
  void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
  }

 private:
  TileConfig callers_;
};
#endif

}  // namespace

// Functions with another target are not inlined, so this target begins after the register
// functions.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif

namespace {

// Transposes 16 x 16 words: for each bit of the indices, rows and columns exchange that bit.
void transpose(const Bf16Pair* from, int64_t from_pitch, Bf16Pair* to, int64_t to_pitch) {
  __m512i rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(from + i * from_pitch);
#pragma GCC unroll 4
  for (int bit = 8; bit > 0; bit /= 2) {
    alignas(64) int upper[16], lower[16];  // indices from 16 on refer to the second operand
    for (int j = 0; j < 16; ++j) {
      upper[j] = j & bit ? 16 + j - bit : j;
      lower[j] = j & bit ? 16 + j : j + bit;
    }
    const __m512i to_upper = _mm512_load_si512(upper), to_lower = _mm512_load_si512(lower);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & bit) continue;
      const __m512i a = rows[i], b = rows[i + bit];
      rows[i] = _mm512_permutex2var_epi32(a, to_upper, b);
      rows[i + bit] = _mm512_permutex2var_epi32(a, to_lower, b);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_pitch, rows[i]);
}

// Makes the words of each row contiguous.
LeftOperand<Bf16Pair> gather(const LeftOperand<Bf16Pair>& left, int64_t rows, int64_t depth, Bf16Pair* workspace) {
  constexpr int64_t pitch = kDepthBlock / sizeof(Bf16Pair) + 16;
  static_assert(kRowBlockOfProduct * pitch <= kProductWorkspace<Bf16Pair>);
  const int64_t whole_rows = left.row_stride == 1 ? rows / 16 * 16 : 0, whole_depth = depth / 16 * 16;
  for (int64_t k = 0; k < whole_depth; k += 16) {
    for (int64_t row = 0; row < whole_rows; row += 16) {
      transpose(left.data + k * left.depth_stride + row, left.depth_stride, workspace + row * pitch + k, pitch);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = row < whole_rows ? whole_depth : 0; k < depth; ++k) {
      workspace[row * pitch + k] = left.data[row * left.row_stride + k * left.depth_stride];
    }
  }
  return {workspace, pitch, 1};
}

}  // namespace

#if defined(__clang__)
#pragma clang attribute pop
#endif

extern const Bf16Kernels kernels;
const Bf16Kernels kernels = {
    {kTilePanelCols, tile_product_block<Tiles>, gather}, avx512bf16::round_tile, avx512bf16::round_rows};

}  // namespace amx

}  // namespace cyclip::cpu

#endif
