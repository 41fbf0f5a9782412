// Helpers of launchers: sizes, errors, and the choice of arithmetic and tile size at run time.

#pragma once

#include <algorithm>

#include "operators.h"
#include "tile.cuh"

namespace cyclip::cuda {

// Returns from the calling launcher if a launch failed.
#define CYCLIP_TRY(launch_expression)                                             \
  do {                                                                            \
    if (const Error error = (launch_expression); error != kSuccess) return error; \
  } while (false)

// One thread per element, in blocks of this size.
inline constexpr int kThreadsPerBlock = 256;
inline dim3 blocks_for(int64_t elements) {
  return dim3(static_cast<unsigned>(ceil_div(elements, kThreadsPerBlock)));
}

// Calls f with the kind of arithmetic for features of this type.
template <typename F>
Error with_math(ElementType type, const Context& context, const F& f) {
  switch (type) {
    case ElementType::kBFloat16:
      return f(Bf16{});
    case ElementType::kFloat16:
      return f(F16{});
    case ElementType::kFloat64:
      return f(F64{});
    default:
      return context.allow_tf32 ? f(Tf32{}) : f(F32{});
  }
}

// Calls f with the tile shape for a product with this many rows and columns. Large tiles read less,
// but if there are too few of them, multiprocessors are idle, so small tiles are used.
template <typename Math, typename F>
Error with_tile(int64_t rows, int64_t cols, const Context& context, const F& f) {
  if constexpr (!std::is_same_v<Math, F64>) {  // a large tile in F64 would not fit into registers
    using Large = LargeTile<Math>;
    if (ceil_div(rows, Large::kRows) * ceil_div(cols, Large::kCols) >= context.large_tiles) return f(Large{});
  }
  return f(SmallTile<Math>{});
}

// The same for kernels of similarities, with pairs of large tiles if there are many. Labels need registers that
// pairs do not leave.
template <typename Math, typename F>
Error with_tile_or_pair(int64_t rows, int64_t cols, bool has_labels, const Context& context, const F& f) {
  if constexpr (sizeof(typename Math::Element) == 2) {
    using Pair = TilePair<LargeTile<Math>>;
    const int64_t pairs = ceil_div(rows, Pair::kRows) * ceil_div(cols, 2 * Pair::kCols);
    if (!has_labels && pairs >= context.tile_pairs) return f(Pair{});
  }
  return with_tile<Math>(rows, cols, context, f);
}

}  // namespace cyclip::cuda
