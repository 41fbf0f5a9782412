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

// From dL/dP and dL/dM of rows [begin, end) to the gradients of the raw features: dL/dX^ = dL/dP + dL/dM and
// dL/dY^ = dL/dP - dL/dM, then the derivative of normalization, (g - <g, x^> x^) / |x|.
template <typename T>
void finish_gradients(const Features<T>& image, const Features<T>& text, int64_t begin, int64_t end,
                      const T* grad_plus, const T* grad_minus, T* image_grad, T* text_grad) {
  const int64_t d = image.d, rows = end - begin;
  T* image_out = image_grad + begin * d;
  T* text_out = text_grad + begin * d;
  for (int64_t i = 0; i < rows; ++i) {
    const T image_inv_norm = image.inv_norms[begin + i], text_inv_norm = text.inv_norms[begin + i];
    for (int64_t k = i * d; k < (i + 1) * d; ++k) {
      image_out[k] = (grad_plus[k] + grad_minus[k]) * image_inv_norm;
      text_out[k] = (grad_plus[k] - grad_minus[k]) * text_inv_norm;
    }
  }
  subtract_projection(image.row(begin), image.inv_norms.data() + begin, rows, d, image_out);
  subtract_projection(text.row(begin), text.inv_norms.data() + begin, rows, d, text_out);
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

void check_square(const Tensor& tensor, int64_t d, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == d && tensor.size(1) == d, name, " must be [", d, ", ", d,
                  "], got shape ", shape_of(tensor));
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

// For upstream gradients a, b, k of A, B, K: dL/dP = P (a + a') + M k',  dL/dM = M (b + b') + P k.
std::tuple<Tensor, Tensor> cycle_grams_backward(const Tensor& image_features, const Tensor& text_features,
                                                const Tensor& grad_plus_gram, const Tensor& grad_minus_gram,
                                                const Tensor& grad_cross_gram) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  const int64_t n = image_features.size(0), d = image_features.size(1);
  check_square(grad_plus_gram, d, "grad_plus_gram");
  check_square(grad_minus_gram, d, "grad_minus_gram");
  check_square(grad_cross_gram, d, "grad_cross_gram");
  return with_compute_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Features<T> image(image_features), text(text_features);
    FeatureGradients<T> grads(image, text, {true, true});
    const auto symmetric_sum = [&](const Tensor& grad) {
      const Tensor prepared = torch::stable::contiguous(torch::stable::to(grad, kDtype<T>));
      const T* from = prepared.const_data_ptr<T>();
      Buffer<T> sum(d * d);
      for (int64_t i = 0; i < d; ++i) {
        for (int64_t j = 0; j < d; ++j) sum[i * d + j] = from[i * d + j] + from[j * d + i];
      }
      return sum;
    };
    const Buffer<T> a = symmetric_sum(grad_plus_gram), b = symmetric_sum(grad_minus_gram);
    const Tensor cross = torch::stable::contiguous(torch::stable::to(grad_cross_gram, kDtype<T>));
    const Matrix<const T> a_ = {a.data(), d, d, d}, b_ = {b.data(), d, d, d};
    const Matrix<const T> k_ = {cross.const_data_ptr<T>(), d, d, d};
    for_each_block(n, gradient_block(n), [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin;
      Buffer<T> plus(rows * d), minus(rows * d), grad_plus(rows * d), grad_minus(rows * d);
      fill_factors(image, text, begin, end, plus.data(), minus.data());
      const Matrix<const T> p = {plus.data(), rows, d, d}, m = {minus.data(), rows, d, d};
      gemm<T>({grad_plus.data(), rows, d, d}, p, a_);
      gemm<T>({grad_plus.data(), rows, d, d}, m, k_.transposed(), /*accumulate=*/true);
      gemm<T>({grad_minus.data(), rows, d, d}, m, b_);
      gemm<T>({grad_minus.data(), rows, d, d}, p, k_, /*accumulate=*/true);
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
