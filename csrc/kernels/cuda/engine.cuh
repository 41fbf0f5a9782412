// The tile engine: a block multiplies the lines of two operands, kRows x kCols of them, over a
// range of depth. Copies run kStages - 1 stages ahead of the arithmetic. The kernel decides how to
// use the tile, which it holds in registers (Place gives the position of each entry).

#pragma once

#include "fragments.cuh"

namespace cyclip::cuda {

template <typename Tile, Layout kLeft = Layout::kAlongDepth, Layout kRight = Layout::kAlongDepth>
class Engine {
 public:
  using Element = typename Tile::Element;

  struct Stage {
    OperandTile<Tile, kLeft, Tile::kRows> left;
    OperandTile<Tile, kRight, Tile::kCols> right[Tile::kAcross];
  };
  struct Storage {
    Stage stages[Tile::kStages];
  };

  // sums[i] = left right' for rows from row_begin, columns from col_begin + i kCols and the depth [depth_begin,
  // depth_end). depth_begin is a multiple of kStep, and so is depth_end unless it is the end of the
  // operands. No copies are under way at the beginning or at the end, because the last step waits
  // for all copies of the product. The storage may be reused after the block's next barrier.
  __device__ static void multiply(typename Tile::Fragment (&sums)[Tile::kAcross], Storage& shared,
                                  const Place<Tile>& place, const Operand<Element>& left, int64_t row_begin,
                                  const Operand<Element>& right, int64_t col_begin, int64_t depth_begin,
                                  int64_t depth_end) {
    CYCLIP_UNROLL
    for (auto& of_tile : sums) {
      CYCLIP_UNROLL
      for (int a = 0; a < Tile::kThreadRows; ++a) {
        CYCLIP_UNROLL
        for (int b = 0; b < Tile::kThreadCols; ++b) of_tile[a][b] = 0;
      }
    }

    const int64_t steps = depth_end > depth_begin ? (depth_end - depth_begin + Tile::kStep - 1) / Tile::kStep : 0;
    const auto start_copies = [&](int64_t step) {
      if (step < steps) {
        Stage& stage = shared.stages[step % Tile::kStages];
        stage.left.copy_async(left, row_begin, depth_begin + step * Tile::kStep);
        CYCLIP_UNROLL
        for (int i = 0; i < Tile::kAcross; ++i) {
          stage.right[i].copy_async(right, col_begin + i * Tile::kCols, depth_begin + step * Tile::kStep);
        }
      }
      copy_async_commit();  // possibly an empty group: groups are counted
    };

    block_barrier();  // an earlier product may still be read
    for (int64_t step = 0; step < Tile::kStages - 1; ++step) start_copies(step);
    for (int64_t step = 0; step < steps; ++step) {
      copy_async_wait<Tile::kStages - 2>();  // this step's copies
      block_barrier();  // all threads' copies are visible, and the previous stage can be overwritten
      start_copies(step + Tile::kStages - 1);
      const Stage& stage = shared.stages[step % Tile::kStages];
      multiply_stage<Tile>(typename Tile::Math{}, sums, place, stage.left, stage.right);
    }
  }
};

}  // namespace cyclip::cuda
