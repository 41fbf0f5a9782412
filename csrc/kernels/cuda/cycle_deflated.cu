#include "cycle_deflated.cuh"

#include "sum_pairs.cuh"

namespace cyclip::cuda {

namespace {

inline constexpr double kCone = 0.75;  // mean square along the main direction of a tower in a cone

// ---------------------------------------------------------------- directions

// Factors of the raw rows in a weighted sum of normalized rows: <x^_i, q>, for each tower with its
// own direction, or 1 without `q`, in which case the first row counts twice; [2, n]. Without `q`,
// also computes the norms.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_row_weights_kernel(CycleFeatures features, const double* q, double* weights) {
  const int64_t n = features.image.rows, d = features.image.d, row = warp_index();
  if (row >= n) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  for (int tower = 0; tower < 2; ++tower) {
    const Features of = tower == 0 ? features.image : features.text;
    double* norms = tower == 0 ? features.image_norms : features.text_norms;
    const T* x = static_cast<const T*>(of.data) + row * of.pitch;
    double weight = row == 0 ? 2 : 1, norm;
    if (q == nullptr) {
      norm = row_norm(x, d, lane);
      if (lane == 0) norms[row] = norm;
    } else {
      norm = norms[row];
      weight = 0;
      for (int64_t k = lane; k < d; k += kWarpSize) weight += widen(x[k]) * q[tower * d + k];
      weight = warp_sum(weight) / norm;
    }
    if (lane == 0) weights[tower * n + row] = weight / norm;
  }
}

// parts[part][tower] = sum of the weighted rows of a part; [kRowParts, 2, d].
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_weighted_sums_kernel(CycleFeatures features, const double* weights, double* parts) {
  const int64_t n = features.image.rows, d = features.image.d;
  const int64_t k = int64_t{blockIdx.x} * kThreadsPerBlock + threadIdx.x, tower = blockIdx.z;
  if (k >= d) return;
  const Features of = tower == 0 ? features.image : features.text;
  const T* x = static_cast<const T*>(of.data);
  const int64_t size = ceil_div(n, kRowParts), begin = blockIdx.y * size,
                end = begin + size < n ? begin + size : n;
  double sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += weights[tower * n + row] * widen(x[row * of.pitch + k]);
  parts[(blockIdx.y * 2 + tower) * d + k] = sum;
}

// q = the sums, each scaled to length 1. In the last step q becomes orthonormal, or zero if there
// is no cone: deflation would only round numbers that may be exact. One block.
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_directions_kernel(const double* parts, int64_t d, int64_t n, bool is_last, double* q) {
  CYCLIP_SHARED(BlockSums<kThreadsPerBlock>, block_sums);
  CYCLIP_SHARED(SumPair, total);
  double *first = q, *second = q + d;
  for (int64_t k = threadIdx.x; k < 2 * d; k += kThreadsPerBlock) {
    double sum = 0;
    for (int64_t part = 0; part < kRowParts; ++part) sum += parts[part * 2 * d + k];
    q[k] = sum;
  }
  const auto dots = [&](const double* a, const double* b, const double* c, const double* e) {  // <a, b>, <c, e>
    block_barrier();
    SumPair sums = {0, 0};
    for (int64_t k = threadIdx.x; k < d; k += kThreadsPerBlock) {
      sums.first += a[k] * b[k];
      sums.second += c[k] * e[k];
    }
    sums = block_sum(sums, block_sums);
    if (threadIdx.x == 0) total = sums;
    block_barrier();
    return total;
  };
  const auto scale = [&](double* v, double factor) {
    for (int64_t k = threadIdx.x; k < d; k += kThreadsPerBlock) v[k] = factor == 0 ? 0 : v[k] * factor;
  };
  const auto inverse = [](double norm, double least) { return norm > least ? 1 / norm : 0; };

  SumPair squares = dots(first, first, second, second);
  const double largest = sqrt(fmax(squares.first, squares.second));
  const bool is_cone = largest > kCone * static_cast<double>(n);  // false for NaN
  const double before = sqrt(squares.second);
  block_barrier();  // both are read before they are written
  if (is_last && !is_cone) {
    scale(q, 0);
    scale(q + d, 0);
    return;
  }
  scale(first, inverse(sqrt(squares.first), 0));
  if (!is_last) {
    scale(second, inverse(before, 0));
    return;
  }
  for (int pass = 0; pass < 2; ++pass) {  // the second pass removes the rounding errors of the first
    const double along = dots(first, second, first, first).first;
    block_barrier();
    for (int64_t k = threadIdx.x; k < d; k += kThreadsPerBlock) second[k] -= along * first[k];
  }
  const double rest = sqrt(dots(second, second, first, first).first);
  block_barrier();
  scale(second, inverse(rest, 1e-8 * before));
}

// ---------------------------------------------------------------- factors

// A warp per row.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_deflated_factors_kernel(CycleFeatures features, int64_t begin, const double* q,
                                  CycleFactors<float> factors, double* along) {
  const int64_t local_row = warp_index();
  if (local_row >= factors.rows) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  const int64_t d = factors.d, row = begin + local_row;
  const T* x = static_cast<const T*>(features.image.data) + row * features.image.pitch;
  const T* y = static_cast<const T*>(features.text.data) + row * features.text.pitch;
  const double x_inv_norm = 1 / features.image_norms[row], y_inv_norm = 1 / features.text_norms[row];
  double sums[kAlong] = {};
  for (int64_t k = lane; k < d; k += kWarpSize) {
    const double a = normalized(x[k], x_inv_norm), b = normalized(y[k], y_inv_norm);
    CYCLIP_UNROLL
    for (int r = 0; r < kDirections; ++r) {
      sums[r] += (a + b) * q[r * d + k];
      sums[kDirections + r] += (a - b) * q[r * d + k];
    }
  }
  CYCLIP_UNROLL
  for (int r = 0; r < kAlong; ++r) {
    sums[r] = warp_sum(sums[r]);
    if (lane == 0) along[local_row * kAlong + r] = sums[r];
  }
  float* plus = factors.plus + local_row * factors.pitch;
  float* minus = factors.minus + local_row * factors.pitch;
  for (int64_t k = lane; k < factors.pitch; k += kWarpSize) {
    double p = 0, m = 0;
    if (k < d) {
      const double a = normalized(x[k], x_inv_norm), b = normalized(y[k], y_inv_norm);
      p = a + b - (sums[0] * q[k] + sums[1] * q[d + k]);
      m = a - b - (sums[2] * q[k] + sums[3] * q[d + k]);
    }
    plus[k] = static_cast<float>(p);
    minus[k] = static_cast<float>(m);
  }
}

