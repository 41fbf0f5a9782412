// The gradient through the Gram matrices by products of deflated matrices, with corrections along q.

#include "cycle_deflated.cuh"
#include "product.cuh"

namespace cyclip::cuda {

namespace {

// An upstream gradient g, or g + g', without its parts along q. Rows are aligned and zero beyond d.
struct DeflatedGradient {
  CycleSides sides;
  float* rest;
  int64_t d, pitch;

  static DeflatedGradient allocate(int64_t d, Workspace& workspace) {
    const int64_t pitch = CycleFactors<float>::pitch_of(d);
    return {CycleSides::allocate(d, workspace), workspace.take<float>(d * pitch), d, pitch};
  }
  Operand<float> operand() const { return {rest, d, d, pitch}; }
};

// rows = left - c (left q') q, where c is 1/2 for a symmetric gradient and 1 otherwise. One warp.
__global__ void __launch_bounds__(kWarpSize)
    cycle_gradient_rows_kernel(const double* q, CycleSides sides, int64_t d, bool is_symmetric, double* rows) {
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
  CYCLIP_TRY(launch_cycle_sides(g, q, d, is_symmetric, gradient.sides, context));
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
  CycleSides a, b, k;
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
  const CycleSides &a = corrections.a, &b = corrections.b, &cross = corrections.k;
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

}  // namespace

Error launch_cycle_grams_deflated_backward(const CycleGramsBackward& args, const Context& context) {
  const int64_t n = args.image.rows, d = args.image.d;
  Workspace& workspace = context.workspace;
  return with_element<float>(args.image.type, [&](auto element) -> Error {
    using T = decltype(element);
    const auto features = CycleFeatures::of(args.image, args.text, workspace);
    double* q = workspace.take<double>(kDirections * d);
    CYCLIP_TRY(launch_cycle_directions<T>(features, context, q));
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
      CYCLIP_TRY(launch_cycle_deflated_factors<T>(features, begin, q, factors, along, context));
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
