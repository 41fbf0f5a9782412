// Matrix products out = left * right, blocked for the caches, on one thread.
//
// An operand consists of words along the depth, the dimension that is summed over. A word is one
// number of type T, or a pair of adjacent bfloat16 numbers. Products of bfloat16 are exact and are
// added in float32; the processor treats numbers below 1e-38 as zero. The right operand is divided
// into panels of as many columns as the registers hold. If its rows are contiguous, panels are
// simply parts of them.

#pragma once

#include <cstdint>

namespace cyclip::cpu {

enum class Bf16 : uint16_t {};

// Two bfloat16 numbers, the lower one in the lower half; depth counts pairs.
using Bf16Pair = uint32_t;

template <typename Word>
struct SumOf {
  using Type = Word;
};
template <>
struct SumOf<Bf16Pair> {
  using Type = float;
};
template <typename Word>
using Sum = typename SumOf<Word>::Type;

template <typename Word>
struct LeftOperand {
  const Word* data;
  int64_t row_stride, depth_stride;
};

// Column c of panel p at depth k is data[p * panel_stride + k * depth_stride + c].
template <typename Word>
struct RightOperand {
  const Word* data;
  int64_t depth_stride, panel_stride;
};

template <typename Word>
struct Product {
  LeftOperand<Word> left;
  RightOperand<Word> right;
  Sum<Word>* out;  // [rows, panels * panel_cols]
  int64_t out_pitch;
  int64_t rows, depth, panels;
  bool accumulate;  // out += left * right
};

// The kernel of one instruction set for operands that are small enough for the caches.
template <typename Word>
struct ProductKernel {
  int64_t panel_cols;
  void (*block)(const Product<Word>&);
  // Copies a left operand whose rows are not contiguous into `workspace`, in the layout that
  // `block` requires.
  LeftOperand<Word> (*gather)(const LeftOperand<Word>& left, int64_t rows, int64_t depth, Word* workspace);
};

// Returns the best kernel that this processor can run, or null if there is none; then the library's
// product is used.
template <typename Word>
const ProductKernel<Word>* product_kernel();

inline constexpr int64_t kDepthBlock = 2048;  // bytes of a row of words per block
inline constexpr int64_t kRowBlockOfProduct = 128;

// The number of words of workspace for a left operand whose rows are not contiguous.
template <typename Word>
inline constexpr int64_t kProductWorkspace = (kDepthBlock / sizeof(Word)) * (kRowBlockOfProduct + 16);

// Copies a left operand depth by depth. Rows of a transposed matrix are far apart, with each word
// on another page; in the copy they are contiguous.
template <typename Word>
LeftOperand<Word> gather_by_depth(const LeftOperand<Word>& left, int64_t rows, int64_t depth, Word* workspace);

// Writes a panel of a right operand, [depth, panel_cols]: word k of column c is
// columns[c * col_stride + k * depth_stride]. Columns from `cols` on are zero.
template <typename Word>
void fill_panel(const Word* columns, int64_t col_stride, int64_t depth_stride, int64_t depth, int64_t cols,
                int64_t panel_cols, Word* panel);

// Computes a product of any size. `workspace` may be null if left.depth_stride is 1.
template <typename Word>
void blocked_product(const ProductKernel<Word>& kernel, const Product<Word>& product, Word* workspace);

}  // namespace cyclip::cpu
