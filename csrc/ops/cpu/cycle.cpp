// Cycle consistency by both routes (docs/cycle.md), with P = X^ + Y^ and M = X^ - Y^:
//   Gram route, N >= 2d:  A = P'P, B = M'M, K = P'M, each d x d;
//   direct route, N < 2d: W = P M', N x N and no larger than the features of both towers.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <utility>

#include "../checks.h"
#include "gradient_panels.h"

namespace cyclip::cpu {

namespace {

constexpr int64_t kGramRows = 2048;  // rows of P and M in memory at a time

// P and M of the rows [begin, end).
template <typename Out, typename T>
void fill_factors(const Features<T>& image, const Features<T>& text, int64_t begin, int64_t end, Out* plus,
                  Out* minus) {
  normalized_sum_and_difference(image.row(begin), text.row(begin), image.norms.data() + begin,
                                text.norms.data() + begin, end - begin, image.d, plus, minus);
}

template <typename Out>
struct Factors {
  int64_t rows, d;
  Buffer<Out> plus_data, minus_data;

  template <typename T>
  Factors(const Features<T>& image, const Features<T>& text, int64_t begin, int64_t end)
      : rows(end - begin), d(image.d), plus_data(rows * d), minus_data(rows * d) {
    for_each_block(rows, kRowBlock, [&](int64_t i, int64_t j) {
      fill_factors(image, text, begin + i, begin + j, plus_data.data() + i * d, minus_data.data() + i * d);
    });
  }

  Matrix<const Out> plus() const { return {plus_data.data(), rows, d, d}; }
  Matrix<const Out> minus() const { return {minus_data.data(), rows, d, d}; }
};

// From dL/dP and dL/dM of rows [begin, end), which are overwritten, to the gradients of the raw features:
// dL/dX^ = dL/dP + dL/dM and dL/dY^ = dL/dP - dL/dM, then the derivative of normalization.
template <typename T, typename Work>
void finish_gradients(const Features<T>& image, const Features<T>& text, int64_t begin, int64_t end, Work* plus,
                      Work* minus, T* image_grad, T* text_grad) {
  const int64_t d = image.d, rows = end - begin;
  for (int64_t k = 0; k < rows * d; ++k) {
    const Work sum = plus[k] + minus[k], difference = plus[k] - minus[k];
    plus[k] = sum;
    minus[k] = difference;
  }
  normalize_backward(image.row(begin), image.norms.data() + begin, plus, rows, d, image_grad + begin * d);
  normalize_backward(text.row(begin), text.norms.data() + begin, minus, rows, d, text_grad + begin * d);
}

// W = P M' for all pairs.
template <typename T>
void pair_products(const Factors<T>& factors, T* w) {
  const int64_t n = factors.rows;
  for_each_block(n, gradient_block(n), [&](int64_t begin, int64_t end) {
    gemm<T>({w + begin * n, end - begin, n, n}, factors.plus().row_block(begin, end),
            factors.minus().transposed());
  });
}

Buffer<double> symmetric_sum(const Tensor& matrix, int64_t d) {
  const double* from = matrix.const_data_ptr<double>();
  Buffer<double> sum(d * d);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) sum[i * d + j] = from[i * d + j] + from[j * d + i];
  }
  return sum;
}

}  // namespace

// In double whatever the features are: where all images and texts lie in a narrow cone, A and B share
// next to nothing of their one large direction, <A, B> is small beside |A||B|, and an entry rounded to
// float would show. On this route, N >= 2d, the price is small beside the products over all pairs.
std::tuple<Tensor, Tensor, Tensor> cycle_grams(const Tensor& image_features, const Tensor& text_features) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  const int64_t n = image_features.size(0), d = image_features.size(1);
  Tensor grams[3] = {empty<double>({d, d}), empty<double>({d, d}), empty<double>({d, d})};
  const int64_t block = std::min<int64_t>(gradient_block(d), 128), blocks = ceil_div(d, block);
  with_compute_type(image_features, [&](auto type) {
    const Features<decltype(type)> image(image_features), text(text_features);
    for (int64_t begin = 0; begin < n; begin += kGramRows) {
      const Factors<double> factors(image, text, begin, std::min(n, begin + kGramRows));
      const Matrix<const double> p = factors.plus(), m = factors.minus();
      const std::pair<Matrix<const double>, Matrix<const double>> products[3] = {{p, p}, {m, m}, {p, m}};
      for_each_task(3 * blocks, [&](int64_t task) {
        const int64_t which = task / blocks, first = task % blocks * block, last = std::min(d, first + block);
        const int64_t cols = which < 2 ? last : d;  // A and B are symmetric: up to the diagonal is enough
        const Matrix<const double> left = products[which].first.transposed().row_block(first, last);
        const Matrix<const double> right = products[which].second.transposed().row_block(0, cols).transposed();
        gemm<double>({grams[which].mutable_data_ptr<double>() + first * d, last - first, cols, d}, left, right,
                     /*accumulate=*/begin > 0);
      });
    }
  });
  for (int which = 0; which < 2; ++which) {
    double* gram = grams[which].mutable_data_ptr<double>();
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = i + 1; j < d; ++j) gram[i * d + j] = gram[j * d + i];
    }
  }
  return {grams[0], grams[1], grams[2]};
}

