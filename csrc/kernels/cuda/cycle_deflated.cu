#include "cycle_deflated.cuh"

#include "product.cuh"
#include "rows.cuh"
#include "sum_pairs.cuh"

namespace cyclip::cuda {

namespace {

inline constexpr int kDirections = 2;           // q: the main directions of both towers
inline constexpr int kAlong = 2 * kDirections;  // p = P q and m = M q of a row
inline constexpr int64_t kRowParts = 32;        // number of parts of a sum over rows
inline constexpr int64_t kRowsInFloat = 512;    // rows per part of a product in float32
inline constexpr int64_t kMostFloatParts = 16;  // the most such parts at a time
inline constexpr double kCone = 0.75;           // mean square along the main direction of a tower in a cone

dim3 columns_by_parts(int64_t cols, unsigned towers = 1) {
  return dim3(static_cast<unsigned>(ceil_div(cols, kThreadsPerBlock)), kRowParts, towers);
}

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

// Takes two steps of the power method, starting at the sum of the rows.
template <typename T>
Error find_directions(const CycleFeatures& features, const Context& context, double* q) {
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

// ---------------------------------------------------------------- factors

// P_ = P - p q' and M_ = M - m q' of the rows from `begin` on, and p and m, [rows, kAlong]. A warp
// per row.
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

// ---------------------------------------------------------------- forward

// Sums over rows of along' P_ and along' M_ (each of them kAlong lines of d) and, after P_, of
// along' along.
struct Moments {
  double* parts;  // [kRowParts, 2 kAlong, width]
  int64_t d, width;

  static Moments allocate(int64_t d, Workspace& workspace) {
    const int64_t width = d + kAlong;
    return {workspace.take<double>(kRowParts * 2 * kAlong * width), d, width};
  }
  __device__ double at(int64_t line, int64_t col) const {
    double sum = 0;
    for (int64_t part = 0; part < kRowParts; ++part) sum += parts[(part * 2 * kAlong + line) * width + col];
    return sum;
  }
  // Entry k of column r of `along` times P_ or M_.
  __device__ double plus(int r, int64_t k) const { return at(r, k); }
  __device__ double minus(int r, int64_t k) const { return at(kAlong + r, k); }
  __device__ double along(int r, int s) const { return at(r, d + s); }
};

__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_moments_kernel(CycleFactors<float> factors, const double* along, bool is_first, Moments moments) {
  const int64_t k = int64_t{blockIdx.x} * kThreadsPerBlock + threadIdx.x, n = factors.rows, d = factors.d;
  if (k >= moments.width) return;
  const int64_t size = ceil_div(n, kRowParts), begin = blockIdx.y * size,
                end = begin + size < n ? begin + size : n;
  double plus[kAlong] = {}, minus[kAlong] = {};
  for (int64_t row = begin; row < end; ++row) {
    const double* of_row = along + row * kAlong;
    const double p = k < d ? static_cast<double>(factors.plus[row * factors.pitch + k]) : of_row[k - d];
    const double m = k < d ? static_cast<double>(factors.minus[row * factors.pitch + k]) : 0;
    CYCLIP_UNROLL
    for (int r = 0; r < kAlong; ++r) {
      plus[r] += of_row[r] * p;
      minus[r] += of_row[r] * m;
    }
  }
  CYCLIP_UNROLL
  for (int r = 0; r < kAlong; ++r) {
    double* to = moments.parts + (blockIdx.y * 2 * kAlong + r) * moments.width + k;
    *to = plus[r] + (is_first ? 0 : *to);
    to += kAlong * moments.width;
    *to = minus[r] + (is_first ? 0 : *to);
  }
}

// gram += the sum of the parts of a product in float32, each [d, d]. If the matrix is symmetric,
// only the lower half is read.
__global__ void __launch_bounds__(kThreadsPerBlock)
    add_gram_parts_kernel(const float* parts, int64_t count, int64_t d, bool is_symmetric, bool is_first,
                          double* gram) {
  const int64_t entry = int64_t{blockIdx.x} * kThreadsPerBlock + threadIdx.x;
  if (entry >= d * d) return;
  const int64_t row = entry / d, col = entry % d, from = is_symmetric && col > row ? col * d + row : entry;
  double sum = is_first ? 0 : gram[entry];
  for (int64_t part = 0; part < count; ++part) sum += parts[part * d * d + from];
  gram[entry] = sum;
}

// q g and q g', [kDirections, d] each.
struct Sides {
  double* left;
  double* right;

  static Sides allocate(int64_t d, Workspace& workspace) {
    return {workspace.take<double>(kDirections * d), workspace.take<double>(kDirections * d)};
  }
};

// Writes zeros without g. A warp per row and column.
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_sides_kernel(const double* g, const double* q, int64_t d, bool is_symmetric, Sides sides) {
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

// The moments that belong to a Gram matrix L'R: p (0) or m (1) of the left and of the right factor.
struct GramSides {
  int left, right;
};

// Turns the sides of g = L_'R_, which should be zero, into the correction that makes it L'R: `left`
// and `right` are then the terms to add, g += q' left + right' q. One warp.
__global__ void __launch_bounds__(kWarpSize)
    cycle_restored_sides_kernel(const double* q, Moments moments, GramSides of, Sides sides) {
  const int lane = threadIdx.x;
  const int64_t d = moments.d;
  double error[kDirections][kDirections], core[kDirections][kDirections];
  along_directions(sides.left, q, d, lane, error);
  CYCLIP_UNROLL
  for (int r = 0; r < kDirections; ++r) {
    const int l = of.left * kDirections + r, m = of.right * kDirections + r;
    CYCLIP_UNROLL
    for (int s = 0; s < kDirections; ++s) core[r][s] = moments.along(l, of.right * kDirections + s) - error[r][s];
    for (int64_t k = lane; k < d; k += kWarpSize) {
      const double row = of.right == 0 ? moments.plus(l, k) : moments.minus(l, k);  // l'R_
      const double col = of.left == 0 ? moments.plus(m, k) : moments.minus(m, k);   // r'L_
      sides.left[r * d + k] = row - sides.left[r * d + k];
      sides.right[r * d + k] = col - sides.right[r * d + k];
    }
  }
  double of_left[kDirections][kDirections], of_right[kDirections][kDirections];
  along_directions(sides.left, q, d, lane, of_left);
  along_directions(sides.right, q, d, lane, of_right);
  CYCLIP_UNROLL
  for (int r = 0; r < kDirections; ++r) {
    for (int64_t k = lane; k < d; k += kWarpSize) {
      CYCLIP_UNROLL
      for (int s = 0; s < kDirections; ++s) {
        sides.left[r * d + k] += (core[r][s] - of_left[r][s]) * q[s * d + k];
        sides.right[r * d + k] -= of_right[r][s] * q[s * d + k];
      }
    }
  }
}

__global__ void __launch_bounds__(kThreadsPerBlock)
    add_low_rank_kernel(const double* q, Sides sides, int64_t d, double* gram) {
  const int64_t entry = int64_t{blockIdx.x} * kThreadsPerBlock + threadIdx.x;
  if (entry >= d * d) return;
  const int64_t i = entry / d, j = entry % d;
  double sum = gram[entry];
  CYCLIP_UNROLL
  for (int r = 0; r < kDirections; ++r) {
    sum += q[r * d + i] * sides.left[r * d + j] + sides.right[r * d + i] * q[r * d + j];
  }
  gram[entry] = sum;
}

// ---------------------------------------------------------------- backward

// An upstream gradient g, or g + g', without its parts along q. Rows are aligned and zero beyond d.
struct DeflatedGradient {
  Sides sides;
  float* rest;
  int64_t d, pitch;

  static DeflatedGradient allocate(int64_t d, Workspace& workspace) {
    const int64_t pitch = CycleFactors<float>::pitch_of(d);
    return {Sides::allocate(d, workspace), workspace.take<float>(d * pitch), d, pitch};
  }
  Operand<float> operand() const { return {rest, d, d, pitch}; }
};

// rows = left - c (left q') q, where c is 1/2 for a symmetric gradient and 1 otherwise. One warp.
__global__ void __launch_bounds__(kWarpSize)
    cycle_gradient_rows_kernel(const double* q, Sides sides, int64_t d, bool is_symmetric, double* rows) {
  const int lane = threadIdx.x;
  double core[kDirections][kDirections];
  along_directions(sides.left, q, d, lane, core);
  CYCLIP_UNROLL
  for (int r = 0; r < kDirections; ++r) {
    for (int64_t k = lane; k < d; k += kWarpSize) {
      double sum = sides.left[r * d + k];
      CYCLIP_UNROLL
      for (int s = 0; s < kDirections; ++s) sum -= (is_symmetric ? 0.5 : 1) * core[r][s] * q[s * d + k];
      rows[r * d + k] = sum;
    }
  }
}

__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_gradient_rest_kernel(const double* g, const double* q, const double* rows, bool is_symmetric,
                               DeflatedGradient gradient) {
  const int64_t d = gradient.d, entry = int64_t{blockIdx.x} * kThreadsPerBlock + threadIdx.x;
  if (entry >= d * gradient.pitch) return;
  const int64_t i = entry / gradient.pitch, j = entry % gradient.pitch;
  double rest = 0;
  if (j < d && g != nullptr) {
    rest = is_symmetric ? g[i * d + j] + g[j * d + i] : g[i * d + j];
    const double* cols = is_symmetric ? rows : gradient.sides.right;
    for (int r = 0; r < kDirections; ++r) rest -= q[r * d + i] * rows[r * d + j] + cols[r * d + i] * q[r * d + j];
  }
  gradient.rest[entry] = static_cast<float>(rest);
}

Error deflate_gradient(const double* g, const double* q, bool is_symmetric, const DeflatedGradient& gradient,
                       const Context& context) {
  const int64_t d = gradient.d;
  double* rows = context.workspace.take<double>(kDirections * d);
  CYCLIP_TRY(launch(cycle_sides_kernel, blocks_for(d * kWarpSize), dim3(kThreadsPerBlock), 0, context.stream, g, q,
                    d, is_symmetric, gradient.sides));
  CYCLIP_TRY(launch(cycle_gradient_rows_kernel, dim3(1), dim3(kWarpSize), 0, context.stream, q, gradient.sides, d,
                    is_symmetric, rows));
  return launch(cycle_gradient_rest_kernel, blocks_for(d * gradient.pitch), dim3(kThreadsPerBlock), 0,
                context.stream, g, q, rows, is_symmetric, gradient);
}

// 1 if the entries of k are not all zero, otherwise 0. One block.
__global__ void __launch_bounds__(kThreadsPerBlock) any_entry_kernel(const double* k, int64_t size, int* any) {
  bool found = false;
  for (int64_t i = threadIdx.x; k != nullptr && i < size; i += kThreadsPerBlock) found = found || k[i] != 0;
  found = block_any(found);
  if (threadIdx.x == 0) *any = found;
}

struct CycleCorrections {
  const double* q;
  Sides a, b, k;
};

// Adds to dL/dP and dL/dM the terms that the products of deflated matrices lack, and finishes the
// gradients of the features. A warp per row.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock, 1)
    cycle_deflated_backward_kernel(CycleFeatures features, int64_t begin, CycleFactors<float> factors,
                                   CycleFactors<float> gradients, const double* along,
                                   CycleCorrections corrections, T* image_grad, T* text_grad) {
  const int64_t local_row = warp_index();
  if (local_row >= gradients.rows) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  const int64_t d = gradients.d, row = begin + local_row, at = local_row * gradients.pitch;
  const float *p = factors.plus + at, *m = factors.minus + at;
  const Sides &a = corrections.a, &b = corrections.b, &cross = corrections.k;
  double of_plus[kDirections] = {}, of_minus[kDirections] = {};  // factors of q in dL/dP and dL/dM
  for (int64_t k = lane; k < d; k += kWarpSize) {
    CYCLIP_UNROLL
    for (int r = 0; r < kDirections; ++r) {
      of_plus[r] += p[k] * a.right[r * d + k] + m[k] * cross.left[r * d + k];
      of_minus[r] += m[k] * b.right[r * d + k] + p[k] * cross.right[r * d + k];
    }
  }
  CYCLIP_UNROLL
  for (int r = 0; r < kDirections; ++r) {
    of_plus[r] = warp_sum(of_plus[r]);
    of_minus[r] = warp_sum(of_minus[r]);
  }
  const double* of_row = along + local_row * kAlong;
  const auto plus = [&](int64_t k) {
    double sum = gradients.plus[at + k];
    CYCLIP_UNROLL
    for (int r = 0; r < kDirections; ++r) {
      const int64_t i = r * d + k;
      sum += of_plus[r] * corrections.q[i] + of_row[r] * a.right[i] + of_row[kDirections + r] * cross.right[i];
    }
    return sum;
  };
  const auto minus = [&](int64_t k) {
    double sum = gradients.minus[at + k];
    CYCLIP_UNROLL
    for (int r = 0; r < kDirections; ++r) {
      const int64_t i = r * d + k;
      sum += of_minus[r] * corrections.q[i] + of_row[kDirections + r] * b.right[i] + of_row[r] * cross.left[i];
    }
    return sum;
  };
  const T* x = static_cast<const T*>(features.image.data) + row * features.image.pitch;
  const T* y = static_cast<const T*>(features.text.data) + row * features.text.pitch;
  const double x_norm = features.image_norms[row], y_norm = features.text_norms[row];
  store_projected(
      x, x_norm, d, lane, 1 / x_norm, [&](int64_t k) { return plus(k) + minus(k); }, image_grad + row * d);
  store_projected(
      y, y_norm, d, lane, 1 / y_norm, [&](int64_t k) { return plus(k) - minus(k); }, text_grad + row * d);
}

// The number of rows of P and M in memory at the same time.
int64_t chunk_rows_of(int64_t n, int64_t row_bytes, const Context& context) {
  return std::min(cycle_chunk_rows(n, row_bytes, context), kRowsInFloat * kMostFloatParts);
}

}  // namespace

Error launch_cycle_grams_deflated_forward(const CycleGramsForward& args, const Context& context) {
  const int64_t n = args.image.rows, d = args.image.d;
  Workspace& workspace = context.workspace;
  return with_element<float>(args.image.type, [&](auto element) -> Error {
    using T = decltype(element);
    const auto features = CycleFeatures::of(args.image, args.text, workspace);
    double* q = workspace.take<double>(kDirections * d);
    CYCLIP_TRY(find_directions<T>(features, context, q));

    const int64_t row_bytes = 2 * CycleFactors<float>::pitch_of(d) * static_cast<int64_t>(sizeof(float));
    const int64_t chunk_rows = chunk_rows_of(n, row_bytes, context);
    const auto room = CycleFactors<float>::allocate(chunk_rows, d, workspace);
    double* along = workspace.take<double>(chunk_rows * kAlong);
    const auto moments = Moments::allocate(d, workspace);
    const int64_t part_count = ceil_div(chunk_rows, kRowsInFloat);
    float* parts = workspace.take<float>(part_count * d * d);
    for (int64_t begin = 0; begin < n; begin += chunk_rows) {
      const auto factors = room.first(std::min(chunk_rows, n - begin));
      CYCLIP_TRY(launch(cycle_deflated_factors_kernel<T>, blocks_for(factors.rows * kWarpSize),
                        dim3(kThreadsPerBlock), 0, context.stream, features, begin, q, factors, along));
      CYCLIP_TRY(launch(cycle_moments_kernel, columns_by_parts(moments.width), dim3(kThreadsPerBlock), 0,
                        context.stream, factors, along, begin == 0, moments));
      const auto add = [&](const Operand<float>& left, const Operand<float>& right, bool symmetric, double* gram) {
        CYCLIP_TRY((launch_product<F32, Layout::kAcrossDepth, Layout::kAcrossDepth>(
            {left, right, parts, d, part_count, d * d}, context)));
        return launch(add_gram_parts_kernel, blocks_for(d * d), dim3(kThreadsPerBlock), 0, context.stream, parts,
                      part_count, d, symmetric, begin == 0, gram);
      };
      const Operand<float> p = factors.plus_by_columns(), m = factors.minus_by_columns();
      CYCLIP_TRY(add(p, p, true, args.plus_gram));
      CYCLIP_TRY(add(m, m, true, args.minus_gram));
      if (args.cross_gram) CYCLIP_TRY(add(p, m, false, args.cross_gram));
    }

    const Sides sides = Sides::allocate(d, workspace);
    const auto restore = [&](GramSides of, double* gram) {
      CYCLIP_TRY(launch(cycle_sides_kernel, blocks_for(d * kWarpSize), dim3(kThreadsPerBlock), 0, context.stream,
                        gram, q, d, /*is_symmetric=*/false, sides));
      CYCLIP_TRY(
          launch(cycle_restored_sides_kernel, dim3(1), dim3(kWarpSize), 0, context.stream, q, moments, of, sides));
      return launch(add_low_rank_kernel, blocks_for(d * d), dim3(kThreadsPerBlock), 0, context.stream, q, sides, d,
                    gram);
    };
    CYCLIP_TRY(restore({0, 0}, args.plus_gram));
    CYCLIP_TRY(restore({1, 1}, args.minus_gram));
    return args.cross_gram ? restore({0, 1}, args.cross_gram) : kSuccess;
  });
}

Error launch_cycle_grams_deflated_backward(const CycleGramsBackward& args, const Context& context) {
  const int64_t n = args.image.rows, d = args.image.d;
  Workspace& workspace = context.workspace;
  return with_element<float>(args.image.type, [&](auto element) -> Error {
    using T = decltype(element);
    const auto features = CycleFeatures::of(args.image, args.text, workspace);
    double* q = workspace.take<double>(kDirections * d);
    CYCLIP_TRY(find_directions<T>(features, context, q));
    const auto a = DeflatedGradient::allocate(d, workspace), b = DeflatedGradient::allocate(d, workspace),
               k = DeflatedGradient::allocate(d, workspace);
    int* has_cross = workspace.take<int>(1);
    CYCLIP_TRY(deflate_gradient(args.grad_plus_gram, q, true, a, context));
    CYCLIP_TRY(deflate_gradient(args.grad_minus_gram, q, true, b, context));
    CYCLIP_TRY(deflate_gradient(args.grad_cross_gram, q, false, k, context));
    CYCLIP_TRY(launch(any_entry_kernel, dim3(1), dim3(kThreadsPerBlock), 0, context.stream, args.grad_cross_gram,
                      d * d, has_cross));

    const int64_t pitch = CycleFactors<float>::pitch_of(d), row_bytes = 4 * pitch * int64_t{sizeof(float)};
    const int64_t chunk_rows = cycle_chunk_rows(n, row_bytes, context);
    const auto factors_room = CycleFactors<float>::allocate(chunk_rows, d, workspace);
    const auto gradients_room = CycleFactors<float>::allocate(chunk_rows, d, workspace);
    double* along = workspace.take<double>(chunk_rows * kAlong);
    for (int64_t begin = 0; begin < n; begin += chunk_rows) {
      const int64_t rows = std::min(chunk_rows, n - begin);
      const auto factors = factors_room.first(rows), gradients = gradients_room.first(rows);
      CYCLIP_TRY(launch(cycle_deflated_factors_kernel<T>, blocks_for(rows * kWarpSize), dim3(kThreadsPerBlock), 0,
                        context.stream, features, begin, q, factors, along));
      const Operand<float> p = factors.plus_by_rows(), m = factors.minus_by_rows();
      CYCLIP_TRY((launch_product<F32, Layout::kAlongDepth, Layout::kAcrossDepth>(
          {p, a.operand(), gradients.plus, pitch}, context)));
      CYCLIP_TRY((launch_product<F32, Layout::kAlongDepth, Layout::kAcrossDepth>(
          {m, b.operand(), gradients.minus, pitch}, context)));
      CYCLIP_TRY((launch_product<F32, Layout::kAlongDepth, Layout::kAlongDepth>(
          {m, k.operand(), gradients.plus, pitch, 1, 0, /*accumulate=*/true, has_cross}, context)));
      CYCLIP_TRY((launch_product<F32, Layout::kAlongDepth, Layout::kAcrossDepth>(
          {p, k.operand(), gradients.minus, pitch, 1, 0, /*accumulate=*/true, has_cross}, context)));
      CYCLIP_TRY(launch(cycle_deflated_backward_kernel<T>, blocks_for(rows * kWarpSize), dim3(kThreadsPerBlock), 0,
                        context.stream, features, begin, factors, gradients, along,
                        CycleCorrections{q, a.sides, b.sides, k.sides}, static_cast<T*>(args.image_grad),
                        static_cast<T*>(args.text_grad)));
    }
    return kSuccess;
  });
}

}  // namespace cyclip::cuda
