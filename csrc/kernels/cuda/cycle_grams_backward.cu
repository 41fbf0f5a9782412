// The gradient through the Gram matrices (docs/cycle.md): for upstream gradients a, b, k of A, B, K
//
//     dL/dP = P (a + a') + M k'    dL/dM = M (b + b') + P k.
//
// The products are in double for the same reason as the Gram matrices: the sums are small compared with their
// terms.

#include "cycle_deflated.cuh"
#include "product.cuh"
#include "rows.cuh"

namespace cyclip::cuda {

namespace {

// a + a', b + b' and k with aligned rows, zero beyond d.
struct CycleWeights {
  double* plus;
  double* minus;
  double* cross;
  int64_t d, pitch;
  int* row_has_cross;  // [d], whether row i of k has an entry other than zero
  int* has_cross;      // [1], whether k has one: with equal weights of both terms <K, K'> drops out

  // A right factor: with its columns or (transposed) its rows as lines.
  Operand<double> factor(const double* matrix) const { return {matrix, d, d, pitch}; }
};

__device__ inline int warp_any(int value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value |= shuffle_xor(value, mask);
  return value;
}

// A warp per row.
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_weights_backward_kernel(const double* a, const double* b, const double* k, CycleWeights weights) {
  const int64_t row = warp_index(), d = weights.d;
  if (row >= d) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  int has_cross = 0;
  for (int64_t col = lane; col < weights.pitch; col += kWarpSize) {
    const int64_t to = row * weights.pitch + col, from = row * d + col, mirrored = col * d + row;
    const bool inside = col < d;
    weights.plus[to] = inside ? a[from] + a[mirrored] : 0;
    weights.minus[to] = inside ? b[from] + b[mirrored] : 0;
    const double cross = inside && k ? k[from] : 0;
    weights.cross[to] = cross;
    has_cross |= cross != 0;
  }
  has_cross = warp_any(has_cross);
  if (lane == 0) weights.row_has_cross[row] = has_cross;
}

// One warp.
__global__ void __launch_bounds__(kWarpSize) any_cross_weight_backward_kernel(CycleWeights weights) {
  int any = 0;
  for (int64_t row = threadIdx.x; row < weights.d; row += kWarpSize) any |= weights.row_has_cross[row];
  any = warp_any(any);
  if (threadIdx.x == 0) *weights.has_cross = any;
}

Error prepare_weights(const CycleGramsBackward& args, const Context& context, CycleWeights* weights) {
  const int64_t d = args.image.d, pitch = CycleFactors<double>::pitch_of(d);
  Workspace& workspace = context.workspace;
  *weights = {workspace.take<double>(d * pitch),
              workspace.take<double>(d * pitch),
              workspace.take<double>(d * pitch),
              d,
              pitch,
              workspace.take<int>(d),
              workspace.take<int>(1)};
  CYCLIP_TRY(launch(cycle_weights_backward_kernel, blocks_for(d * kWarpSize), dim3(kThreadsPerBlock), 0,
                    context.stream, args.grad_plus_gram, args.grad_minus_gram, args.grad_cross_gram, *weights));
  return launch(any_cross_weight_backward_kernel, dim3(1), dim3(kWarpSize), 0, context.stream, *weights);
}

}  // namespace

Error launch_cycle_grams_backward(const CycleGramsBackward& args, const Context& context) {
  if (context.float64_is_slow && args.image.type != ElementType::kFloat64) {
    return launch_cycle_grams_deflated_backward(args, context);
  }
  const int64_t n = args.image.rows, d = args.image.d;
  const auto features = CycleFeatures::of(args.image, args.text, context.workspace);
  CycleWeights weights;
  CYCLIP_TRY(prepare_weights(args, context, &weights));

  const int64_t pitch = weights.pitch, row_bytes = 4 * pitch * static_cast<int64_t>(sizeof(double));
  const int64_t chunk_rows = cycle_chunk_rows(n, row_bytes, context);
  const auto factors_room = CycleFactors<double>::allocate(chunk_rows, d, context.workspace);
  const auto gradients_room = CycleFactors<double>::allocate(chunk_rows, d, context.workspace);
  for (int64_t begin = 0; begin < n; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, n - begin);
    const auto factors = factors_room.first(rows), gradients = gradients_room.first(rows);
    CYCLIP_TRY(launch_cycle_factors_forward(features, begin, factors, context));
    const Operand<double> p = factors.plus_by_rows(), m = factors.minus_by_rows();
    CYCLIP_TRY((launch_product<F64, Layout::kAlongDepth, Layout::kAcrossDepth>(
        {p, weights.factor(weights.plus), gradients.plus, pitch}, context)));
    CYCLIP_TRY((launch_product<F64, Layout::kAlongDepth, Layout::kAcrossDepth>(
        {m, weights.factor(weights.minus), gradients.minus, pitch}, context)));
    const Operand<double> k = weights.factor(weights.cross);
    CYCLIP_TRY((launch_product<F64, Layout::kAlongDepth, Layout::kAlongDepth>(
        {m, k, gradients.plus, pitch, 1, 0, /*accumulate=*/true, weights.has_cross}, context)));
    CYCLIP_TRY((launch_product<F64, Layout::kAlongDepth, Layout::kAcrossDepth>(
        {p, k, gradients.minus, pitch, 1, 0, /*accumulate=*/true, weights.has_cross}, context)));
    CYCLIP_TRY(
        launch_cycle_factors_backward(features, begin, gradients, args.image_grad, args.text_grad, context));
  }
  return kSuccess;
}

}  // namespace cyclip::cuda
