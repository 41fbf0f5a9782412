// The innermost block of a matrix product: kBlockRows rows of one panel stay in registers while the depth
// goes by. Included with an `Arithmetic` per kind of word.

namespace cyclip::cpu::CYCLIP_ISA {

// A multiply-add of every lane; floating-point words are their own lanes.
template <typename Word>
struct Arithmetic {
  using Words = Vec<Word>;
  using Sums = Vec<Word>;

  static Words splat_word(Word word) { return splat<Word>(word); }
  static Sums multiply_add(Sums sum, Words a, Words b) { return sum + a * b; }
};

inline constexpr int kBlockRows = 6;
// 32 registers (AVX-512, NEON) hold 6 x 4 sums, 4 words of the right operand and one of the left; 16 hold half.
inline constexpr int kBlockVectors = CYCLIP_VECTOR_BYTES == 32 ? 2 : 4;

// Rows of an unpacked right operand are too far apart for the hardware's prefetcher.
inline constexpr int64_t kPrefetchDepth = 16;

template <typename Word>
inline constexpr int64_t kPanelCols = kBlockVectors * CYCLIP_VECTOR_BYTES / int64_t{sizeof(Word)};

// A sum of many numbers of one sign loses a digit for every hundred of them. The registers therefore sum at
// most this many words, and the partial sum is added to memory, which costs one cycle in thirty.
inline constexpr int64_t kChain = 64;

template <typename Word, int kRows>
void product_rows(const Product<Word>& p, const Word* left, const Word* right, Sum<Word>* out) {
  using A = Arithmetic<Word>;
  constexpr int64_t lanes = CYCLIP_VECTOR_BYTES / int64_t{sizeof(Word)};
  for (int64_t begin = 0; begin < p.depth; begin += kChain) {
    const int64_t end = begin + kChain < p.depth ? begin + kChain : p.depth;
    typename A::Sums sums[kRows][kBlockVectors] = {};
    for (int64_t k = begin; k < end; ++k) {
      typename A::Words b[kBlockVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kBlockVectors; ++v) {
        const Word* from = right + k * p.right.depth_stride + v * lanes;
        b[v] = load<typename A::Words>(from);
        __builtin_prefetch(from + kPrefetchDepth * p.right.depth_stride);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const auto a = A::splat_word(left[row * p.left.row_stride + k * p.left.depth_stride]);
#pragma GCC unroll 4
        for (int v = 0; v < kBlockVectors; ++v) sums[row][v] = A::multiply_add(sums[row][v], a, b[v]);
      }
    }
    const bool accumulate = p.accumulate || begin > 0;
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kBlockVectors; ++v) {
        Sum<Word>* to = out + row * p.out_pitch + v * lanes;
        store(to, accumulate ? load<typename A::Sums>(to) + sums[row][v] : sums[row][v]);
      }
    }
  }
}

// The rows that are left, fewer than a block has.
template <typename Word, int kRows>
void product_remainder(const Product<Word>& p, int64_t rows, const Word* left, const Word* right, Sum<Word>* out) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return product_rows<Word, kRows>(p, left, right, out);
    product_remainder<Word, kRows - 1>(p, rows, left, right, out);
  }
}

template <typename Word>
void product_block(const Product<Word>& p) {
  for (int64_t panel = 0; panel < p.panels; ++panel) {
    const Word* right = p.right.data + panel * p.right.panel_stride;
    Sum<Word>* out = p.out + panel * kPanelCols<Word>;
    int64_t row = 0;
    for (; row + kBlockRows <= p.rows; row += kBlockRows) {
      product_rows<Word, kBlockRows>(p, p.left.data + row * p.left.row_stride, right, out + row * p.out_pitch);
    }
    product_remainder<Word, kBlockRows - 1>(p, p.rows - row, p.left.data + row * p.left.row_stride, right,
                                            out + row * p.out_pitch);
  }
}

}  // namespace cyclip::cpu::CYCLIP_ISA
