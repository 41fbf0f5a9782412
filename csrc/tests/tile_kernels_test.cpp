// The epilogues of the similarity tile, in every instruction set that this processor has, compared
// with the plain loops of their definition. Shapes have ragged vectors, and the positives lie in
// the tile, outside it, and along its edge. Rows have labels in common with no column, with some of
// them, with the positive alone, and with all.

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/tile_kernels.h"

namespace cyclip::cpu {
namespace baseline {
extern const TileKernels<float> float_kernels;
extern const TileKernels<double> double_kernels;
}  // namespace baseline
#if defined(__x86_64__)
namespace avx2 {
extern const TileKernels<float> float_kernels;
extern const TileKernels<double> double_kernels;
}  // namespace avx2
#endif
}  // namespace cyclip::cpu

namespace cyclip::test {

namespace {

using namespace cyclip::cpu;

constexpr double kScale = 20;
constexpr double kBias = -3;

struct Shape {
  int64_t rows, cols, offset;
};

constexpr Shape kShapes[] = {{1, 1, 0},   {1, 1, 5},    {3, 7, 0},     {5, 16, 2},   {4, 17, -1},
                             {9, 33, 24}, {2, 31, -40}, {16, 64, 100}, {13, 100, 87}};

enum class Grouping { kNone, kSome, kPositives, kAll };
constexpr Grouping kGroupings[] = {Grouping::kNone, Grouping::kSome, Grouping::kPositives, Grouping::kAll};

// A tile of random dot products. Its padding is NaN, because no result may depend on it.
template <typename T>
struct Problem {
  Shape shape;
  int64_t pitch;
  std::vector<T> dots, row_inv_norms, col_inv_norms;
  Grouping grouping;
  std::vector<LaneInt<T>> row_labels, col_labels;

  explicit Problem(Shape shape, Grouping grouping = Grouping::kNone)
      : shape(shape),
        pitch(padded(shape.cols)),
        dots(shape.rows * pitch, std::numeric_limits<T>::quiet_NaN()),
        row_inv_norms(shape.rows),
        col_inv_norms(pitch, std::numeric_limits<T>::quiet_NaN()),
        grouping(grouping),
        row_labels(shape.rows, 0),
        col_labels(pitch, -1) {
    for (int64_t row = 0; row < shape.rows; ++row) {
      if (grouping == Grouping::kSome) row_labels[row] = static_cast<LaneInt<T>>(row % 4);
      if (grouping == Grouping::kPositives) row_labels[row] = static_cast<LaneInt<T>>(row + 1000);
    }
    for (int64_t col = 0; col < shape.cols; ++col) {
      col_labels[col] = static_cast<LaneInt<T>>(grouping == Grouping::kSome        ? col % 7
                                                : grouping == Grouping::kPositives ? col - shape.offset + 1000
                                                                                   : 0);
    }
    std::mt19937 random(static_cast<unsigned>(shape.rows * 1000 + shape.cols));
    std::uniform_real_distribution<T> cosine(-1, 1), inv_norm(T(0.5), T(2));
    for (T& value : row_inv_norms) value = inv_norm(random);
    for (int64_t col = 0; col < shape.cols; ++col) col_inv_norms[col] = inv_norm(random);
    for (int64_t row = 0; row < shape.rows; ++row) {
      for (int64_t col = 0; col < shape.cols; ++col) {
        dots[row * pitch + col] = cosine(random) / (row_inv_norms[row] * col_inv_norms[col]);
      }
    }
  }

  double cosine(int64_t row, int64_t col) const {
    return static_cast<double>(dots[row * pitch + col]) * row_inv_norms[row] * col_inv_norms[col];
  }
  double inv_norms(int64_t row, int64_t col) const {
    return static_cast<double>(row_inv_norms[row]) * col_inv_norms[col];
  }
  bool is_positive(int64_t row, int64_t col) const { return col == row + shape.offset; }
  bool is_same(int64_t row, int64_t col) const {
    return grouping != Grouping::kNone && row_labels[row] == col_labels[col];
  }
  bool is_negative(int64_t row, int64_t col) const { return !is_positive(row, col) && !is_same(row, col); }

  Labels<T> labels() const {
    return grouping == Grouping::kNone ? Labels<T>{} : Labels<T>{row_labels.data(), col_labels.data()};
  }

  Tile<T> tile() const {
    return {dots.data(), pitch,        shape.rows,           shape.cols,          0,
            0,           shape.offset, row_inv_norms.data(), col_inv_norms.data()};
  }
};

template <typename T>
Base2Scale<T> base2_scale() {
  const T hi = static_cast<T>(kScale * kLog2e);
  return {hi, static_cast<T>(kScale * kLog2e - static_cast<double>(hi))};
}

template <typename T>
struct Statistics {
  std::vector<LaneInt<T>> shift, index;
  std::vector<double> sum;
  std::vector<T> hardest;

  explicit Statistics(int64_t size)
      : shift(size, kNoShift), index(size, -1), sum(size, 0), hardest(size, static_cast<T>(kNoShift)) {}

