// The cycle terms by W = P M', which is N x N. Whenever this route is taken, W is at most 1.5 times
// as large as the features of a tower (docs/cycle.md).

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../../kernels/cpu/square_tiles.h"
#include "cycle_factors.h"
#include "triangle.h"

namespace cyclip::cpu {

namespace {

template <typename T>
Factors<T> whole_factors(const Towers<T>& towers) {
  Factors<T> factors(towers.rows, towers.d);
  for_each_block(towers.rows, row_block(towers.rows), [&](int64_t begin, int64_t end) {
    factors.fill(towers.block(begin, end), /*directions=*/nullptr, begin);
  });
  return factors;
}

// W = P M' for all pairs.
template <typename T>
Buffer<T> pair_products(const Factors<T>& factors) {
  const int64_t n = factors.rows;
  Buffer<T> w(n * n);
  // The work is divided by columns, so that each task packs only its own rows of M.
  for_each_block(n, row_block(n), [&](int64_t begin, int64_t end) {
    gemm<T>({w.data() + begin, n, end - begin, n}, factors.plus(),
            factors.minus().row_block(begin, end).transposed());
  });
  return w;
}

}  // namespace

// W + W' = 2 (X^X^' - Y^Y^') and W' - W = 2 (S - S').
std::tuple<Tensor, Tensor> cycle_direct(const Tensor& image_features, const Tensor& text_features) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  return with_compute_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Towers<T> towers(image_features, text_features);
    const int64_t n = towers.rows;
    const Buffer<T> w = pair_products(whole_factors(towers));
    std::vector<CycleSums> parts(ceil_div(n, kTriangleRows));
    for_each_triangle_block(n, [&](int64_t begin, int64_t end) {
      parts[begin / kTriangleRows] = cycle_pair_sums(w.data(), n, begin, end);
    });
    CycleSums sums;
    for (const CycleSums& part : parts) {
      sums.in_modal += part.in_modal;
      sums.cross_modal += part.cross_modal;
    }
    return {scalar_tensor(sums.in_modal), scalar_tensor(sums.cross_modal)};
  });
}

// dL/dW = g_in (W + W') + g_cross (W - W'), then dL/dP = dL/dW M and dL/dM = (dL/dW)' P.
std::tuple<Tensor, Tensor> cycle_direct_backward(const Tensor& image_features, const Tensor& text_features,
                                                 const Tensor& grad_in_modal_sum,
                                                 const Tensor& grad_cross_modal_sum) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  const CycleSums grads = {scalar_value(grad_in_modal_sum, "grad_in_modal_sum"),
                           scalar_value(grad_cross_modal_sum, "grad_cross_modal_sum")};
  return with_compute_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Towers<T> towers(image_features, text_features);
    const int64_t n = towers.rows, d = towers.d;
    const Factors<T> factors = whole_factors(towers);
    Buffer<T> w = pair_products(factors);
    for_each_triangle_block(
        n, [&](int64_t begin, int64_t end) { cycle_pair_gradients(w.data(), n, grads, begin, end); });
    const Matrix<const T> grad_w = {w.data(), n, n, n};
    TowerGradients<T> gradients(towers);
    for_each_block(n, row_block(n), [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin;
      Buffer<T> plus(rows * d), minus(rows * d);
      gemm<T>({plus.data(), rows, d, d}, grad_w.row_block(begin, end), factors.minus());
      gemm<T>({minus.data(), rows, d, d}, grad_w.transposed().row_block(begin, end), factors.plus());
      gradients.finish(towers, begin, end, plus.data(), minus.data(), /*deflation=*/nullptr);
    });
    return gradients.in_dtype(image_features.scalar_type());
  });
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) {
  m.impl("cycle_direct", TORCH_BOX(&cycle_direct));
  m.impl("cycle_direct_backward", TORCH_BOX(&cycle_direct_backward));
}

}  // namespace cyclip::cpu
