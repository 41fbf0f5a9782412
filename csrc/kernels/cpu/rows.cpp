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

template <typename T>
void subtract_projection(const T* x, const double* norms, int64_t rows, int64_t d, T* gradient) {
  for (int64_t i = 0; i < rows; ++i) {
    const double along = projection(x + i * d, gradient + i * d, norms[i], d);
    for (int64_t k = i * d; k < (i + 1) * d; ++k) gradient[k] = static_cast<T>(gradient[k] - along * x[k]);
  }
}

#define CYCLIP_INSTANTIATE(T)                                      \
  template void row_norms<T>(const T*, int64_t, int64_t, double*); \
  template void subtract_projection<T>(const T*, const double*, int64_t, int64_t, T*);
CYCLIP_INSTANTIATE(float)
CYCLIP_INSTANTIATE(double)

}  // namespace cyclip::cpu
