// Tasks on torch's thread pool.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "../../kernels/common.h"
#include "../../kernels/cpu/product.h"

namespace cyclip::cpu {

// Runs f(0) ... f(count - 1), each task on one thread, in ascending order. A thread takes the next
// task when it has finished one, so tasks may differ in size. Results do not depend on the number
// of threads, for two reasons: callers divide their work by shape alone, and a library's matrix
// product inside a task runs on the thread of the task, because it is called from a parallel
// region. Without library products, a single task does not need a region.
template <typename F>
void for_each_task(int64_t count, const F& f) {
  if (count == 1 && product_kernel<float>() != nullptr) return f(0);
  const int64_t workers = std::max<int64_t>(std::min<int64_t>(torch::stable::get_num_threads(), count), 2);
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < count; task = next++) f(task);
  });
}

// The same over ranges [begin, end) of at most `block` rows.
template <typename F>
void for_each_block(int64_t rows, int64_t block, const F& f) {
  for_each_task(ceil_div(rows, block), [&](int64_t task) { f(task * block, std::min(rows, (task + 1) * block)); });
}

}  // namespace cyclip::cpu
