// The loop of a block of the engine for compute capability 9.0a over a similarity matrix: the regions of
// regions.cuh, of which a block processes several, one after another.

#pragma once

#include "hopper_engine.cuh"
#include "regions.cuh"

namespace cyclip::cuda {

struct HopperRegions {
  Regions regions;
  int64_t rows, cols;  // of the matrix

  template <typename Tile>
  static HopperRegions of(int64_t rows, int64_t cols) {
    return {Regions::of<HopperPair<Tile>>(rows, cols), rows, cols};
  }

  int64_t count() const { return regions.down * regions.across; }

  struct Strip {
    int down, across;  // position of the region
    int row;
    bool is_first;  // of the region
  };

  // Goes from left to right and then down. Calls on_pair(strip, column) for each pair of tiles, and
  // on_strip(strip) after each row of pairs. In 32 bits, because registers are scarce in all roles.
  template <typename Tile, typename OnPair, typename OnStrip>
  __device__ void for_each(const OnPair& on_pair, const OnStrip& on_strip) const {
    const int across = static_cast<int>(regions.across), count = static_cast<int>(regions.down) * across;
    for (int region = blockIdx.x; region < count; region += gridDim.x) {
      const int down = region / across, right = region % across;
      const int row_begin = down * static_cast<int>(regions.rows),
                col_begin = right * static_cast<int>(regions.cols);
      const int row_end = end(row_begin, regions.rows, rows), col_end = end(col_begin, regions.cols, cols);
      for (int row = row_begin; row < row_end; row += HopperPair<Tile>::kRows) {
        const Strip strip = {down, right, row, row == row_begin};
        for (int col = col_begin; col < col_end; col += Tile::kCols) on_pair(strip, col);
        on_strip(strip);
      }
    }
  }

  // The producer's part: copies the operands of all pairs, in the order of for_each.
  template <typename Tile>
  __device__ void copy(HopperStorage<Tile>& shared, const HopperMaps& maps, int steps) const {
    HopperProducer<Tile> producer(shared, maps);
    for_each<Tile>([&](const Strip& strip, int col) { producer.copy_pair(strip.row, rows, col, 0, steps); },
                   [](const Strip&) {});
  }

  __device__ static int end(int begin, int64_t size, int64_t of_matrix) {
    return static_cast<int>(begin + size < of_matrix ? begin + size : of_matrix);
  }
};

}  // namespace cyclip::cuda
