// Tasks over the rows of a square matrix of which only the part below the diagonal is processed.

#pragma once

#include "../../kernels/cpu/square_tiles.h"
#include "parallel.h"

namespace cyclip::cpu {

inline constexpr int64_t kTriangleRows = 4 * kSquareTile;

// Calls f(begin, end) for blocks of kTriangleRows rows, the longest ones first.
template <typename F>
void for_each_triangle_block(int64_t n, const F& f) {
  const int64_t blocks = ceil_div(n, kTriangleRows);
  for_each_task(blocks, [&](int64_t task) {
    const int64_t begin = (blocks - 1 - task) * kTriangleRows;
    f(begin, std::min(n, begin + kTriangleRows));
  });
}

}  // namespace cyclip::cpu
