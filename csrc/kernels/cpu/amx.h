// Products of bfloat16 on tile registers (AMX): 2 x 2 tiles of sums stay in registers for the whole
// depth.
//
// A tile register holds up to 16 rows of 16 words. The instruction adds the product of a tile of
// the left operand, [rows, depth], and a tile of the right operand, [depth, cols], to a tile of
// sums, [rows, cols]. Blocks at the edges of a matrix use tiles with fewer rows or a smaller depth.
// `Tiles` is the register file: the processor's in isa/amx.cpp, a model of it in
// csrc/tests/amx_twin.h.

#pragma once

#include "product.h"

namespace cyclip::cpu {

inline constexpr int64_t kTileSide = 16;
inline constexpr int64_t kTilePanelCols = 2 * kTileSide;
inline constexpr int64_t kTileBlockRows = 2 * kTileSide;

// The operand of ldtilecfg: the number of rows and the bytes per row of each register.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void shape(int tile, int64_t tile_rows, int64_t words) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(words * int64_t{sizeof(Bf16Pair)});
  }
};
static_assert(sizeof(TileConfig) == 64);

// Registers 0 to 3 hold the sums, upper rows first; 4 and 5 the upper and the lower rows of the left operand; 6
// and 7 the columns of the right operand. Unused registers keep the shape [0, 0].
inline TileConfig tile_config(int64_t rows, int64_t depth) {
  TileConfig config;
  const int64_t upper = rows < kTileSide ? rows : kTileSide, lower = rows - upper;
  for (const int tile : {0, 1}) config.shape(tile, upper, kTileSide);
  config.shape(4, upper, depth);
  if (lower > 0) {
    for (const int tile : {2, 3}) config.shape(tile, lower, kTileSide);
    config.shape(5, lower, depth);
  }
  for (const int tile : {6, 7}) config.shape(tile, depth, kTileSide);
  return config;
}

// Up to kTileBlockRows rows of one panel, from `begin` to `end` of the depth in steps of `step`.
template <bool kHasLowerRows, typename Tiles>
inline void tile_product(Tiles& tiles, const Product<Bf16Pair>& p, const Bf16Pair* left, const Bf16Pair* right,
                         float* out, int64_t begin, int64_t end, int64_t step) {
  constexpr int64_t word = sizeof(Bf16Pair);
  const int64_t right_stride = p.right.depth_stride;
  const int64_t left_bytes = p.left.row_stride * word, right_bytes = right_stride * word;
  const int64_t out_bytes = p.out_pitch * int64_t{sizeof(float)};
  const Bf16Pair* lower_left = left + kTileSide * p.left.row_stride;
  float* lower_out = out + kTileSide * p.out_pitch;
  if (p.accumulate || begin > 0) {
    tiles.template load<0>(out, out_bytes);
    tiles.template load<1>(out + kTileSide, out_bytes);
    if constexpr (kHasLowerRows) {
      tiles.template load<2>(lower_out, out_bytes);
      tiles.template load<3>(lower_out + kTileSide, out_bytes);
    }
  } else {
    tiles.template zero<0>();
    tiles.template zero<1>();
    if constexpr (kHasLowerRows) {
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
  }
  for (int64_t k = begin; k < end; k += step) {
    tiles.template load<4>(left + k, left_bytes);
    tiles.template load<6>(right + k * right_stride, right_bytes);
    tiles.template multiply_add<0, 4, 6>();
    tiles.template load<7>(right + k * right_stride + kTileSide, right_bytes);
    tiles.template multiply_add<1, 4, 7>();
    if constexpr (kHasLowerRows) {
      tiles.template load<5>(lower_left + k, left_bytes);
      tiles.template multiply_add<2, 5, 6>();
      tiles.template multiply_add<3, 5, 7>();
    }
  }
  tiles.template store<0>(out, out_bytes);
  tiles.template store<1>(out + kTileSide, out_bytes);
  if constexpr (kHasLowerRows) {
    tiles.template store<2>(lower_out, out_bytes);
    tiles.template store<3>(lower_out + kTileSide, out_bytes);
  }
}

// The words of a row of the left operand must be contiguous. Loading a configuration clears the
// registers, so the remainder of the depth comes last and is added to the sums in memory.
template <typename Tiles>
void tile_product_block(const Product<Bf16Pair>& p) {
  Tiles tiles;
  const int64_t whole_rows = p.rows / kTileBlockRows * kTileBlockRows,
                whole_depth = p.depth / kTileSide * kTileSide;
  const auto run = [&](int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
    if (row_begin == row_end || begin == end) return;
    const int64_t rows = row_end - row_begin < kTileBlockRows ? row_end - row_begin : kTileBlockRows;
    const int64_t step = end - begin < kTileSide ? end - begin : kTileSide;
    tiles.configure(tile_config(rows, step));
    for (int64_t panel = 0; panel < p.panels; ++panel) {
      const Bf16Pair* right = p.right.data + panel * p.right.panel_stride;
      for (int64_t row = row_begin; row < row_end; row += kTileBlockRows) {
        const Bf16Pair* left = p.left.data + row * p.left.row_stride;
        float* out = p.out + row * p.out_pitch + panel * kTilePanelCols;
        if (rows > kTileSide) {
          tile_product<true>(tiles, p, left, right, out, begin, end, step);
        } else {
          tile_product<false>(tiles, p, left, right, out, begin, end, step);
        }
      }
    }
  };
  run(0, whole_rows, 0, whole_depth);
  run(whole_rows, p.rows, 0, whole_depth);
  run(0, whole_rows, whole_depth, p.depth);
  run(whole_rows, p.rows, whole_depth, p.depth);
}

}  // namespace cyclip::cpu
