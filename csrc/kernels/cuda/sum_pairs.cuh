// Two sums over a matrix, such as dL/ds and dL/db: each block writes its part, and further blocks add the parts
// up. The order is fixed by the shape.

#pragma once

#include "host.h"
#include "rows.cuh"

namespace cyclip::cuda {

struct SumPair {
  double first, second;
};

template <int kThreads>
struct BlockSums {
  SumPair of_warp[kThreads / kWarpSize];
};

// The sums over the block's threads, on its first thread. Contains a barrier.
template <int kThreads>
__device__ inline SumPair block_sum(const SumPair& sums, BlockSums<kThreads>& shared) {
  const SumPair of_warp = {warp_sum(sums.first), warp_sum(sums.second)};
  if (threadIdx.x % kWarpSize == 0) shared.of_warp[threadIdx.x / kWarpSize] = of_warp;
  block_barrier();
  SumPair total = {0, 0};
  if (threadIdx.x > 0) return total;
  for (int warp = 0; warp < kThreads / kWarpSize; ++warp) {
    total.first += shared.of_warp[warp].first;
    total.second += shared.of_warp[warp].second;
  }
  return total;
}

// Sets the totals to the sums of the parts, or with `accumulate` adds the sums to them. The second total may be
// null.
Error launch_sum_pairs(const SumPair* parts, int64_t count, bool accumulate, double* first_total,
                       double* second_total, const Context& context);

}  // namespace cyclip::cuda
