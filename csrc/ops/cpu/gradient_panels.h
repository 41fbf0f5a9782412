// The backward schedule of every pairwise loss.
//
// With G = dL/dS and H_ij = G_ij / (|x_i| |y_j|), the gradients of the raw features are
//
//     dL/dx_i = sum_j H_ij y_j - (sum_j G_ij S_ij) x_i / |x_i|^2        and the same for y.
//
// H is made panel by panel, a panel being as many rows as the workspace holds: tiles of dot products
// become tiles of H in place, then two matrix products consume the panel. No more of H ever exists.

#pragma once

#include "tiles.h"

namespace cyclip::cpu {

inline constexpr int64_t kPanelBytes = int64_t{32} << 20;

struct WantedGradients {
  bool image, text;
};

struct ScalarGradients {
  double scale = 0, bias = 0;
};

// Rows of a gradient that one task computes.
inline int64_t gradient_block(int64_t rows) { return rows >= 1024 ? 256 : rows >= 128 ? 64 : 32; }

// fill(tile, sums, scratch) turns a tile of dot products into H and adds to the sums. The outputs,
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
  const int64_t most_down = panel_rows / tile_rows;

  Buffer<T> panel(panel_rows * pitch);
  // Sums of each tile; added up in a fixed order once the panel is full.
  Buffer<double> row_partial(across * panel_rows), col_partial(most_down * pitch);
  Buffer<double> scale_partial(most_down * across), bias_partial(most_down * across);
  Buffer<double> row_dot(panel_rows), col_dot(m, 0);
  ScalarGradients scalars;

  for (int64_t panel_begin = 0; panel_begin < n; panel_begin += panel_rows) {
    const int64_t panel_end = std::min(n, panel_begin + panel_rows), rows = panel_end - panel_begin;
    const int64_t down = ceil_div(rows, tile_rows);

    for_each_task(down * across, [&](int64_t task) {
      const int64_t i = task / across, j = task % across;
      const int64_t row = panel_begin + i * tile_rows, col = j * tile_cols;
      const GradientSums sums = {row_partial.data() + j * panel_rows + i * tile_rows,
                                 col_partial.data() + i * pitch + col, scale_partial.data() + task,
                                 bias_partial.data() + task};
      std::fill_n(sums.row_dot, tile_rows, 0.0);
      std::fill_n(sums.col_dot, tile_cols, 0.0);
      *sums.scale = *sums.bias = 0;
      Buffer<T> scratch(tile_cols);
      T* values = panel.data() + i * tile_rows * pitch + col;
      fill(make_tile(image, text, row, std::min(row + tile_rows, panel_end), col, std::min(col + tile_cols, m),
                     offset, values, pitch),
           sums, scratch.data());
    });

    std::fill_n(row_dot.data(), rows, 0.0);
    for (int64_t j = 0; j < across; ++j) {
      for (int64_t i = 0; i < rows; ++i) row_dot[i] += row_partial[j * panel_rows + i];
    }
    for (int64_t i = 0; i < down; ++i) {
      for (int64_t j = 0; j < m; ++j) col_dot[j] += col_partial[i * pitch + j];
    }
    for (int64_t task = 0; task < down * across; ++task) {
      scalars.scale += scale_partial[task];
      scalars.bias += bias_partial[task];
    }

    const Matrix<const T> h = {panel.data(), rows, m, pitch};
    if (wanted.image) {
      for_each_block(rows, gradient_block(rows), [&](int64_t begin, int64_t end) {
        const int64_t row = panel_begin + begin;
        T* out = image_grad + row * d;
        gemm<T>({out, end - begin, d, d}, h.row_block(begin, end), text.block(0, m));
        subtract_projection(image.row(row), image.inv_norms.data() + row, row_dot.data() + begin, end - begin, d,
                            out);
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
      subtract_projection(text.row(begin), text.inv_norms.data() + begin, col_dot.data() + begin, end - begin, d,
                          text_grad + begin * d);
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
