// The Gram matrices A = P'P, B = M'M and K = P'M (docs/cycle.md), in double for all types of features. If the
// features lie in a narrow cone, <A, B> is small compared with |A||B|, and rounding an entry to float would
// change the loss.

#include "cycle_deflated.cuh"
#include "product.cuh"

namespace cyclip::cuda {

namespace {

// Adds up the parts of a matrix, each [d, d], in order. Of a symmetric one only the lower half is read.
__global__ void __launch_bounds__(kThreadsPerBlock)
    merge_gram_forward_kernel(const double* parts, int64_t count, int64_t d, bool symmetric, double* gram) {
  const int64_t entry = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (entry >= d * d) return;
  const int64_t row = entry / d, col = entry % d;
  const int64_t from = symmetric && col > row ? col * d + row : entry;
  double sum = 0;
  for (int64_t part = 0; part < count; ++part) sum += parts[part * d * d + from];
  gram[entry] = sum;
}

}  // namespace

Error launch_cycle_grams_forward(const CycleGramsForward& args, const Context& context) {
  if (context.float64_is_slow && args.image.type != ElementType::kFloat64) {
    return launch_cycle_grams_deflated_forward(args, context);
  }
  const int64_t n = args.image.rows, d = args.image.d;
  Workspace& workspace = context.workspace;
  const auto features = CycleFeatures::of(args.image, args.text, workspace);
  const int64_t row_bytes = 2 * CycleFactors<double>::pitch_of(d) * static_cast<int64_t>(sizeof(double));
  const int64_t chunk_rows = cycle_chunk_rows(n, row_bytes, context);
  const auto room = CycleFactors<double>::allocate(chunk_rows, d, workspace);
  const int64_t part_count = depth_parts(d, d, chunk_rows), part_size = d * d;
  double* plus_parts = workspace.take<double>(part_count * part_size);
  double* minus_parts = workspace.take<double>(part_count * part_size);
  double* cross_parts = workspace.take<double>(part_count * part_size);

  for (int64_t begin = 0; begin < n; begin += chunk_rows) {
    const auto factors = room.first(std::min(chunk_rows, n - begin));
    CYCLIP_TRY(launch_cycle_factors_forward(features, begin, factors, context));
    const Operand<double> p = factors.plus_by_columns(), m = factors.minus_by_columns();
    const auto add = [&](const Operand<double>& left, const Operand<double>& right, double* parts) {
      return launch_product<F64, Layout::kAcrossDepth, Layout::kAcrossDepth>(
          {left, right, parts, d, part_count, part_size, /*accumulate=*/begin > 0}, context);
    };
    CYCLIP_TRY(add(p, p, plus_parts));
    CYCLIP_TRY(add(m, m, minus_parts));
    if (args.cross_gram) CYCLIP_TRY(add(p, m, cross_parts));
  }

  const auto merge = [&](const double* parts, bool symmetric, double* gram) {
    return launch(merge_gram_forward_kernel, blocks_for(d * d), dim3(kThreadsPerBlock), 0, context.stream, parts,
                  part_count, d, symmetric, gram);
  };
  CYCLIP_TRY(merge(plus_parts, true, args.plus_gram));
  CYCLIP_TRY(merge(minus_parts, true, args.minus_gram));
  return args.cross_gram ? merge(cross_parts, false, args.cross_gram) : kSuccess;
}

}  // namespace cyclip::cuda
