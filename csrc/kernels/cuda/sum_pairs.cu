#include "sum_pairs.cuh"

namespace cyclip::cuda {

namespace {

// One block.
__global__ void __launch_bounds__(kThreadsPerBlock)
    sum_pairs_kernel(const SumPair* parts, int64_t count, bool accumulate, double* first_total,
                     double* second_total) {
  CYCLIP_SHARED(BlockSums<kThreadsPerBlock>, block_sums);
  SumPair sums = {0, 0};
  for (int64_t i = threadIdx.x; i < count; i += kThreadsPerBlock) {
    sums.first += parts[i].first;
    sums.second += parts[i].second;
  }
  sums = block_sum(sums, block_sums);
  if (threadIdx.x > 0) return;
  *first_total = sums.first + (accumulate ? *first_total : 0);
  if (second_total) *second_total = sums.second + (accumulate ? *second_total : 0);
}

}  // namespace

Error launch_sum_pairs(const SumPair* parts, int64_t count, bool accumulate, double* first_total,
                       double* second_total, const Context& context) {
  return launch(sum_pairs_kernel, dim3(1), dim3(kThreadsPerBlock), 0, context.stream, parts, count, accumulate,
                first_total, second_total);
}

}  // namespace cyclip::cuda
