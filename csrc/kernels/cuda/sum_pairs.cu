#include "sum_pairs.cuh"

namespace cyclip::cuda {

namespace {

// The number of parts that a block adds up. If there are more, a second level of blocks adds the
// results.
inline constexpr int64_t kPartsPerBlock = 4 * kThreadsPerBlock;

// The sums of the block's share of the parts, on its first thread.
__device__ SumPair sum_of_block(const SumPair* parts, int64_t count, BlockSums<kThreadsPerBlock>& shared) {
  SumPair sums = {0, 0};
  CYCLIP_UNROLL
  for (int64_t i = 0; i < kPartsPerBlock; i += kThreadsPerBlock) {
    const int64_t part = blockIdx.x * kPartsPerBlock + i + threadIdx.x;
    const SumPair added = part < count ? parts[part] : SumPair{0, 0};
    sums.first += added.first;
    sums.second += added.second;
  }
  return block_sum(sums, shared);
}

__global__ void __launch_bounds__(kThreadsPerBlock)
    sum_pairs_of_blocks_kernel(const SumPair* parts, int64_t count, SumPair* of_blocks) {
  CYCLIP_SHARED(BlockSums<kThreadsPerBlock>, shared);
  const SumPair sums = sum_of_block(parts, count, shared);
  if (threadIdx.x == 0) of_blocks[blockIdx.x] = sums;
}

// One block.
__global__ void __launch_bounds__(kThreadsPerBlock)
    sum_pairs_kernel(const SumPair* parts, int64_t count, bool accumulate, double* first_total,
                     double* second_total) {
  CYCLIP_SHARED(BlockSums<kThreadsPerBlock>, shared);
  const SumPair sums = sum_of_block(parts, count, shared);
  if (threadIdx.x > 0) return;
  *first_total = sums.first + (accumulate ? *first_total : 0);
  if (second_total) *second_total = sums.second + (accumulate ? *second_total : 0);
}

}  // namespace

Error launch_sum_pairs(const SumPair* parts, int64_t count, bool accumulate, double* first_total,
                       double* second_total, const Context& context) {
  while (count > kPartsPerBlock) {
    const int64_t blocks = ceil_div(count, kPartsPerBlock);
    SumPair* of_blocks = context.workspace.take<SumPair>(blocks);
    CYCLIP_TRY(launch(sum_pairs_of_blocks_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreadsPerBlock), 0,
                      context.stream, parts, count, of_blocks));
    parts = of_blocks;
    count = blocks;
  }
  return launch(sum_pairs_kernel, dim3(1), dim3(kThreadsPerBlock), 0, context.stream, parts, count, accumulate,
                first_total, second_total);
}

}  // namespace cyclip::cuda
