#include "sparse_gradients.h"

namespace cyclip::cpu {

template <typename T>
void add_sparse_gradients(const Tile<T>& tile, const GradientTile<T>& out, const SparseGradients& sparse) {
  const auto add = [&](int64_t row, int64_t col, double gradient) {
    T& entry = out.values[row * out.pitch + col];
    const double inv_norms = static_cast<double>(tile.row_inv_norms[row]) * tile.col_inv_norms[col];
    entry = static_cast<T>(entry + gradient * inv_norms);
  };
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t positive = tile.row_begin + row + tile.offset - tile.col_begin;
    if (positive >= 0 && positive < tile.cols) add(row, positive, sparse.positive[row]);
    const int64_t hardest = sparse.row_hardest_index[row];
    if (hardest >= tile.col_begin && hardest < tile.col_begin + tile.cols) {
      add(row, hardest - tile.col_begin, sparse.row_hardest[row]);
    }
  }
  for (int64_t col = 0; col < tile.cols; ++col) {
    const int64_t hardest = sparse.col_hardest_index[col];
    if (hardest >= tile.row_begin && hardest < tile.row_begin + tile.rows) {
      add(hardest - tile.row_begin, col, sparse.col_hardest[col]);
    }
  }
}

template void add_sparse_gradients<float>(const Tile<float>&, const GradientTile<float>&, const SparseGradients&);
template void add_sparse_gradients<double>(const Tile<double>&, const GradientTile<double>&,
                                           const SparseGradients&);

}  // namespace cyclip::cpu
