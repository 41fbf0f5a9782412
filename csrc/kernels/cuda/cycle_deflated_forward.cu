// The Gram matrices by products of deflated factors. Sums of the factors and of the parts along q restore what
// deflation has removed.

#include "cycle_deflated.cuh"
#include "product.cuh"

namespace cyclip::cuda {

namespace {

inline constexpr int64_t kRowsInFloat = 512;    // rows per part of a product in float32
inline constexpr int64_t kMostFloatParts = 16;  // the most such parts at a time

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

// The moments that belong to a Gram matrix L'R: p (0) or m (1) of the left and of the right factor.
struct GramSides {
  int left, right;
};

// Turns the sides of g = L_'R_, which should be zero, into the correction that makes it L'R: `left`
// and `right` are then the terms to add, g += q' left + right' q. One warp.
__global__ void __launch_bounds__(kWarpSize)
    cycle_restored_sides_kernel(const double* q, Moments moments, GramSides of, CycleSides sides) {
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
    add_low_rank_kernel(const double* q, CycleSides sides, int64_t d, double* gram) {
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
    CYCLIP_TRY(launch_cycle_directions<T>(features, context, q));

    const int64_t row_bytes = 2 * CycleFactors<float>::pitch_of(d) * static_cast<int64_t>(sizeof(float));
    const int64_t chunk_rows = chunk_rows_of(n, row_bytes, context);
    const auto room = CycleFactors<float>::allocate(chunk_rows, d, workspace);
    double* along = workspace.take<double>(chunk_rows * kAlong);
    const auto moments = Moments::allocate(d, workspace);
    const int64_t part_count = ceil_div(chunk_rows, kRowsInFloat);
    float* parts = workspace.take<float>(part_count * d * d);
    for (int64_t begin = 0; begin < n; begin += chunk_rows) {
      const auto factors = room.first(std::min(chunk_rows, n - begin));
      CYCLIP_TRY(launch_cycle_deflated_factors<T>(features, begin, q, factors, along, context));
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

    const CycleSides sides = CycleSides::allocate(d, workspace);
    const auto restore = [&](GramSides of, double* gram) {
      CYCLIP_TRY(launch_cycle_sides(gram, q, d, /*is_symmetric=*/false, sides, context));
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

}  // namespace cyclip::cuda
