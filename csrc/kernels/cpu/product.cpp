#include "product.h"

#include <algorithm>
#include <cstring>

namespace cyclip::cpu {

namespace {

// to[j, i] = from[i, j] for i, j < 4.
void transpose_words(const uint32_t* from, int64_t from_pitch, uint32_t* to, int64_t to_pitch) {
  typedef uint32_t Vec __attribute__((vector_size(16)));
  Vec rows[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&rows[i], from + i * from_pitch, sizeof(Vec));
  const Vec even_low = __builtin_shufflevector(rows[0], rows[2], 0, 4, 1, 5);
  const Vec odd_low = __builtin_shufflevector(rows[1], rows[3], 0, 4, 1, 5);
  const Vec even_high = __builtin_shufflevector(rows[0], rows[2], 2, 6, 3, 7);
  const Vec odd_high = __builtin_shufflevector(rows[1], rows[3], 2, 6, 3, 7);
  const Vec columns[4] = {__builtin_shufflevector(even_low, odd_low, 0, 4, 1, 5),
                          __builtin_shufflevector(even_low, odd_low, 2, 6, 3, 7),
                          __builtin_shufflevector(even_high, odd_high, 0, 4, 1, 5),
                          __builtin_shufflevector(even_high, odd_high, 2, 6, 3, 7)};
  for (int j = 0; j < 4; ++j) std::memcpy(to + j * to_pitch, &columns[j], sizeof(Vec));
}

}  // namespace

template <typename Word>
void fill_panel(const Word* columns, int64_t col_stride, int64_t depth_stride, int64_t depth, int64_t cols,
                int64_t panel_cols, Word* panel) {
  constexpr int64_t block = 16;  // words of one cache line of the source
  for (int64_t begin = 0; begin < depth; begin += block) {
    const int64_t end = std::min(begin + block, depth);
    int64_t col = 0;
    if constexpr (sizeof(Word) == sizeof(uint32_t)) {
      for (; depth_stride == 1 && end - begin == block && col + 4 <= cols; col += 4) {
        for (int64_t k = begin; k < end; k += 4) {
          transpose_words(reinterpret_cast<const uint32_t*>(columns + col * col_stride + k), col_stride,
                          reinterpret_cast<uint32_t*>(panel + k * panel_cols + col), panel_cols);
        }
      }
    }
    for (; col < panel_cols; ++col) {
      for (int64_t k = begin; k < end; ++k) {
        panel[k * panel_cols + col] = col < cols ? columns[col * col_stride + k * depth_stride] : 0;
      }
    }
  }
}

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
  template void fill_panel<Word>(const Word*, int64_t, int64_t, int64_t, int64_t, int64_t, Word*);     \
  template void blocked_product<Word>(const ProductKernel<Word>&, const Product<Word>&, Word*);
CYCLIP_INSTANTIATE(float)
CYCLIP_INSTANTIATE(double)
CYCLIP_INSTANTIATE(Bf16Pair)

}  // namespace cyclip::cpu
