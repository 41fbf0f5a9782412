// The schedule of kernels that reduce a similarity matrix to its lines. The matrix is divided into
// at most 32 x 32 regions of whole tiles. Each block processes one region, whose tiles it visits
// from left to right and then down, and owns a partial result for each row and column of the
// region. A row or column has at most 32 partial results, so memory stays linear. Regions depend
// only on the shape.

#pragma once

#include "host.h"

namespace cyclip::cuda {

inline constexpr int64_t kMostRegions = 32;

struct Regions {
  int64_t down, across;  // number of regions
  int64_t rows, cols;    // of one region

  template <typename Tile>
  static Regions of(int64_t rows, int64_t cols, int64_t most_across = kMostRegions) {
    Regions regions;
    regions.rows = round_up(ceil_div(rows, kMostRegions), Tile::kRows);
    regions.cols = round_up(ceil_div(cols, most_across), Tile::kAcross * Tile::kCols);
    regions.down = ceil_div(rows, regions.rows);
    regions.across = ceil_div(cols, regions.cols);
    return regions;
  }

  dim3 blocks() const { return dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)); }

  // Device code: the block's part of the matrix.
  __device__ int64_t row_begin() const { return blockIdx.y * rows; }
  __device__ int64_t col_begin() const { return blockIdx.x * cols; }
  __device__ int64_t row_end(int64_t of_matrix) const {
    const int64_t end = row_begin() + rows;
    return end < of_matrix ? end : of_matrix;
  }
  __device__ int64_t col_end(int64_t of_matrix) const {
    const int64_t end = col_begin() + cols;
    return end < of_matrix ? end : of_matrix;
  }
};

}  // namespace cyclip::cuda