// For upstream gradients a, b, k of A, B, K: dL/dP = P (a + a') + M k',  dL/dM = M (b + b') + P k. In double
// for the reason given above: what is left of these products is as small beside them.
std::tuple<Tensor, Tensor> cycle_grams_backward(const Tensor& image_features, const Tensor& text_features,
                                                const Tensor& grad_plus_gram, const Tensor& grad_minus_gram,
                                                const Tensor& grad_cross_gram) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  const int64_t n = image_features.size(0), d = image_features.size(1);
  const Tensor grad_a = square_matrix(grad_plus_gram, d, "grad_plus_gram");
  const Tensor grad_b = square_matrix(grad_minus_gram, d, "grad_minus_gram");
  const Tensor grad_k = square_matrix(grad_cross_gram, d, "grad_cross_gram");
  const Buffer<double> a = symmetric_sum(grad_a, d), b = symmetric_sum(grad_b, d);
  const double* k = grad_k.const_data_ptr<double>();
  const Matrix<const double> a_ = {a.data(), d, d, d}, b_ = {b.data(), d, d, d}, k_ = {k, d, d, d};
  // With equal weights of the two terms <K, K'> drops out.
  const bool has_cross = std::any_of(k, k + d * d, [](double entry) { return entry != 0; });

  return with_compute_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Features<T> image(image_features), text(text_features);
    FeatureGradients<T> grads(image, text, {true, true});
    for_each_block(n, gradient_block(n), [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin;
      Buffer<double> plus(rows * d), minus(rows * d), grad_plus(rows * d), grad_minus(rows * d);
      fill_factors(image, text, begin, end, plus.data(), minus.data());
      const Matrix<const double> p = {plus.data(), rows, d, d}, m = {minus.data(), rows, d, d};
      gemm<double>({grad_plus.data(), rows, d, d}, p, a_);
      gemm<double>({grad_minus.data(), rows, d, d}, m, b_);
      if (has_cross) {
        gemm<double>({grad_plus.data(), rows, d, d}, m, k_.transposed(), /*accumulate=*/true);
        gemm<double>({grad_minus.data(), rows, d, d}, p, k_, /*accumulate=*/true);
      }
      finish_gradients(image, text, begin, end, grad_plus.data(), grad_minus.data(), grads.image_data(),
                       grads.text_data());
    });
    return {torch::stable::to(grads.image, image_features.scalar_type()),
            torch::stable::to(grads.text, text_features.scalar_type())};
  });
}

// W + W' = 2 (X^X^' - Y^Y^') and W' - W = 2 (S - S').
std::tuple<Tensor, Tensor> cycle_direct(const Tensor& image_features, const Tensor& text_features) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  return with_compute_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Features<T> image(image_features), text(text_features);
    const int64_t n = image.rows;
    const Factors<T> factors(image, text, 0, n);
    Buffer<T> w(n * n);
    pair_products(factors, w.data());
    double diagonal = 0, in_modal = 0, cross_modal = 0;
    for (int64_t i = 0; i < n; ++i) {
      diagonal += static_cast<double>(w[i * n + i]) * w[i * n + i];
      for (int64_t j = 0; j < i; ++j) {
        const double forth = w[i * n + j], back = w[j * n + i];
        in_modal += (forth + back) * (forth + back);
        cross_modal += (forth - back) * (forth - back);
      }
    }
    return {scalar_tensor(diagonal + in_modal / 2), scalar_tensor(cross_modal / 2)};
  });
}

// dL/dW = g_in (W + W') + g_cross (W - W'), then dL/dP = dL/dW M and dL/dM = (dL/dW)' P.
std::tuple<Tensor, Tensor> cycle_direct_backward(const Tensor& image_features, const Tensor& text_features,
                                                 const Tensor& grad_in_modal_sum,
                                                 const Tensor& grad_cross_modal_sum) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  const double g_in = scalar_value(grad_in_modal_sum, "grad_in_modal_sum");
  const double g_cross = scalar_value(grad_cross_modal_sum, "grad_cross_modal_sum");
  return with_compute_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Features<T> image(image_features), text(text_features);
    const int64_t n = image.rows, d = image.d;
    FeatureGradients<T> grads(image, text, {true, true});
    const Factors<T> factors(image, text, 0, n);
    Buffer<T> w(n * n);
    pair_products(factors, w.data());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const double forth = w[i * n + j], back = w[j * n + i];
        w[i * n + j] = static_cast<T>(g_in * (forth + back) + g_cross * (forth - back));
        w[j * n + i] = static_cast<T>(g_in * (forth + back) + g_cross * (back - forth));
      }
    }
    const Matrix<const T> grad_w = {w.data(), n, n, n};
    const Matrix<const T> p = factors.plus(), m = factors.minus();
    for_each_block(n, gradient_block(n), [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin;
      Buffer<T> grad_plus(rows * d), grad_minus(rows * d);
      gemm<T>({grad_plus.data(), rows, d, d}, grad_w.row_block(begin, end), m);
      gemm<T>({grad_minus.data(), rows, d, d}, grad_w.transposed().row_block(begin, end), p);
      finish_gradients(image, text, begin, end, grad_plus.data(), grad_minus.data(), grads.image_data(),
                       grads.text_data());
    });
    return {torch::stable::to(grads.image, image_features.scalar_type()),
            torch::stable::to(grads.text, text_features.scalar_type())};
  });
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) {
  m.impl("cycle_grams", TORCH_BOX(&cycle_grams));
  m.impl("cycle_grams_backward", TORCH_BOX(&cycle_grams_backward));
  m.impl("cycle_direct", TORCH_BOX(&cycle_direct));
  m.impl("cycle_direct_backward", TORCH_BOX(&cycle_direct_backward));
}

}  // namespace cyclip::cpu
