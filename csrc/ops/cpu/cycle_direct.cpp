// The cycle terms by W = P M', which is N x N. Whenever this route is taken, W is at most 1.5 times
// as large as the features of a tower (docs/cycle.md). The forward pass may store it.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../../kernels/cpu/square_tiles.h"
#include "cycle_factors.h"
#include "tiles.h"
#include "triangle.h"

namespace cyclip::cpu {

namespace {

template <typename X>
Factors<ComputeType<X>> whole_factors(const Towers<X>& towers) {
  Factors<ComputeType<X>> factors(towers.rows, towers.d);
  for_each_block(towers.rows, row_block(towers.rows), [&](int64_t begin, int64_t end) {
    factors.fill(towers.block(begin, end), /*directions=*/nullptr, begin);
  });
  return factors;
}

// W = P M' for all pairs, [n, n].
template <typename T>
void write_products(const Factors<T>& factors, T* w) {
  const int64_t n = factors.rows;
  // The work is divided by columns, so that each task packs only its own rows of M.
  for_each_block(n, row_block(n), [&](int64_t begin, int64_t end) {
    gemm<T>({w + begin, n, end - begin, n}, factors.plus(), factors.minus().row_block(begin, end).transposed());
  });
}

// dL/dW for its products with M and of its transpose with P, all three rounded to bfloat16: the same
// products as those of H with the texts and of its transpose with the images.
Bf16Panel rounded_panel(const Matrix<const float>& grad_w, const Factors<float>& factors) {
  constexpr int64_t tile_rows = 64;
  const int64_t n = grad_w.rows, across = ceil_div(n, kTileColumns);
  Bf16Panel panel(PairedRows(factors.plus_data.data(), n, factors.d),
                  PairedRows(factors.minus_data.data(), n, factors.d), round_up(n, tile_rows),
                  round_up(n, kTileColumns) + 32, tile_rows, kTileColumns);
  for_each_task(ceil_div(n, tile_rows) * across, [&](int64_t task) {
    const int64_t row = task / across * tile_rows, col = task % across * kTileColumns;
    const int64_t rows = std::min(tile_rows, n - row), cols = std::min(kTileColumns, n - col);
    panel.write_tile(row, col, rows, cols, [&](float* tile, int64_t pitch) {
      for (int64_t i = 0; i < rows; ++i) {
        // Zeros beyond the last column, because the odd one of a pair is multiplied as well.
        std::fill_n(std::copy_n(grad_w.data + (row + i) * n + col, cols, tile + i * pitch), pitch - cols, 0.0f);
      }
    });
  });
  return panel;
}

}  // namespace

// W + W' = 2 (X^X^' - Y^Y^') and W' - W = 2 (S - S').
std::tuple<Tensor, Tensor, Tensor> cycle_direct(const Tensor& image_features, const Tensor& text_features,
                                                int64_t keep_bytes) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  return with_feature_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    using X = decltype(type);
    using T = ComputeType<X>;
    const Towers<X> towers(image_features, text_features);
    const int64_t n = towers.rows;
    const Tensor w = empty<T>({n, n});
    T* w_data = w.mutable_data_ptr<T>();
    write_products(whole_factors(towers), w_data);
    std::vector<CycleSums> parts(ceil_div(n, kTriangleRows));
    for_each_triangle_block(n, [&](int64_t begin, int64_t end) {
      parts[begin / kTriangleRows] = cycle_pair_sums(w_data, n, begin, end);
    });
    CycleSums sums;
    for (const CycleSums& part : parts) {
      sums.in_modal += part.in_modal;
      sums.cross_modal += part.cross_modal;
    }
    const bool kept = n * n <= keep_bytes / int64_t{sizeof(T)};
    return {scalar_tensor(sums.in_modal), scalar_tensor(sums.cross_modal), kept ? w : empty<T>({0, 0})};
  });
}

// dL/dW = g_in (W + W') + g_cross (W - W'), then dL/dP = dL/dW M and dL/dM = (dL/dW)' P.
std::tuple<Tensor, Tensor> cycle_direct_backward(const Tensor& image_features, const Tensor& text_features,
                                                 const Tensor& products, const Tensor& grad_in_modal_sum,
                                                 const Tensor& grad_cross_modal_sum) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  const CycleSums grads = {scalar_value(grad_in_modal_sum, "grad_in_modal_sum"),
                           scalar_value(grad_cross_modal_sum, "grad_cross_modal_sum")};
  return with_feature_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using X = decltype(type);
    using T = ComputeType<X>;
    const Towers<X> towers(image_features, text_features);
    const int64_t n = towers.rows, d = towers.d;
    const Factors<T> factors = whole_factors(towers);
    const bool kept = products.numel() > 0;
    STD_TORCH_CHECK(
        !kept || (products.scalar_type() == kDtype<T> && products.is_contiguous() && products.numel() == n * n),
        "products must be the output of the forward operator for these features, got shape ", shape_of(products));
    Buffer<T> grad_w_data(n * n);
    if (!kept) write_products(factors, grad_w_data.data());
    const T* w = kept ? products.const_data_ptr<T>() : grad_w_data.data();
    for_each_triangle_block(
        n, [&](int64_t begin, int64_t end) { cycle_pair_gradients(w, n, grads, begin, end, grad_w_data.data()); });
    const Matrix<const T> grad_w = {grad_w_data.data(), n, n, n};
    TowerGradients<X> gradients(towers);
    // multiply(begin, end, plus, minus) writes rows of dL/dP and dL/dM.
    const auto finish_with = [&](const auto& multiply) {
      for_each_block(n, row_block(n), [&](int64_t begin, int64_t end) {
        Buffer<T> plus((end - begin) * d), minus((end - begin) * d);
        multiply(begin, end, plus.data(), minus.data());
        gradients.finish(towers, begin, end, plus.data(), minus.data(), /*deflation=*/nullptr);
      });
    };
    if constexpr (std::is_same_v<X, Bf16>) {
      if (bf16_kernels()) {
        const Bf16Panel panel = rounded_panel(grad_w, factors);
        finish_with([&](int64_t begin, int64_t end, float* plus, float* minus) {
          panel.image_gradient(begin, end, plus);
          panel.text_gradient(begin, end, /*first=*/0, n, minus);
        });
        return {gradients.image, gradients.text};
      }
    }
    finish_with([&](int64_t begin, int64_t end, T* plus, T* minus) {
      const int64_t rows = end - begin;
      gemm<T>({plus, rows, d, d}, grad_w.row_block(begin, end), factors.minus());
      gemm<T>({minus, rows, d, d}, grad_w.transposed().row_block(begin, end), factors.plus());
    });
    return gradients.in_dtype(image_features.scalar_type());
  });
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) {
  m.impl("cycle_direct", TORCH_BOX(&cycle_direct));
  m.impl("cycle_direct_backward", TORCH_BOX(&cycle_direct_backward));
}

}  // namespace cyclip::cpu
