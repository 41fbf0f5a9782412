#include "product.h"

#include <algorithm>
#include <cstring>

namespace cyclip::cpu {

// The pitch keeps neighbouring depths in different sets of the cache.
template <typename Word>
LeftOperand<Word> gather_by_depth(const LeftOperand<Word>& left, int64_t rows, int64_t depth, Word* workspace) {
  constexpr int64_t pitch = kRowBlockOfProduct + 16;
  for (int64_t k = 0; k < depth; ++k) {
    const Word* from = left.data + k * left.depth_stride;
    Word* to = workspace + k * pitch;
    if (left.row_stride == 1) {
      std::memcpy(to, from, rows * sizeof(Word));
    } else {
      for (int64_t row = 0; row < rows; ++row) to[row] = from[row * left.row_stride];
    }
  }
  return {workspace, 1, pitch};
}

template <typename Word>
void blocked_product(const ProductKernel<Word>& kernel, const Product<Word>& product, Word* workspace) {
  constexpr int64_t depth_block = kDepthBlock / sizeof(Word);
  const bool gathers = product.left.depth_stride != 1;
  const int64_t row_block = gathers ? kRowBlockOfProduct : product.rows;
  for (int64_t k = 0; k < product.depth; k += depth_block) {
    const int64_t depth = std::min(depth_block, product.depth - k);
    for (int64_t row = 0; row < product.rows; row += row_block) {
      Product<Word> block = product;
      block.rows = std::min(row_block, product.rows - row);
      block.depth = depth;
      block.left.data += row * product.left.row_stride + k * product.left.depth_stride;
      if (gathers) block.left = kernel.gather(block.left, block.rows, depth, workspace);
      block.right.data += k * product.right.depth_stride;
      block.out += row * product.out_pitch;
      block.accumulate = product.accumulate || k > 0;
      kernel.block(block);
    }
  }
}

#define CYCLIP_INSTANTIATE(Word)                                                                       \
  template LeftOperand<Word> gather_by_depth<Word>(const LeftOperand<Word>&, int64_t, int64_t, Word*); \
  template void blocked_product<Word>(const ProductKernel<Word>&, const Product<Word>&, Word*);
CYCLIP_INSTANTIATE(float)
CYCLIP_INSTANTIATE(double)
CYCLIP_INSTANTIATE(Bf16Pair)

}  // namespace cyclip::cpu
