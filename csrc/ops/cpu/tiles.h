// How the similarity matrix of two towers is cut into tiles.
//
// Sizes follow from the shape alone. A different number of threads then runs the same products and
// adds the same partial sums in the same order, and results agree bit for bit.

#pragma once

#include <cmath>

#include "features.h"

namespace cyclip::cpu {

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A tile of T stays in a core's second-level cache, with the features it is made of.
inline int64_t tile_rows_for(int64_t rows) { return rows >= 1024 ? 128 : rows >= 128 ? 64 : 32; }
inline int64_t tile_cols_for(int64_t cols) { return cols >= 2048 ? 512 : cols >= 512 ? 256 : 128; }

// A scale beyond 1e6 has no meaning as an inverse temperature and would leave the range in which exponents
// are kept as integers: NaN.
inline double usable_scale(double scale) { return std::abs(scale) <= 1e6 ? scale : std::nan(""); }

// z' = S s log2(e), with s log2(e) split into two terms of T.
template <typename T>
Base2Scale<T> base2_scale(double scale) {
  const double value = usable_scale(scale) * 1.4426950408889634;
  const T hi = static_cast<T>(value);
  return {hi, static_cast<T>(value - static_cast<double>(hi))};
}

// Dot products of images [row_begin, row_end) with texts [col_begin, col_end), written to `values`.
template <typename T>
Tile<T> make_tile(const Features<T>& image, const Features<T>& text, int64_t row_begin, int64_t row_end,
                  int64_t col_begin, int64_t col_end, int64_t offset, T* values, int64_t pitch) {
  const int64_t rows = row_end - row_begin, cols = col_end - col_begin;
  gemm<T>({values, rows, cols, pitch}, image.block(row_begin, row_end),
          text.block(col_begin, col_end).transposed());
  return {values,
          pitch,
          rows,
          cols,
          row_begin,
          col_begin,
          offset,
          image.inv_norms.data() + row_begin,
          text.inv_norms.data() + col_begin};
}

// The forward schedule. The matrix is cut into at most 8 x 8 regions of whole tiles; a region is one
// task, which owns a partial result per row and per column: at most 8 of each, so memory stays linear.
struct Regions {
  static constexpr int64_t kMost = 8;  // down and across

  int64_t rows, cols;            // of the matrix
  int64_t tile_rows, tile_cols;  //
  int64_t down, across;          // number of regions
  int64_t region_rows, region_cols;

  Regions(int64_t rows, int64_t cols)
      : rows(rows), cols(cols), tile_rows(tile_rows_for(rows)), tile_cols(tile_cols_for(cols)) {
    region_rows = round_up(ceil_div(rows, kMost), tile_rows);
    region_cols = round_up(ceil_div(cols, kMost), tile_cols);
    down = ceil_div(rows, region_rows);
    across = ceil_div(cols, region_cols);
  }

  // Calls visit(region, down index, across index, tile, scratch) for each tile; tiles of one region come
  // in order, from left to right and then down, on one thread. scratch: twice
  // the padded columns of a tile.
  template <typename T, typename Visit>
  void for_each_tile(const Features<T>& image, const Features<T>& text, int64_t offset, const Visit& visit) const {
    for_each_task(down * across, [&](int64_t region) {
      const int64_t i = region / across, j = region % across;
      Buffer<T> values(tile_rows * tile_cols), scratch(2 * tile_cols);
      const int64_t last_row = std::min(rows, (i + 1) * region_rows);
      const int64_t last_col = std::min(cols, (j + 1) * region_cols);
      for (int64_t row = i * region_rows; row < last_row; row += tile_rows) {
        for (int64_t col = j * region_cols; col < last_col; col += tile_cols) {
          const Tile<T> tile = make_tile(image, text, row, std::min(row + tile_rows, last_row), col,
                                         std::min(col + tile_cols, last_col), offset, values.data(), tile_cols);
          visit(i, j, tile, scratch.data());
        }
      }
    });
  }
};

}  // namespace cyclip::cpu