  NegativeStatistics<T> view() { return {shift.data(), sum.data(), hardest.data(), index.data()}; }

  void expect(int64_t entry, double exponentials, double hardest_cosine, int64_t hardest_index, double tolerance,
              const std::string& what) const {
    check_close(sum[entry] == 0 ? 0 : std::ldexp(sum[entry], shift[entry]) / exponentials,
                exponentials == 0 ? 0 : 1, kScale * tolerance, what + " sum of exponentials");
    check_close(index[entry], static_cast<double>(hardest_index), 0, what + " hardest index");
    if (hardest_index >= 0) check_close(hardest[entry], hardest_cosine, tolerance, what + " hardest");
  }
};

// Statistics of one line (row or column) from their definition.
struct Line {
  double exponentials = 0, hardest = -2;
  int64_t index = -1;

  void add(double cosine, int64_t position) {
    exponentials += std::exp(kScale * cosine);
    if (cosine > hardest) {
      hardest = cosine;
      index = position;
    }
  }
};

// The result of softmax_forward for one tile.
template <typename T>
struct SoftmaxResult {
  std::vector<double> positive;
  Statistics<T> rows, cols;

  SoftmaxResult(const TileKernels<T>& kernels, const Problem<T>& problem, bool needs_hardest = true,
                bool same_are_positives = false)
      : positive(problem.shape.rows, 0), rows(problem.shape.rows), cols(problem.pitch) {
    std::vector<T> scratch(2 * problem.pitch);
    kernels.softmax_forward({problem.tile(), base2_scale<T>(), rows.view(), cols.view(), positive.data(),
                             scratch.data(), needs_hardest, problem.labels(), same_are_positives});
  }
};

template <typename T>
void test_softmax_forward(const TileKernels<T>& kernels, const Problem<T>& problem, bool same_are_positives,
                          double tolerance, const std::string& name) {
  const auto [rows, cols, offset] = problem.shape;
  const SoftmaxResult<T> result(kernels, problem, /*needs_hardest=*/true, same_are_positives);

  std::vector<Line> row_lines(rows), col_lines(cols);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const double s = problem.cosine(row, col);
      if (problem.is_positive(row, col)) {
        check_close(result.positive[row], s, tolerance, name + " positive");
      }
      if (problem.is_negative(row, col)) {
        row_lines[row].add(s, col);
        col_lines[col].add(s, row);
      } else if (!problem.is_positive(row, col) && same_are_positives) {
        row_lines[row].exponentials += std::exp(kScale * s);
        col_lines[col].exponentials += std::exp(kScale * s);
      }
    }
  }
  const auto expect = [&](const Statistics<T>& statistics, const std::vector<Line>& lines, const char* side) {
    for (size_t i = 0; i < lines.size(); ++i) {
      statistics.expect(i, lines[i].exponentials, lines[i].hardest, lines[i].index, tolerance, name + side);
    }
  };
  expect(result.rows, row_lines, " row");
  expect(result.cols, col_lines, " column");

  const SoftmaxResult<T> sums(kernels, problem, /*needs_hardest=*/false, same_are_positives);
  for (int64_t row = 0; row < rows; ++row) {
    check_close(sums.rows.sum[row], result.rows.sum[row], 0, name + " row sum without hardest");
    check_close(sums.rows.index[row], -1, 0, name + " row index without hardest");
  }
  for (int64_t col = 0; col < cols; ++col) {
    check_close(sums.cols.sum[col], result.cols.sum[col], 0, name + " column sum without hardest");
    check_close(sums.cols.index[col], -1, 0, name + " column index without hardest");
  }
}

template <typename T>
void test_softmax_backward(const TileKernels<T>& kernels, const Problem<T>& problem, double tolerance,
                           const std::string& name) {
  const auto [rows, cols, offset] = problem.shape;
  // The shifts of a row whose largest z' is about 20, so that all weights are at most about one.
  const std::vector<LaneInt<T>> row_shift(rows, 28), col_shift(problem.pitch, 29);
  const std::vector<T> row_weight(rows, T(0.25)), col_weight(problem.pitch, T(0.5));
  const int64_t pitch = problem.pitch + kColumnPadding;  // different from that of the dot products
  std::vector<T> values(rows * pitch);
  ScalarGradients scalars;
  kernels.softmax_backward({problem.tile(),
                            {values.data(), pitch},
                            base2_scale<T>(),
                            kScale,
                            {row_shift.data(), row_weight.data(), col_shift.data(), col_weight.data()},
                            &scalars,
                            problem.labels()});
  double scale_gradient = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const double s = problem.cosine(row, col);
      const double z = kScale * kLog2e * s;
      const double weight = 0.25 * std::exp2(z - 28) + 0.5 * std::exp2(z - 29);
      const double slope = problem.is_negative(row, col) ? weight : 0;
      scale_gradient += slope * s;
      check_close(values[row * pitch + col], kScale * slope * problem.inv_norms(row, col), kScale * tolerance,
                  name + " panel");
    }
  }
  check_close(scalars.scale, scale_gradient, cols * kScale * kScale * tolerance, name + " scale");
}

