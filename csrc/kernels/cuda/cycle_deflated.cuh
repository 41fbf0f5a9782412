// The Gram route of the cycle terms with products in float32, for GPUs whose float64 is slow. P and M lose their
// parts along the main directions of both towers before they are multiplied (deflation, docs/cycle.md); sums over
// rows and the parts along these directions stay in double.

#pragma once

#include "cycle_factors.cuh"
#include "rows.cuh"

namespace cyclip::cuda {

// As launch_cycle_grams_forward and _backward, for features that are not float64.
Error launch_cycle_grams_deflated_forward(const CycleGramsForward& args, const Context& context);
Error launch_cycle_grams_deflated_backward(const CycleGramsBackward& args, const Context& context);

// ---------------------------------------------------------------- shared by both directions

inline constexpr int kDirections = 2;           // q: the main directions of both towers
inline constexpr int kAlong = 2 * kDirections;  // p = P q and m = M q of a row
inline constexpr int64_t kRowParts = 32;        // number of parts of a sum over rows

inline dim3 columns_by_parts(int64_t cols, unsigned towers = 1) {
  return dim3(static_cast<unsigned>(ceil_div(cols, kThreadsPerBlock)), kRowParts, towers);
}

// q g and q g', [kDirections, d] each.
struct CycleSides {
  double* left;
  double* right;

  static CycleSides allocate(int64_t d, Workspace& workspace) {
    return {workspace.take<double>(kDirections * d), workspace.take<double>(kDirections * d)};
  }
};

// v q' on all lanes of a warp, v [kDirections, d].
__device__ inline void along_directions(const double* v, const double* q, int64_t d, int lane,
                                        double (&core)[kDirections][kDirections]) {
  CYCLIP_UNROLL
  for (int r = 0; r < kDirections; ++r) {
    CYCLIP_UNROLL
    for (int s = 0; s < kDirections; ++s) {
      double sum = 0;
      for (int64_t k = lane; k < d; k += kWarpSize) sum += v[r * d + k] * q[s * d + k];
      core[r][s] = warp_sum(sum);
    }
  }
}

// Computes q, [kDirections, d], and the norms of all rows by two steps of the power method, which starts at the
// sum of the rows. T is the type of the features.
template <typename T>
Error launch_cycle_directions(const CycleFeatures& features, const Context& context, double* q);

// Fills P_ = P - p q' and M_ = M - m q' for the rows from `begin` on, and p and m, [rows, kAlong].
template <typename T>
Error launch_cycle_deflated_factors(const CycleFeatures& features, int64_t begin, const double* q,
                                    const CycleFactors<float>& factors, double* along, const Context& context);

// Computes the sides of g, or of g + g' if g is the gradient of a symmetric matrix; zeros if g is null.
Error launch_cycle_sides(const double* g, const double* q, int64_t d, bool is_symmetric, const CycleSides& sides,
                         const Context& context);

}  // namespace cyclip::cuda
