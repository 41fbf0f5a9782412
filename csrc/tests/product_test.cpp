// Matrix products of every instruction set that this processor has, compared with plain loops:
// operands in every layout that the operators use, shapes with ragged blocks, and bfloat16 words.

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "amx_twin.h"
#include "check.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/product.h"

namespace cyclip::cpu {
#if defined(__x86_64__)
namespace avx2 {
extern const ProductKernel<float> float_product;
extern const ProductKernel<double> double_product;
}  // namespace avx2
#endif
#if defined(CYCLIP_HAS_AMX)
namespace amx {
extern const Bf16Kernels kernels;
}
#endif
}  // namespace cyclip::cpu

namespace cyclip::test {

namespace {

using namespace cyclip::cpu;

struct Shape {
  int64_t rows, depth, panels;
};

// Ragged blocks of rows; depths of a single block and of several blocks.
constexpr Shape kShapes[] = {{1, 1, 1},    {5, 3, 2},    {6, 16, 1},    {7, 33, 2},
                             {13, 600, 1}, {131, 20, 1}, {130, 530, 1}, {50, 41, 2}};

// The product of two words, each of one or two numbers.
template <typename T>
double dot(T a, T b) {
  return static_cast<double>(a) * static_cast<double>(b);
}
float low(Bf16Pair word) {
  const uint32_t bits = word << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
float high(Bf16Pair word) { return low(word >> 16); }
double dot(Bf16Pair a, Bf16Pair b) {
  return static_cast<double>(low(a)) * low(b) + static_cast<double>(high(a)) * high(b);
}

template <typename T>
void fill(std::vector<T>* words, std::mt19937* random) {
  std::uniform_real_distribution<T> number(-1, 1);
  for (T& word : *words) word = number(*random);
}
void fill(std::vector<Bf16Pair>* words, std::mt19937* random) {
  std::uniform_real_distribution<float> number(-1, 1);
  for (Bf16Pair& word : *words) {
    const float pair[] = {number(*random), number(*random)};
    uint32_t bits[2];
    std::memcpy(bits, pair, sizeof(bits));
    word = bits[0] >> 16 | (bits[1] & 0xffff0000u);
  }
}

template <typename Word>
void test_product(const ProductKernel<Word>& kernel, const Shape& shape, bool transposed_left, bool packed_right,
                  bool accumulate, const std::string& name) {
  const auto [rows, depth, panels] = shape;
  const int64_t width = kernel.panel_cols, cols = panels * width, pitch = cols + 3;
  std::mt19937 random(static_cast<unsigned>(rows * 1000 + depth));
  std::vector<Word> left(rows * depth), right(depth * cols), workspace(kProductWorkspace<Word>);
  std::vector<Sum<Word>> out((rows - 1) * pitch + cols);
  fill(&left, &random);
  fill(&right, &random);
  fill(&out, &random);
  const std::vector<Sum<Word>> before = out;

  Product<Word> product;
  product.left = {left.data(), transposed_left ? 1 : depth, transposed_left ? rows : 1};
  product.right = {right.data(), packed_right ? width : cols, packed_right ? width * depth : width};
  product.out = out.data();
  product.out_pitch = pitch;
  product.rows = rows;
  product.depth = depth;
  product.panels = panels;
  product.accumulate = accumulate;
  blocked_product(kernel, product, transposed_left ? workspace.data() : nullptr);

  const double tolerance = 8 * std::numeric_limits<Sum<Word>>::epsilon() * std::sqrt(static_cast<double>(depth));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < pitch && row * pitch + col < static_cast<int64_t>(out.size()); ++col) {
      const int64_t i = row * pitch + col;
      double expected = col >= cols || accumulate ? before[i] : 0;
      for (int64_t k = 0; k < depth && col < cols; ++k) {
        expected +=
            dot(left[row * product.left.row_stride + k * product.left.depth_stride],
                right[col / width * product.right.panel_stride + k * product.right.depth_stride + col % width]);
      }
      check_close(out[i], expected, col < cols ? tolerance : 0, name);
    }
  }
}

template <typename Word>
void test_all(const ProductKernel<Word>* kernel, const std::string& name) {
  if (!kernel) return;
  for (const Shape& shape : kShapes) {
    for (int layout = 0; layout < 8; ++layout) {
      test_product(*kernel, shape, layout & 1, layout & 2, layout & 4,
                   name + " [" + std::to_string(shape.rows) + ", " + std::to_string(shape.depth) + "] layout " +
                       std::to_string(layout));
    }
  }
}

// Makes the words of each row contiguous, in plain loops.
LeftOperand<Bf16Pair> gather_by_row(const LeftOperand<Bf16Pair>& left, int64_t rows, int64_t depth,
                                    Bf16Pair* workspace) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < depth; ++k) {
      workspace[row * depth + k] = left.data[row * left.row_stride + k * left.depth_stride];
    }
  }
  return {workspace, depth, 1};
}