// ---------------------------------------------------------------- sides

// Writes zeros without g. A warp per row and column.
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_sides_kernel(const double* g, const double* q, int64_t d, bool is_symmetric, CycleSides sides) {
  const int64_t line = warp_index();
  if (line >= d) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  double left[kDirections] = {}, right[kDirections] = {};
  if (g != nullptr) {
    for (int64_t k = lane; k < d; k += kWarpSize) {
      const double of_col = g[k * d + line], of_row = g[line * d + k];
      CYCLIP_UNROLL
      for (int r = 0; r < kDirections; ++r) {
        left[r] += q[r * d + k] * of_col;
        right[r] += q[r * d + k] * of_row;
      }
    }
  }
  CYCLIP_UNROLL
  for (int r = 0; r < kDirections; ++r) {
    const double of_cols = warp_sum(left[r]), of_rows = warp_sum(right[r]);
    if (lane > 0) continue;
    // If the gradient is symmetric, these are the products of g + g'.
    sides.left[r * d + line] = is_symmetric ? of_cols + of_rows : of_cols;
    sides.right[r * d + line] = is_symmetric ? of_cols + of_rows : of_rows;
  }
}

}  // namespace

template <typename T>
Error launch_cycle_directions(const CycleFeatures& features, const Context& context, double* q) {
  const int64_t n = features.image.rows, d = features.image.d;
  double* weights = context.workspace.template take<double>(2 * n);
  double* parts = context.workspace.template take<double>(kRowParts * 2 * d);
  for (int step = 0; step < 3; ++step) {
    const double* known = step == 0 ? nullptr : q;
    CYCLIP_TRY(launch(cycle_row_weights_kernel<T>, blocks_for(n * kWarpSize), dim3(kThreadsPerBlock), 0,
                      context.stream, features, known, weights));
    CYCLIP_TRY(launch(cycle_weighted_sums_kernel<T>, columns_by_parts(d, 2), dim3(kThreadsPerBlock), 0,
                      context.stream, features, weights, parts));
    CYCLIP_TRY(launch(cycle_directions_kernel, dim3(1), dim3(kThreadsPerBlock), 0, context.stream, parts, d, n,
                      step == 2, q));
  }
  return kSuccess;
}

template <typename T>
Error launch_cycle_deflated_factors(const CycleFeatures& features, int64_t begin, const double* q,
                                    const CycleFactors<float>& factors, double* along, const Context& context) {
  return launch(cycle_deflated_factors_kernel<T>, blocks_for(factors.rows * kWarpSize), dim3(kThreadsPerBlock), 0,
                context.stream, features, begin, q, factors, along);
}

Error launch_cycle_sides(const double* g, const double* q, int64_t d, bool is_symmetric, const CycleSides& sides,
                         const Context& context) {
  return launch(cycle_sides_kernel, blocks_for(d * kWarpSize), dim3(kThreadsPerBlock), 0, context.stream, g, q, d,
                is_symmetric, sides);
}

#define CYCLIP_INSTANTIATE(T)                                                                   \
  template Error launch_cycle_directions<T>(const CycleFeatures&, const Context&, double*);     \
  template Error launch_cycle_deflated_factors<T>(const CycleFeatures&, int64_t, const double*, \
                                                  const CycleFactors<float>&, double*, const Context&);
CYCLIP_INSTANTIATE(bf16)
CYCLIP_INSTANTIATE(f16)
CYCLIP_INSTANTIATE(float)

}  // namespace cyclip::cuda
