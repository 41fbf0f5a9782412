// Row-wise kernels: norms, normalization and its derivative. O(N d), bound by memory, so plain loops.
// Row-major [rows, d] matrices without padding; T is float or double.

#pragma once

#include <cstdint>

namespace cyclip::cpu {

inline constexpr double kEps = 1e-12;  // as in torch.nn.functional.normalize

// norms[i] = max(|x_i|, eps), accumulated in double: squares of floats neither overflow nor underflow.
template <typename T>
void row_norms(const T* x, int64_t rows, int64_t d, double* norms);

// plus = x^ + y^ and minus = x^ - y^, the factors P and M of the cycle terms; Out is T or double.
template <typename T, typename Out>
void normalized_sum_and_difference(const T* x, const T* y, const double* x_norms, const double* y_norms,
                                   int64_t rows, int64_t d, Out* plus, Out* minus);

// gradient_i -= <gradient_i, x^_i> x^_i: the loss does not change along x_i. Where |x_i| <= eps the norm is
// the constant eps and the gradient stays as it is.
template <typename T>
void subtract_projection(const T* x, const double* norms, int64_t rows, int64_t d, T* gradient);

// The derivative of normalization, from dL/dx^ to dL/dx = (g - <g, x^> x^) / |x|, rounded to T only at the end.
template <typename T, typename Work>
void normalize_backward(const T* x, const double* norms, const Work* normalized_gradient, int64_t rows, int64_t d,
                        T* gradient);

}  // namespace cyclip::cpu