// The tile products on a model of the registers, with operands that are prepared as for the real
// registers.
void test_tile_products() {
  ProductKernel<Bf16Pair> kernel = {kTilePanelCols, tile_product_block<AmxTwin>, gather_by_row};
  test_all(&kernel, "bfloat16 tiles");
#if defined(CYCLIP_HAS_AMX)
  if (chosen_isa().isa >= Isa::kAvx512) {
    kernel.gather = amx::kernels.product.gather;
    test_all(&kernel, "bfloat16 tiles, transposed by AVX-512");
  }
#endif
}

#if defined(CYCLIP_HAS_AMX) && !defined(CYCLIP_AMX_TWIN)
// Numbers of every magnitude, including denormal ones, zeros and infinities.
void fill_with_extremes(std::vector<Bf16Pair>* words, std::mt19937* random) {
  for (Bf16Pair& word : *words) {
    word = 0;
    for (int half = 0; half < 2; ++half) {
      const uint32_t bits = (*random)(), kind = (*random)() % 256;
      const uint32_t exponent = kind == 0 ? 0 : kind == 1 ? bits >> 24 : kind == 2 ? 255 : 59 + (bits >> 24) % 12;
      word = word << 16 | (bits & 0x8000) | exponent << 7 | (kind == 2 ? 0 : bits & 0x7f);
    }
  }
}

// Bit for bit, except that a NaN may be any NaN.
bool equal(float a, float b) { return std::isnan(a) ? std::isnan(b) : std::memcmp(&a, &b, sizeof(a)) == 0; }

// The registers of a processor with AMX give the bits of their model.
void test_registers(int64_t rows, int64_t depth, bool accumulate) {
  constexpr int64_t panels = 2, cols = panels * kTilePanelCols;
  std::mt19937 random(static_cast<unsigned>(rows * 1000 + depth));
  std::vector<Bf16Pair> left(rows * depth), right(depth * cols), sums(rows * cols);
  fill_with_extremes(&left, &random);
  fill_with_extremes(&right, &random);
  fill_with_extremes(&sums, &random);
  std::vector<float> out(rows * cols), expected(rows * cols);
  std::memcpy(out.data(), sums.data(), sums.size() * sizeof(float));
  expected = out;
  Product<Bf16Pair> product;
  product.left = {left.data(), depth, 1};
  product.right = {right.data(), cols, kTilePanelCols};
  product.out = out.data();
  product.out_pitch = cols;
  product.rows = rows;
  product.depth = depth;
  product.panels = panels;
  product.accumulate = accumulate;
  amx::kernels.product.block(product);
  product.out = expected.data();
  tile_product_block<AmxTwin>(product);
  int64_t differences = 0;
  for (int64_t i = 0; i < rows * cols; ++i) differences += !equal(out[i], expected[i]);
  check_close(static_cast<double>(differences), 0, 0,
              "tile registers and their model [" + std::to_string(rows) + ", " + std::to_string(depth) + "]");
}

