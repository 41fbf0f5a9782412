#include "sparse_gradients.h"

namespace cyclip::cpu {

template <typename T>
void add_sparse_gradients(const Tile<T>& tile, const SparseGradients& sparse, const GradientSums& sums) {
  const auto add = [&](int64_t row, int64_t col, double gradient, double cosine) {
    T& entry = tile.values[row * tile.pitch + col];
    const double inv_norms = static_cast<double>(tile.row_inv_norms[row]) * tile.col_inv_norms[col];
    entry = static_cast<T>(entry + gradient * inv_norms);
    sums.row_dot[row] += gradient * cosine;
    sums.col_dot[col] += gradient * cosine;
  };
  // The test for zero keeps a gradient that nobody asked for from turning an infinite cosine into NaN.
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t positive = tile.row_begin + row + tile.offset - tile.col_begin;
    if (positive >= 0 && positive < tile.cols && sparse.positive[row] != 0) {
      add(row, positive, sparse.positive[row], sparse.positive_cosine[row]);
    }
    const int64_t hardest = sparse.row_hardest_index[row] - tile.col_begin;
    if (hardest >= 0 && hardest < tile.cols && sparse.row_hardest[row] != 0) {
      add(row, hardest, sparse.row_hardest[row], sparse.row_hardest_cosine[row]);
    }
  }
  for (int64_t col = 0; col < tile.cols; ++col) {
    const int64_t hardest = sparse.col_hardest_index[col] - tile.row_begin;
    if (hardest >= 0 && hardest < tile.rows && sparse.col_hardest[col] != 0) {
      add(hardest, col, sparse.col_hardest[col], sparse.col_hardest_cosine[col]);
    }
  }
}

template void add_sparse_gradients<float>(const Tile<float>&, const SparseGradients&, const GradientSums&);
template void add_sparse_gradients<double>(const Tile<double>&, const SparseGradients&, const GradientSums&);

}  // namespace cyclip::cpu
