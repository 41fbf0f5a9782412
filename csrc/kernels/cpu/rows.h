// Row-wise kernels of all losses: norms, and the derivative of normalization. They are O(N d) and
// bound by memory, so they are plain loops. Matrices are row-major, [rows, d], without padding.
// Features X are float, double or Bf16, gradients T float or double.

#pragma once

#include "product.h"

namespace cyclip::cpu {

inline constexpr double kEps = 1e-12;  // as in torch.nn.functional.normalize

// The kernels of one instruction set for the norms of float and of Bf16 rows.
struct RowNormKernels {
  void (*of_float)(const float* x, int64_t rows, int64_t d, double* norms);
  void (*of_bf16)(const Bf16* x, int64_t rows, int64_t d, double* norms);
};

// Returns the best kernels that this processor can run.
const RowNormKernels& row_norm_kernels();

// norms[i] = max(|x_i|, eps), accumulated in double: squares of floats neither overflow nor underflow.
template <typename X>
void row_norms(const X* x, int64_t rows, int64_t d, double* norms);

// gradient_i -= <gradient_i, x^_i> x^_i: the loss does not change along x_i. If |x_i| <= eps, the norm is
// the constant eps, and the gradient does not change.
template <typename X, typename T>
void subtract_projection(const X* x, const double* norms, int64_t rows, int64_t d, T* gradient);

}  // namespace cyclip::cpu