// A caller that uses the registers finds its configuration unchanged.
void test_callers_configuration() {
  const TileConfig before = tile_config(5, 3);
  TileConfig after;
  asm volatile("ldtilecfg %0" : : "m"(before));
  test_registers(20, 20, false);
  asm volatile("sttilecfg %0\n\ttilerelease" : "=m"(after));
  check_close(std::memcmp(&before, &after, sizeof(before)), 0, 0, "the caller's configuration of the tiles");
}

void test_all_registers() {
  for (const int64_t rows : {1, 16, 17, 32, 33, 50}) {
    for (const int64_t depth : {1, 15, 16, 17, 40}) {
      for (const bool accumulate : {false, true}) test_registers(rows, depth, accumulate);
    }
  }
  test_callers_configuration();
}
#endif

// Columns whose words are contiguous, and rows whose words are; a panel with fewer columns than it holds.
template <typename Word>
void test_fill_panel(int64_t depth, int64_t cols, bool contiguous) {
  const int64_t panel_cols = 24, col_stride = contiguous ? depth + 3 : 1, depth_stride = contiguous ? 1 : cols + 3;
  std::mt19937 random(static_cast<unsigned>(depth * 100 + cols));
  std::vector<Word> columns((cols - 1) * col_stride + (depth - 1) * depth_stride + 1),
      panel(depth * panel_cols, 1);
  fill(&columns, &random);
  fill_panel(columns.data(), col_stride, depth_stride, depth, cols, panel_cols, panel.data());
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t col = 0; col < panel_cols; ++col) {
      const Word expected = col < cols ? columns[col * col_stride + k * depth_stride] : 0;
      check_close(panel[k * panel_cols + col], expected, 0,
                  "panel of [" + std::to_string(depth) + ", " + std::to_string(cols) + "]");
    }
  }
}

// In both orders of pairing. Odd rows and columns are padded with zeros, and so is the last panel.
void test_pairs(int64_t rows, int64_t cols) {
  const std::string name = "pairs [" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
  std::vector<Bf16> numbers(rows * cols);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<Bf16>(0x3f80 + i);

  const int64_t row_words = (cols + 1) / 2, depth = (rows + 1) / 2, panel_cols = 32, panels = (cols + 31) / 32;
  std::vector<Bf16Pair> by_row(rows * row_words), by_column(panels * depth * panel_cols, 1);
  pair_columns(numbers.data(), rows, cols, by_row.data());
  pair_rows(numbers.data(), rows, cols, panel_cols, depth * panel_cols, by_column.data());
  const auto at = [&](int64_t row, int64_t col) {
    return row < rows && col < cols ? low(static_cast<Bf16Pair>(numbers[row * cols + col])) : 0;
  };
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < row_words; ++k) {
      check_close(low(by_row[row * row_words + k]), at(row, 2 * k), 0, name + " low of a row");
      check_close(high(by_row[row * row_words + k]), at(row, 2 * k + 1), 0, name + " high of a row");
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t col = 0; col < panels * panel_cols; ++col) {
      const Bf16Pair word = by_column[(col / panel_cols * depth + k) * panel_cols + col % panel_cols];
      check_close(low(word), at(2 * k, col), 0, name + " low of a column");
      check_close(high(word), at(2 * k + 1, col), 0, name + " high of a column");
    }
  }
}

float nearest_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits += 0x7fff + ((bits >> 16) & 1);
  return low(bits >> 16);
}

