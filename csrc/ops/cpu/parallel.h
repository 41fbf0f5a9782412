// Tasks on torch's thread pool.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace cyclip::cpu {

// Runs f(0) ... f(count - 1), each task on one thread, in no particular order. Results must not depend
// on who runs what: then they do not depend on the number of threads either. Two things serve that:
// callers cut their work by shape alone, and there are always at least two tasks, so that a matrix
// product inside one finds itself in a parallel region and stays on its thread.
template <typename F>
void for_each_task(int64_t count, const F& f) {
  torch::stable::parallel_for(0, std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < std::min(end, count); ++task) f(task);
  });
}

// The same over ranges [begin, end) of at most `block` rows.
template <typename F>
void for_each_block(int64_t rows, int64_t block, const F& f) {
  for_each_task((rows + block - 1) / block,
                [&](int64_t task) { f(task * block, std::min(rows, (task + 1) * block)); });
}

}  // namespace cyclip::cpu
