// Row-wise kernels: norms, normalization and its derivative. O(N d), bound by memory, so plain loops.
// Row-major [rows, d] matrices without padding; T is float or double.

#pragma once

#include <cstdint>

namespace cyclip::cpu {

inline constexpr double kEps = 1e-12;  // as in torch.nn.functional.normalize

// norms[i] = max(|x_i|, eps), accumulated in double: squares of floats neither overflow nor underflow.
template <typename T>
void row_norms(const T* x, int64_t rows, int64_t d, double* norms);

// plus = x^ + y^ and minus = x^ - y^, the factors P and M of the cycle terms.
template <typename T>
void normalized_sum_and_difference(const T* x, const T* y, const T* x_inv_norms, const T* y_inv_norms,
                                   int64_t rows, int64_t d, T* plus, T* minus);

// gradient[i] -= row_dot_i x_i / |x_i|^2: the part of dL/dx_i along x_i, which a change of norm cannot see.
// `gradient` holds sum_j H_ij y_j, row_dot_i = sum_j G_ij S_ij. Where |x_i| <= eps the norm is the
// constant eps, and there is no such part.
template <typename T>
void subtract_projection(const T* x, const T* inv_norms, const double* row_dot, int64_t rows, int64_t d,
                         T* gradient);

// The derivative of normalization: gradient_i <- (g_i - <g_i, x^_i> x^_i) / |x_i|, in place.
template <typename T>
void normalize_backward(const T* x, const T* inv_norms, int64_t rows, int64_t d, T* gradient);

}  // namespace cyclip::cpu