void test_round_tile(const Bf16Kernels& kernels, int64_t rows, int64_t cols) {
  const std::string name = "round_tile [" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
  const int64_t pitch = (cols + 31) / 32 * 32;
  std::mt19937 random(static_cast<unsigned>(rows * 100 + cols));
  std::uniform_real_distribution<float> number(-1, 1);
  std::vector<float> values(rows * pitch);
  for (float& x : values) x = number(random);
  values[0] = 1.00390625f;  // a tie
  std::vector<Bf16Pair> by_row(rows * pitch / 2), by_column((rows + 1) / 2 * pitch);
  kernels.round_tile({values.data(), pitch, rows, cols, by_row.data(), pitch / 2, by_column.data(), pitch});
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const float expected = nearest_bf16(values[row * pitch + col]);
      const Bf16Pair along = by_row[(row * pitch + col) / 2], down = by_column[row / 2 * pitch + col];
      check_close(col % 2 ? high(along) : low(along), expected, 0, name + " along a row");
      check_close(row % 2 ? high(down) : low(down), expected, 0, name + " down a column");
    }
  }
  for (int64_t col = 0; col < cols && rows % 2; ++col) {
    check_close(high(by_column[rows / 2 * pitch + col]), 0, 0, name + " below the last row");
  }
}

// The words of rounded rows are those of pair_rows.
void test_round_rows(const Bf16Kernels& kernels, int64_t rows, int64_t cols) {
  const int64_t panel_cols = kernels.product.panel_cols, depth = (rows + 1) / 2;
  const int64_t words = depth * ((cols + panel_cols - 1) / panel_cols * panel_cols);
  std::mt19937 random(static_cast<unsigned>(rows * 100 + cols));
  std::uniform_real_distribution<float> number(-1, 1);
  std::vector<float> values(rows * cols);
  for (float& x : values) x = number(random);
  values[0] = 1.00390625f;  // a tie
  std::vector<Bf16> rounded;
  for (const float x : values) {
    const float nearest = nearest_bf16(x);
    uint32_t bits;
    std::memcpy(&bits, &nearest, sizeof(bits));
    rounded.push_back(static_cast<Bf16>(bits >> 16));
  }
  std::vector<Bf16Pair> expected(words), found(words, ~Bf16Pair{0});
  pair_rows(rounded.data(), rows, cols, panel_cols, depth * panel_cols, expected.data());
  kernels.round_rows(values.data(), rows, cols, panel_cols, depth * panel_cols, found.data());
  for (int64_t word = 0; word < words; ++word) {
    check_close(found[word], expected[word], 0,
                "round_rows [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
  }
}

}  // namespace

}  // namespace cyclip::test

int main() {
  using namespace cyclip;
  test::test_all(cpu::product_kernel<float>(), "float");
  test::test_all(cpu::product_kernel<double>(), "double");
#if defined(__x86_64__)
  if (cpu::chosen_isa().isa > cpu::Isa::kAvx2) {
    test::test_all(&cpu::avx2::float_product, "AVX2 float");
    test::test_all(&cpu::avx2::double_product, "AVX2 double");
  }
#endif
  for (const int64_t rows : {1, 2, 5}) {
    for (const int64_t cols : {1, 16, 33, 64}) {
      test::test_pairs(rows, cols);
      if (cpu::bf16_kernels() == nullptr) continue;
      test::test_round_tile(*cpu::bf16_kernels(), rows, cols);
      test::test_round_rows(*cpu::bf16_kernels(), rows, cols);
    }
  }
  for (const int64_t depth : {1, 15, 16, 33}) {
    for (const int64_t cols : {1, 3, 4, 22, 24}) {
      for (const bool contiguous : {false, true}) {
        test::test_fill_panel<float>(depth, cols, contiguous);
        test::test_fill_panel<double>(depth, cols, contiguous);
        test::test_fill_panel<cpu::Bf16Pair>(depth, cols, contiguous);
      }
    }
  }
  if (cpu::bf16_kernels()) test::test_all(&cpu::bf16_kernels()->product, "bfloat16");
  test::test_tile_products();
#if defined(CYCLIP_HAS_AMX) && !defined(CYCLIP_AMX_TWIN)
  if (cpu::chosen_isa().isa == cpu::Isa::kAmx) test::test_all_registers();
#endif
  return test::exit_code();
}
