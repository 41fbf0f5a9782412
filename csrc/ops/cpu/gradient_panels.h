// The backward schedule of every pairwise loss.
//
// With G = dL/dS and H_ij = G_ij / (|x_i| |y_j|), the gradients of the raw features are
//
//     dL/dx_i = g_i - <g_i, x^_i> x^_i,    g_i = sum_j H_ij y_j        and the same for y.
//
// H is made panel by panel, a panel being as many rows as the workspace holds: tiles of dot products
// become tiles of H in place, then two matrix products consume the panel. No more of H ever exists.
// The projection is taken from g_i itself, not from sums of G_ij S_ij made on the way: what is left of
// g_i along x_i by rounding then goes, too.

#pragma once

#include <vector>

#include "tiles.h"

namespace cyclip::cpu {

inline constexpr int64_t kPanelBytes = int64_t{32} << 20;

struct WantedGradients {
  bool image, text;
};

// Rows of a gradient that one task computes.
inline int64_t gradient_block(int64_t rows) { return rows >= 1024 ? 256 : rows >= 128 ? 64 : 32; }

// fill(tile, scalars) turns a tile of dot products into H and adds to the scalars' gradients. The outputs,
// [rows, d] each, are written whole where wanted.
template <typename T, typename Fill>
ScalarGradients feature_gradients(const Features<T>& image, const Features<T>& text, int64_t offset,
                                  WantedGradients wanted, T* image_grad, T* text_grad, const Fill& fill) {
  const int64_t n = image.rows, m = text.rows, d = image.d;
  const int64_t tile_cols = tile_cols_for(m), across = ceil_div(m, tile_cols);
  const int64_t pitch = across * tile_cols;
  const int64_t affordable = std::max<int64_t>(kPanelBytes / (pitch * int64_t{sizeof(T)}), 1);
  const int64_t tile_rows = std::min(tile_rows_for(n), affordable);
  const int64_t panel_rows = std::min(affordable / tile_rows * tile_rows, round_up(n, tile_rows));

  Buffer<T> panel(panel_rows * pitch);
  std::vector<ScalarGradients> tile_scalars(panel_rows / tile_rows * across);
  ScalarGradients scalars;

  for (int64_t panel_begin = 0; panel_begin < n; panel_begin += panel_rows) {
    const int64_t panel_end = std::min(n, panel_begin + panel_rows), rows = panel_end - panel_begin;
    const int64_t tiles = ceil_div(rows, tile_rows) * across;

    for_each_task(tiles, [&](int64_t task) {
      const int64_t i = task / across, j = task % across;
      const int64_t row = panel_begin + i * tile_rows, col = j * tile_cols;
      T* values = panel.data() + i * tile_rows * pitch + col;
      tile_scalars[task] = {};
      fill(make_tile(image, text, row, std::min(row + tile_rows, panel_end), col, std::min(col + tile_cols, m),
                     offset, values, pitch),
           &tile_scalars[task]);
    });
    for (int64_t task = 0; task < tiles; ++task) {
      scalars.scale += tile_scalars[task].scale;
      scalars.bias += tile_scalars[task].bias;
    }

    const Matrix<const T> h = {panel.data(), rows, m, pitch};
    if (wanted.image) {
      for_each_block(rows, gradient_block(rows), [&](int64_t begin, int64_t end) {
        const int64_t row = panel_begin + begin;
        T* out = image_grad + row * d;
        gemm<T>({out, end - begin, d, d}, h.row_block(begin, end), text.block(0, m));
        subtract_projection(image.row(row), image.norms.data() + row, end - begin, d, out);
      });
    }
    if (wanted.text) {
      for_each_block(m, gradient_block(m), [&](int64_t begin, int64_t end) {
        gemm<T>({text_grad + begin * d, end - begin, d, d}, h.transposed().row_block(begin, end),
                image.block(panel_begin, panel_end), /*accumulate=*/panel_begin > 0);
      });
    }
  }
  if (wanted.text) {
    for_each_block(m, kRowBlock, [&](int64_t begin, int64_t end) {
      subtract_projection(text.row(begin), text.norms.data() + begin, end - begin, d, text_grad + begin * d);
    });
  }
  return scalars;
}

// The outputs of a backward operator: gradients in the compute type, handed back in the inputs' dtype.
template <typename T>
struct FeatureGradients {
  Tensor image, text;

  FeatureGradients(const Features<T>& image_features, const Features<T>& text_features, WantedGradients wanted)
      : image(empty<T>({wanted.image ? image_features.rows : 0, image_features.d})),
        text(empty<T>({wanted.text ? text_features.rows : 0, text_features.d})) {}

  T* image_data() { return image.template mutable_data_ptr<T>(); }
  T* text_data() { return text.template mutable_data_ptr<T>(); }
};

}  // namespace cyclip::cpu