template <typename T>
void test_sigmoid(const TileKernels<T>& kernels, const Problem<T>& problem, bool same_are_positives,
                  double tolerance, const std::string& name) {
  const auto [rows, cols, offset] = problem.shape;
  std::vector<T> values = problem.dots;  // in place
  std::vector<double> row_loss(rows, 0), row_grad(rows, 0.75);
  ScalarGradients scalars;
  kernels.sigmoid_forward({problem.tile(), kScale, kBias, row_loss.data(), problem.labels(), same_are_positives});
  Tile<T> tile = problem.tile();
  tile.dots = values.data();
  kernels.sigmoid_backward({tile,
                            {values.data(), problem.pitch},
                            kScale,
                            kBias,
                            row_grad.data(),
                            &scalars,
                            problem.labels(),
                            same_are_positives});
  double scale_gradient = 0, bias_gradient = 0;
  for (int64_t row = 0; row < rows; ++row) {
    double loss = 0;
    for (int64_t col = 0; col < cols; ++col) {
      const double s = problem.cosine(row, col);
      const bool is_same = problem.is_same(row, col), is_positive = problem.is_positive(row, col);
      const double counts = is_positive || !is_same || same_are_positives ? 1 : 0;
      const double label = is_positive || is_same ? 1 : -1;
      const double z = label * (kScale * s + kBias);
      const double slope = counts * -0.75 * label / (1 + std::exp(z));
      loss += counts * std::log1p(std::exp(-z));
      scale_gradient += slope * s;
      bias_gradient += slope;
      check_close(values[row * problem.pitch + col], kScale * slope * problem.inv_norms(row, col),
                  kScale * kScale * tolerance, name + " panel");
    }
    check_close(row_loss[row], loss, cols * kScale * tolerance, name + " loss");
  }
  check_close(scalars.scale, scale_gradient, cols * kScale * kScale * tolerance, name + " scale");
  check_close(scalars.bias, bias_gradient, cols * kScale * tolerance, name + " bias");
}

// NaN and infinity give a sum that is not finite in their row and column, without undefined
// behaviour, which the sanitizers would report.
template <typename T>
void test_not_finite(const TileKernels<T>& kernels, T bad, const std::string& name) {
  constexpr int64_t kBadRow = 2, kBadCol = 5;
  Problem<T> problem({7, 19, 0});
  problem.dots[kBadRow * problem.pitch + kBadCol] = bad;
  const auto [rows, cols, offset] = problem.shape;
  const SoftmaxResult<T> result(kernels, problem);
  for (int64_t row = 0; row < rows; ++row) {
    check_close(std::isfinite(result.rows.sum[row]), row != kBadRow, 0, name + " finite row sum");
  }
  for (int64_t col = 0; col < cols; ++col) {
    check_close(std::isfinite(result.cols.sum[col]), col != kBadCol, 0, name + " finite column sum");
  }

  std::vector<double> row_loss(rows, 0);
  kernels.sigmoid_forward({problem.tile(), kScale, kBias, row_loss.data()});
  for (int64_t row = 0; row < rows; ++row) {
    check_close(std::isfinite(row_loss[row]) || bad < 0, row != kBadRow || bad < 0, 0, name + " finite row loss");
  }
}

template <typename T>
void test_all(const TileKernels<T>& kernels) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), kInfinity, -kInfinity}) {
    test_not_finite(kernels, bad, std::string(kernels.isa) + " with " + std::to_string(bad));
  }
  const double tolerance = 8 * std::numeric_limits<T>::epsilon();
  for (const Shape& shape : kShapes) {
    for (const Grouping grouping : kGroupings) {
      const Problem<T> problem(shape, grouping);
      const std::string name = std::string(kernels.isa) + " [" + std::to_string(shape.rows) + ", " +
                               std::to_string(shape.cols) + "], grouping " +
                               std::to_string(static_cast<int>(grouping));
      test_softmax_forward(kernels, problem, false, tolerance, name + " softmax_forward");
      test_softmax_forward(kernels, problem, true, tolerance, name + " softmax_forward with more positives");
      test_softmax_backward(kernels, problem, tolerance, name + " softmax_backward");
      test_sigmoid(kernels, problem, false, tolerance, name + " sigmoid");
      test_sigmoid(kernels, problem, true, tolerance, name + " sigmoid with more positives");
    }
  }
}

}  // namespace

}  // namespace cyclip::test

int main() {
  using namespace cyclip;
  test::test_all(cpu::baseline::float_kernels);
  test::test_all(cpu::baseline::double_kernels);
#if defined(__x86_64__)
  if (cpu::chosen_isa().isa > cpu::Isa::kAvx2) {
    test::test_all(cpu::avx2::float_kernels);
    test::test_all(cpu::avx2::double_kernels);
  }
#endif
  test::test_all(cpu::tile_kernels<float>());
  test::test_all(cpu::tile_kernels<double>());
  return test::exit_code();
}
