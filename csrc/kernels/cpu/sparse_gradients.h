// Upstream gradients of single entries of S: the positives, and the hardest negatives.

#pragma once

#include "tile_kernels.h"

namespace cyclip::cpu {

struct SparseGradients {
  const double* positive;            // [rows]
  const double* row_hardest;         // [rows]
  const int64_t* row_hardest_index;  // [rows], global column or -1
  const double* col_hardest;         // [cols]
  const int64_t* col_hardest_index;  // [cols], global row or -1
};

// Adds them to the H that softmax_backward computed for a tile.
template <typename T>
void add_sparse_gradients(const Tile<T>& tile, const GradientTile<T>& out, const SparseGradients& sparse);

}  // namespace cyclip::cpu
