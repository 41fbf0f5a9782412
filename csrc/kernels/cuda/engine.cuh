// The tile engine: a block multiplies the lines of two operands, kRows x kCols of them, over a range of
// depth. Copies run kStages - 1 stages ahead of the arithmetic. What becomes of the tile is up to the
// kernel, which holds it in registers (see Place for which entry is where).

#pragma once

#include "fragments.cuh"

namespace cyclip::cuda {

template <typename Tile, Layout kLeft = Layout::kAlongDepth, Layout kRight = Layout::kAlongDepth>
class Engine {
 public:
  using Element = typename Tile::Element;

  struct Stage {
    OperandTile<Tile, kLeft, Tile::kRows> left;
    OperandTile<Tile, kRight, Tile::kCols> right;
  };
  struct Storage {
    Stage stages[Tile::kStages];
  };

  // sums = left right' for rows from row_begin, columns from col_begin, depth [depth_begin, depth_end),
  // where depth_begin is a multiple of kStep, and depth_end too, unless it is the end of the operands.
  // Begins and ends with no copies under way: all of a product's copies are waited for in its last step. The
  // storage may be reused after the block's next barrier.
  __device__ static void multiply(typename Tile::Fragment& sums, Storage& shared, const Place<Tile>& place,
                                  const Operand<Element>& left, int64_t row_begin, const Operand<Element>& right,
                                  int64_t col_begin, int64_t depth_begin, int64_t depth_end) {
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      CYCLIP_UNROLL
      for (int b = 0; b < Tile::kThreadCols; ++b) sums[a][b] = 0;
    }

    const int64_t steps = depth_end > depth_begin ? (depth_end - depth_begin + Tile::kStep - 1) / Tile::kStep : 0;
    const auto start_copies = [&](int64_t step) {
      if (step < steps) {
        Stage& stage = shared.stages[step % Tile::kStages];
        stage.left.copy_async(left, row_begin, depth_begin + step * Tile::kStep);
        stage.right.copy_async(right, col_begin, depth_begin + step * Tile::kStep);
      }
      copy_async_commit();  // an empty group, too: groups are counted
    };

    block_barrier();  // other threads may still read an earlier product
    for (int64_t step = 0; step < Tile::kStages - 1; ++step) start_copies(step);
    for (int64_t step = 0; step < steps; ++step) {
      copy_async_wait<Tile::kStages - 2>();  // this step's copies
      block_barrier();                       // everybody's, and nobody reads the stage before it any more
      start_copies(step + Tile::kStages - 1);
      const Stage& stage = shared.stages[step % Tile::kStages];
      multiply_stage<Tile>(typename Tile::Math{}, sums, place, stage.left, stage.right);
    }
  }
};

}  // namespace cyclip::cuda
