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

#include <type_traits>
#include <vector>

#include "tiles.h"

namespace cyclip::cpu {

inline constexpr int64_t kPanelBytes = int64_t{16} << 20;

struct WantedGradients {
  bool image, text;
};

// The gradients of the features, [rows, d] each, or without rows unless wanted.
struct PairGradients {
  Tensor image, text;
  ScalarGradients scalars;
};

// The gradient of one tower, of type Out. Its sums are of type T. If the types differ, the sums of all
// rows have memory of their own if they have several parts, and otherwise those of a block at a time.
template <typename Out, typename T>
class GradientRows {
 public:
  GradientRows(int64_t rows, int64_t d, bool has_parts)
      : d_(d),
        tensor_(torch::stable::empty({rows, d}, kInPlace ? kDtype<T> : ScalarType::BFloat16)),
        sums_(has_parts && !kInPlace ? rows * d : 0) {}

  // multiply(sums) writes the rows [begin, end) or adds a part to them. The last part is projected.
  template <typename X, typename Multiply>
  void write(const Features<X>& features, int64_t begin, int64_t end, bool is_last, const Multiply& multiply) {
    Out* out = static_cast<Out*>(tensor_.mutable_data_ptr()) + begin * d_;
    if constexpr (kInPlace) {
      multiply(out);
      if (is_last) features.subtract_projection(begin, end, out, out);
    } else {
      Buffer<T> block(sums_.size() > 0 ? 0 : (end - begin) * d_);
      T* sums = sums_.size() > 0 ? sums_.data() + begin * d_ : block.data();
      multiply(sums);
      if (is_last) features.subtract_projection(begin, end, sums, out);
    }
  }

  const Tensor& tensor() const { return tensor_; }

 private:
  static constexpr bool kInPlace = std::is_same_v<Out, T>;

  int64_t d_;
  Tensor tensor_;
  Buffer<T> sums_;
};

// The gradients as numbers of type Out: that of the sums, or Bf16 for bfloat16 features.
template <typename Out, typename Products, typename T = NumberOf<Products>, typename Fill>
PairGradients pair_gradients_as(const Products& products, int64_t offset, const KeptDots<T>& kept,
                                WantedGradients wanted, const Fill& fill) {
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
  GradientRows<Out, T> image_grad(wanted.image ? n : 0, d, /*has_parts=*/false);
  GradientRows<Out, T> text_grad(wanted.text ? m : 0, d, /*has_parts=*/panel_rows < n);
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
        image_grad.write(image, panel_begin + begin, panel_begin + end, /*is_last=*/true,
                         [&](T* sums) { panel.image_gradient(begin, end, sums); });
      } else {
        const int64_t begin = (task - image_tasks) * text_block, end = std::min(m, begin + text_block);
        text_grad.write(text, begin, end, /*is_last=*/panel_end == n,
                        [&](T* sums) { panel.text_gradient(begin, end, panel_begin, rows, sums); });
      }
    });
  }
  return {image_grad.tensor(), text_grad.tensor(), scalars};
}

// fill(tile, gradient tile, scalars) computes H for a tile and adds to the scalars' gradients. Those
// of the features are returned in `dtype`, that of the operator's inputs.
template <typename Products, typename T = NumberOf<Products>, typename Fill>
PairGradients pair_gradients(const Products& products, int64_t offset, const KeptDots<T>& kept,
                             WantedGradients wanted, ScalarType dtype, const Fill& fill) {
  if constexpr (std::is_same_v<Products, Bf16Products>) {
    if (dtype == ScalarType::BFloat16) return pair_gradients_as<Bf16>(products, offset, kept, wanted, fill);
  }
  const PairGradients exact = pair_gradients_as<T>(products, offset, kept, wanted, fill);
  return {torch::stable::to(exact.image, dtype), torch::stable::to(exact.text, dtype), exact.scalars};
}

}  // namespace cyclip::cpu
