// The backward schedule of every pairwise loss.
//
// With G = dL/dS and H_ij = G_ij / (|x_i| |y_j|), the gradients of the raw features are
//
//     dL/dx_i = g_i - <g_i, x^_i> x^_i,    g_i = sum_j H_ij y_j        and the same for y.
//
// H is computed panel by panel. A panel has as many rows as the workspace holds: tiles of dot
// products, stored by the forward pass or recomputed, become tiles of H, and two matrix products
// consume the panel. Only one panel of H exists at a time. The projection is computed from g_i
// itself, not from sums of G_ij S_ij, which also removes the rounding errors of g_i along x_i.

#pragma once

#include <vector>

#include "tiles.h"

namespace cyclip::cpu {

inline constexpr int64_t kPanelBytes = int64_t{16} << 20;

struct WantedGradients {
  bool image, text;
};

// fill(tile, gradient tile, scalars) computes H for a tile and adds to the scalars' gradients. The
// outputs, [rows, d] each, are overwritten if they are required.
template <typename Products, typename T = NumberOf<Products>, typename Fill>
ScalarGradients feature_gradients(const Products& products, int64_t offset, const KeptDots<T>& kept,
                                  WantedGradients wanted, T* image_grad, T* text_grad, const Fill& fill) {
  const auto &image = products.image, &text = products.text;
  const int64_t n = image.rows, m = text.rows, d = image.d;
  const int64_t tile_cols = tile_cols_for(m), across = ceil_div(m, tile_cols);
  const int64_t width = across * tile_cols;
  const int64_t pitch = width + 32;  // rows a power of two apart would evict each other from the cache
  const int64_t affordable = std::max<int64_t>(kPanelBytes / (width * int64_t{sizeof(T)}), 2);
  int64_t tile_rows = tile_rows_for(n);
  while (tile_rows > affordable) tile_rows /= 2;  // still even, and within one tile of the forward pass
  const int64_t panel_rows = std::min(affordable / tile_rows * tile_rows, round_up(n, tile_rows));

  typename Products::Panel panel(products, panel_rows, pitch, tile_rows, tile_cols);
  std::vector<ScalarGradients> tile_scalars(panel_rows / tile_rows * across);
  ScalarGradients scalars;

  for (int64_t panel_begin = 0; panel_begin < n; panel_begin += panel_rows) {
    const int64_t panel_end = std::min(n, panel_begin + panel_rows), rows = panel_end - panel_begin;
    const int64_t tiles = ceil_div(rows, tile_rows) * across;

    for_each_task(tiles, [&](int64_t task) {
      const int64_t row = task / across * tile_rows, col = task % across * tile_cols;
      const TileRange range = {panel_begin + row, std::min(panel_begin + row + tile_rows, panel_end), col,
                               std::min(col + tile_cols, m)};
      tile_scalars[task] = {};
      panel.write_tile(row, col, range.row_end - range.row_begin, range.col_end - range.col_begin,
                       [&](T* values, int64_t values_pitch) {
                         const T* dots = values;
                         int64_t dots_pitch = values_pitch;
                         if (kept.is_empty()) {
                           products.dots(range, values, values_pitch);
                         } else {
                           dots = kept.at(range);
                           dots_pitch = kept.pitch(range);
                         }
                         fill(make_tile(products, range, offset, dots, dots_pitch),
                              GradientTile<T>{values, values_pitch}, &tile_scalars[task]);
                       });
    });
    for (int64_t task = 0; task < tiles; ++task) {
      scalars.scale += tile_scalars[task].scale;
      scalars.bias += tile_scalars[task].bias;
    }

    // The blocks of both towers form one list, so that no thread waits at the end of the shorter one.
    const int64_t image_block = row_block(rows), text_block = row_block(m);
    const int64_t image_tasks = wanted.image ? ceil_div(rows, image_block) : 0;
    const int64_t text_tasks = wanted.text ? ceil_div(m, text_block) : 0;
    for_each_task(image_tasks + text_tasks, [&](int64_t task) {
      if (task < image_tasks) {
        const int64_t begin = task * image_block, end = std::min(rows, begin + image_block);
        const int64_t row = panel_begin + begin;
        T* out = image_grad + row * d;
        panel.image_gradient(begin, end, out);
        image.subtract_projection(row, row + end - begin, out);
      } else {
        const int64_t begin = (task - image_tasks) * text_block, end = std::min(m, begin + text_block);
        T* out = text_grad + begin * d;
        panel.text_gradient(begin, end, panel_begin, rows, out);
        if (panel_end == n) text.subtract_projection(begin, end, out);
      }
    });
  }
  return scalars;
}

// The outputs of a backward operator: gradients in the compute type, returned in the dtype of the inputs.
template <typename T>
struct FeatureGradients {
  Tensor image, text;

  template <typename X>
  FeatureGradients(const Features<X>& image_features, const Features<X>& text_features, WantedGradients wanted)
      : image(empty<T>({wanted.image ? image_features.rows : 0, image_features.d})),
        text(empty<T>({wanted.text ? text_features.rows : 0, text_features.d})) {}

  T* image_data() { return image.template mutable_data_ptr<T>(); }
  T* text_data() { return text.template mutable_data_ptr<T>(); }
};

}  // namespace cyclip::cpu
