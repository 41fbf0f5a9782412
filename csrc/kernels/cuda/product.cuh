// Plain products on the tile engine, with results in the accumulator's type.

#pragma once

#include "engine.cuh"
#include "host.h"

namespace cyclip::cuda {

// out = left right', or out += left right', [left.lines, right.lines] with this pitch.
//
// If the result has few tiles, the depth is split: part p of the depth is written to out + p *
// part_size, and the caller adds the parts. Without splitting (parts = 1) the result is complete.
template <typename Math>
struct Product {
  using Element = typename Math::Element;
  using Accumulator = typename Math::Accumulator;

  Operand<Element> left, right;
  Accumulator* out;
  int64_t pitch;
  int64_t parts = 1, part_size = 0;
  bool accumulate = false;
  // A flag on the device. If it is zero, nothing is computed or written.
  const int* enabled = nullptr;
};

template <typename Math, Layout kLeft, Layout kRight>
Error launch_product(const Product<Math>& product, const Context& context);

// The number of parts that keeps a GPU busy with a product of this shape. It depends only on the
// shape.
inline int64_t depth_parts(int64_t rows, int64_t cols, int64_t depth) {
  constexpr int64_t kEnoughTiles = 256, kMostParts = 16, kLeastDepth = 1024;
  const int64_t tiles = ceil_div(rows, 128) * ceil_div(cols, 128);
  return std::clamp<int64_t>(std::min(kEnoughTiles / tiles, depth / kLeastDepth), 1, kMostParts);
}

}  // namespace cyclip::cuda
