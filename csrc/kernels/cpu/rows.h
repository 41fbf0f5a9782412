// Row-wise kernels of all losses: norms, and the derivative of normalization. One table per
// instruction set, as in tile_kernels.h. Matrices are row-major, [rows, d], without padding.
// Features X are float, double or Bf16.

#pragma once

#include <type_traits>

#include "product.h"

namespace cyclip::cpu {

inline constexpr double kEps = 1e-12;  // as in torch.nn.functional.normalize

// The type of the arithmetic for features X.
template <typename X>
using ComputeType = std::conditional_t<std::is_same_v<X, double>, double, float>;

template <typename X>
struct RowKernels {
  // norms[i] = max(|x_i|, eps), accumulated in double: squares of floats neither overflow nor
  // underflow.
  void (*norms)(const X* x, int64_t rows, int64_t d, double* norms);

  // out_i = gradient_i - <gradient_i, x^_i> x^_i: the loss does not change along x_i. If |x_i| <= eps,
  // the norm is the constant eps, and out_i is gradient_i. `out` may be `gradient`.
  void (*subtract_projection)(const X* x, const double* norms, int64_t rows, int64_t d,
                              const ComputeType<X>* gradient, ComputeType<X>* out);

  // The same, rounded to ComputeType<X> and then to the type of the features.
  void (*subtract_projection_rounded)(const X* x, const double* norms, int64_t rows, int64_t d,
                                      const ComputeType<X>* gradient, X* out);
};

// Returns the best table that this processor can run.
template <typename X>
const RowKernels<X>& row_kernels();

}  // namespace cyclip::cpu
