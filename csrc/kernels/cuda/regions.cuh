// The schedule of kernels that reduce a similarity matrix to its lines. The matrix is cut into at most
// 32 x 32 regions of whole tiles; a region is a block's, which goes through its tiles from left to right
// and then down, and owns a partial result per row and per column of the region. So there are at most 32 of
// each, and memory stays linear. Regions follow from the shape alone.

#pragma once

#include "host.h"

namespace cyclip::cuda {

inline constexpr int64_t kMostRegions = 32;

struct Regions {
  int64_t down, across;  // how many
  int64_t rows, cols;    // of one

  template <typename Tile>
  static Regions of(int64_t rows, int64_t cols, int64_t most_across = kMostRegions) {
    Regions regions;
    regions.rows = round_up(ceil_div(rows, kMostRegions), Tile::kRows);
    regions.cols = round_up(ceil_div(cols, most_across), Tile::kCols);
    regions.down = ceil_div(rows, regions.rows);
    regions.across = ceil_div(cols, regions.cols);
    return regions;
  }

  dim3 blocks() const { return dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)); }

  // On the device: the block's part of the matrix.
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
