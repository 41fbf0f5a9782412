#include "rows.h"

#include <cmath>
#include <cstring>

namespace cyclip::cpu {

namespace {

template <typename T>
double widened(T x) {
  return static_cast<double>(x);
}
double widened(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

// Sums in eight independent chains, in a fixed order.
template <typename A, typename B>
double dot(const A* a, const B* b, int64_t d) {
  constexpr int kChains = 8;
  double partial[kChains] = {};
  int64_t k = 0;
  for (; k + kChains <= d; k += kChains) {
    for (int chain = 0; chain < kChains; ++chain) {
      partial[chain] += widened(a[k + chain]) * widened(b[k + chain]);
    }
  }
  double sum = 0;
  for (; k < d; ++k) sum += widened(a[k]) * widened(b[k]);
  for (const double p : partial) sum += p;
  return sum;
}

// c with c x = <g, x^> x^, the part of a gradient along x. A norm clamped to eps is a constant, so
// there is no such part.
template <typename X, typename T>
double projection(const X* x, const T* gradient, double norm, int64_t d) {
  return norm <= kEps ? 0 : dot(x, gradient, d) / (norm * norm);
}

}  // namespace

template <>
void row_norms<float>(const float* x, int64_t rows, int64_t d, double* norms) {
  row_norm_kernels().of_float(x, rows, d, norms);
}

template <>
void row_norms<Bf16>(const Bf16* x, int64_t rows, int64_t d, double* norms) {
  row_norm_kernels().of_bf16(x, rows, d, norms);
}

template <>
void row_norms<double>(const double* x, int64_t rows, int64_t d, double* norms) {
  for (int64_t i = 0; i < rows; ++i) {
    const double norm = std::sqrt(dot(x + i * d, x + i * d, d));
    norms[i] = norm < kEps ? kEps : norm;  // keeps NaN
  }
}

template <typename X, typename T>
void subtract_projection(const X* x, const double* norms, int64_t rows, int64_t d, T* gradient) {
  for (int64_t i = 0; i < rows; ++i) {
    const double along = projection(x + i * d, gradient + i * d, norms[i], d);
    for (int64_t k = i * d; k < (i + 1) * d; ++k)
      gradient[k] = static_cast<T>(gradient[k] - along * widened(x[k]));
  }
}

template void subtract_projection<float, float>(const float*, const double*, int64_t, int64_t, float*);
template void subtract_projection<double, double>(const double*, const double*, int64_t, int64_t, double*);
template void subtract_projection<Bf16, float>(const Bf16*, const double*, int64_t, int64_t, float*);

}  // namespace cyclip::cpu
