// The cycle terms by the d x d matrices A = P'P, B = M'M and K = P'M, for N >= d (docs/cycle.md): products in T
// of deflated rows, sums and gradients of the matrices in double.

#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include "deflation.h"

namespace cyclip::cpu {

namespace {

constexpr int64_t kGramRows = 512;  // rows of P and M in memory at the same time

// Fills `factors` with the rows of the towers from `begin` on, and adds to the moments.
template <typename X, typename T = ComputeType<X>>
void fill_factors(const Towers<X>& towers, const double* q, int64_t begin, Factors<T>* factors,
                  Buffer<double>* moments) {
  const int64_t d = towers.d, size = Moments::size(d);
  Buffer<double> parts(ceil_div(factors->rows, kFactorRows) * size);
  for_each_block(factors->rows, kFactorRows, [&](int64_t i, int64_t j) {
    factors->fill(towers.block(begin + i, begin + j), q, i);
    if (q == nullptr) return;
    const Moments part(parts.data() + i / kFactorRows * size, d);
    const double* along = factors->along.data() + i * kAlong;
    cycle_row_kernels<X>().along_products(along, factors->plus().data + i * d, j - i, d, part.along_plus);
    cycle_row_kernels<X>().along_products(along, factors->minus().data + i * d, j - i, d, part.along_minus);
    cycle_row_kernels<double>().along_products(along, along, j - i, kAlong, part.along_along);
  });
  if (q == nullptr) return;
  for (int64_t from = 0; from < parts.size(); from += size) {
    for (int64_t k = 0; k < size; ++k) (*moments)[k] += parts[from + k];
  }
}

// grams += P_'M_ (unless its pointer is null), P_'P_ and M_'M_. The last two are symmetric, so only
// their lower triangles are written. The largest tasks come first.
template <typename T>
void add_products(const Factors<T>& factors, bool first_rows, const std::array<double*, 3>& grams) {
  const Matrix<const T> p = factors.plus(), m = factors.minus();
  const std::array<std::pair<Matrix<const T>, Matrix<const T>>, 3> products = {{{p, m}, {p, p}, {m, m}}};
  const int64_t d = factors.d, block = std::min<int64_t>(row_block(d), 128), blocks = ceil_div(d, block);
  for_each_task(3 * blocks, [&](int64_t task) {
    const int64_t which = task < blocks ? 0 : 1 + (task - blocks) % 2;
    if (grams[which] == nullptr) return;
    const int64_t index = task < blocks ? task : blocks - 1 - (task - blocks) / 2;
    const int64_t first = index * block, last = std::min(d, first + block);
    const int64_t cols = which == 0 ? d : last;
    Buffer<T> product((last - first) * cols);
    gemm<T>({product.data(), last - first, cols, cols}, products[which].first.transposed().row_block(first, last),
            products[which].second.col_block(0, cols));
    for (int64_t i = first; i < last; ++i) {
      double* gram = grams[which] + i * d;
      const T* added = product.data() + (i - first) * cols;
      for (int64_t j = 0; j < cols; ++j) gram[j] = first_rows ? added[j] : gram[j] + added[j];
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cycle_grams(const Tensor& image_features, const Tensor& text_features,
                                               bool cross) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  const int64_t d = image_features.size(1), cross_size = cross ? d : 0;
  Tensor plus = empty<double>({d, d}), minus = empty<double>({d, d});
  Tensor crossed = empty<double>({cross_size, cross_size});
  double *a = plus.mutable_data_ptr<double>(), *b = minus.mutable_data_ptr<double>();
  double* k = cross ? crossed.mutable_data_ptr<double>() : nullptr;
  with_feature_type(image_features, [&](auto type) {
    using X = decltype(type);
    const Towers<X> towers(image_features, text_features);
    const auto directions = cone_directions(towers);
    const double* q = directions ? directions->data() : nullptr;
    Buffer<double> sums(Moments::size(d), 0.0);
    Factors<ComputeType<X>> factors(std::min(kGramRows, towers.rows), d);
    for (int64_t begin = 0; begin < towers.rows; begin += kGramRows) {
      factors.rows = std::min(kGramRows, towers.rows - begin);
      fill_factors(towers, q, begin, &factors, &sums);
      add_products(factors, begin == 0, {k, a, b});
    }

    for_each_triangle_block(d, [&](int64_t begin, int64_t end) {
      mirror_lower(a, d, begin, end);
      mirror_lower(b, d, begin, end);
    });
    if (q == nullptr) return;
    const Moments moments(sums.data(), d);
    restore(a, q, d, moments.p_plus(), moments.p_plus(), moments.p_p());
    restore(b, q, d, moments.m_minus(), moments.m_minus(), moments.m_m());
    if (cross) restore(k, q, d, moments.p_minus(), moments.m_plus(), moments.p_m());
  });
  return {plus, minus, crossed};
}

// For upstream gradients a, b, k of A, B, K: dL/dP = P (a + a') + M k',  dL/dM = M (b + b') + P k.
std::tuple<Tensor, Tensor> cycle_grams_backward(const Tensor& image_features, const Tensor& text_features,
                                                const Tensor& grad_plus_gram, const Tensor& grad_minus_gram,
                                                const Tensor& grad_cross_gram) {
  check_feature_pair(image_features, text_features);
  check_equal_rows(image_features, text_features);
  const int64_t d = image_features.size(1);
  const Tensor grad_a = square_matrix(grad_plus_gram, d, "grad_plus_gram");
  const Tensor grad_b = square_matrix(grad_minus_gram, d, "grad_minus_gram");
  const Tensor grad_k = cross_gradient(grad_cross_gram, d);
  // If the two terms have equal weights, <K, K'> cancels.
  const double* k = grad_k.const_data_ptr<double>();
  const bool has_cross = std::any_of(k, k + grad_k.numel(), [](double entry) { return entry != 0; });

  return with_feature_type(image_features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using X = decltype(type);
    using T = ComputeType<X>;
    const Towers<X> towers(image_features, text_features);
    const auto directions = cone_directions(towers);
    const double* q = directions ? directions->data() : nullptr;
    const DeflatedGradient<T> a(grad_a.const_data_ptr<double>(), q, d, /*symmetric=*/true);
    const DeflatedGradient<T> b(grad_b.const_data_ptr<double>(), q, d, /*symmetric=*/true);
    std::optional<DeflatedGradient<T>> cross;
    if (has_cross) cross.emplace(k, q, d, /*symmetric=*/false);

    TowerGradients<X> gradients(towers);
    for_each_block(towers.rows, kFactorRows, [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin;
      Factors<T> factors(rows, d);
      factors.fill(towers.block(begin, end), q, 0);
      Buffer<T> plus(rows * d), minus(rows * d);
      gemm<T>({plus.data(), rows, d, d}, factors.plus(), a.matrix(d));
      gemm<T>({minus.data(), rows, d, d}, factors.minus(), b.matrix(d));
      if (cross) {
        gemm<T>({plus.data(), rows, d, d}, factors.minus(), cross->matrix(d).transposed(), /*accumulate=*/true);
        gemm<T>({minus.data(), rows, d, d}, factors.plus(), cross->matrix(d), /*accumulate=*/true);
      }
      CycleDeflation<T> deflation;
      if (q != nullptr) {
        deflation = {q,
                     a.sides->g_q.data(),
                     b.sides->g_q.data(),
                     cross ? cross->sides->g_q.data() : nullptr,
                     cross ? cross->sides->q_g.data() : nullptr,
                     factors.plus().data,
                     factors.minus().data,
                     factors.along.data()};
      }
      gradients.finish(towers, begin, end, plus.data(), minus.data(), q != nullptr ? &deflation : nullptr);
    });
    return gradients.in_dtype(image_features.scalar_type());
  });
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) {
  m.impl("cycle_grams", TORCH_BOX(&cycle_grams));
  m.impl("cycle_grams_backward", TORCH_BOX(&cycle_grams_backward));
}

}  // namespace cyclip::cpu
