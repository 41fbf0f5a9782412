#include "rows.h"

#include <cmath>

namespace cyclip::cpu {

namespace {

// Eight chains, so that the additions do not wait for one another; fixed order.
template <typename A, typename B>
double dot(const A* a, const B* b, int64_t d) {
  constexpr int kChains = 8;
  double partial[kChains] = {};
  int64_t k = 0;
  for (; k + kChains <= d; k += kChains) {
    for (int chain = 0; chain < kChains; ++chain) {
      partial[chain] += static_cast<double>(a[k + chain]) * static_cast<double>(b[k + chain]);
    }
  }
  double sum = 0;
  for (; k < d; ++k) sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  for (const double p : partial) sum += p;
  return sum;
}

// c with c x = <g, x^> x^, the part of a gradient along x. A norm clamped to eps is a constant: no such part.
template <typename T, typename G>
double projection(const T* x, const G* gradient, double norm, int64_t d) {
  return norm <= kEps ? 0 : dot(x, gradient, d) / (norm * norm);
}

}  // namespace

template <typename T>
void row_norms(const T* x, int64_t rows, int64_t d, double* norms) {
  for (int64_t i = 0; i < rows; ++i) {
    const double norm = std::sqrt(dot(x + i * d, x + i * d, d));
    norms[i] = norm < kEps ? kEps : norm;  // keeps NaN
  }
}

template <typename T, typename Out>
void normalized_sum_and_difference(const T* x, const T* y, const double* x_norms, const double* y_norms,
                                   int64_t rows, int64_t d, Out* plus, Out* minus) {
  for (int64_t i = 0; i < rows; ++i) {
    const Out x_inv_norm = static_cast<Out>(1 / x_norms[i]), y_inv_norm = static_cast<Out>(1 / y_norms[i]);
    for (int64_t k = i * d; k < (i + 1) * d; ++k) {
      const Out a = static_cast<Out>(x[k]) * x_inv_norm;
      const Out b = static_cast<Out>(y[k]) * y_inv_norm;
      plus[k] = a + b;
      minus[k] = a - b;
    }
  }
}

template <typename T>
void subtract_projection(const T* x, const double* norms, int64_t rows, int64_t d, T* gradient) {
  for (int64_t i = 0; i < rows; ++i) {
    const double along = projection(x + i * d, gradient + i * d, norms[i], d);
    for (int64_t k = i * d; k < (i + 1) * d; ++k) gradient[k] = static_cast<T>(gradient[k] - along * x[k]);
  }
}

template <typename T, typename Work>
void normalize_backward(const T* x, const double* norms, const Work* normalized_gradient, int64_t rows, int64_t d,
                        T* gradient) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* x_row = x + i * d;
    const Work* g = normalized_gradient + i * d;
    const double along = projection(x_row, g, norms[i], d);
    const double inv_norm = 1 / norms[i];
    for (int64_t k = 0; k < d; ++k) gradient[i * d + k] = static_cast<T>((g[k] - along * x_row[k]) * inv_norm);
  }
}

#define CYCLIP_INSTANTIATE(T)                                      \
  template void row_norms<T>(const T*, int64_t, int64_t, double*); \
  template void subtract_projection<T>(const T*, const double*, int64_t, int64_t, T*);
#define CYCLIP_INSTANTIATE_WORK(T, Work)                                                                          \
  template void normalized_sum_and_difference<T, Work>(const T*, const T*, const double*, const double*, int64_t, \
                                                       int64_t, Work*, Work*);                                    \
  template void normalize_backward<T, Work>(const T*, const double*, const Work*, int64_t, int64_t, T*);

CYCLIP_INSTANTIATE(float)
CYCLIP_INSTANTIATE(double)
CYCLIP_INSTANTIATE_WORK(float, float)
CYCLIP_INSTANTIATE_WORK(float, double)
CYCLIP_INSTANTIATE_WORK(double, double)

}  // namespace cyclip::cpu
