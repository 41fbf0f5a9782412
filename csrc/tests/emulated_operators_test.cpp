// Every operator of kernels/cuda/operators.h under emulation, in several orders of the threads: the
// results are bit-identical, contain no NaN (the content of unwritten memory), and stay within
// their memory. The cases are small because the sanitizers run them: ThreadSanitizer finds missing
// barriers that no order reveals. python_tests/kernels tests the values; here only simple ones are
// compared with plain loops.

#include <map>
#include <random>

#include "emulation_check.h"
#include "kernels/cuda/operators.h"
#include "emulation/guarded_memory.h"
#include "emulation/numbers.h"

namespace cyclip::test {

namespace {

using namespace cyclip::cuda;
using emulation::GuardedArray;
using emulation::GuardedBlock;
using emulation::GuardedWorkspace;

struct Shape {
  int64_t n, m, d;
  int64_t large_tiles;  // 0: large tiles for all products, and pairs of them if possible
};

// Three pairs of tiles for two blocks; only one consumer has rows in the last pair. The products of the backward
// passes have more steps than the ring has stages.
constexpr Shape kHopperShape = {514, 100, 70, 0};
struct Precision {
  ElementType type;
  bool allow_tf32;
  const char* name;
  int64_t element_size;
};

constexpr Precision kPrecisions[] = {{ElementType::kBFloat16, false, "bfloat16", 2},
                                     {ElementType::kFloat16, false, "float16", 2},
                                     {ElementType::kFloat32, true, "tf32", 4},
                                     {ElementType::kFloat32, false, "float32", 4},
                                     {ElementType::kFloat64, false, "float64", 8}};

// A single entry; several small tiles, ragged in all dimensions; large tiles. The last two have four steps in
// depth, more than the pipeline has stages, and rows that are not aligned to 16 bytes.
std::vector<Shape> pair_shapes(const Precision& precision) {
  const int64_t d = 400 / precision.element_size + 1;
  return {{1, 1, 1, 128}, {70, 67, d, 128}, {33, 130, d, 0}};
}
// Likewise for cycle terms, whose products have n or d lines.
constexpr Shape kCycleShapes[] = {{1, 1, 1, 128}, {70, 70, 67, 128}, {33, 33, 37, 0}};

constexpr double kScale = 5, kLargeScale = 1000, kBias = -2;
constexpr int64_t kOffset = 3;

// A tower of small multiples of 1/2, which every type represents exactly.
class Tower {
 public:
  Tower(const Precision& precision, int64_t rows, int64_t d, unsigned seed)
      : values_(rows * d), block_(rows * d * precision.element_size, emulation::kUnwrittenFloat) {
    std::mt19937 random(seed);
    for (size_t i = 0; i < values_.size(); ++i) {
      values_[i] = (static_cast<int>(random() % 9) - 4) / 2.0;
      store(precision, i);
    }
    features = {block_.data(), precision.type, rows, d, d};
  }

  Features features;

  double norm(int64_t i) const {
    double sum = 0;
    for (int64_t k = 0; k < features.d; ++k) sum += at(i, k) * at(i, k);
    return std::fmax(std::sqrt(sum), 1e-12);
  }
  double at(int64_t i, int64_t k) const { return values_[i * features.d + k]; }

 private:
  void store(const Precision& precision, size_t i) {
    unsigned char* target = block_.data() + i * precision.element_size;
    const double value = values_[i];
    const auto write = [target](auto element) { std::memcpy(target, &element, sizeof(element)); };
    const float rounded = static_cast<float>(value);
    switch (precision.type) {
      case ElementType::kBFloat16:
        return write(emulation::float_to_bf16(rounded));
      case ElementType::kFloat16:
        return write(emulation::float_to_f16(rounded));
      case ElementType::kFloat32:
        return write(rounded);
      case ElementType::kFloat64:
        return write(value);
    }
  }

  std::vector<double> values_;
  GuardedBlock block_;
};

struct Problem {
  Shape shape;
  Precision precision;
  Tower image, text;
  std::vector<double> cosines;  // [n, m]
  int64_t hopper_blocks = 0;

  Problem(const Shape& shape, const Precision& precision)
      : shape(shape),
        precision(precision),
        image(precision, shape.n, shape.d, 1),
        text(precision, shape.m, shape.d, 2) {
    std::vector<double> text_norms;
    for (int64_t j = 0; j < shape.m; ++j) text_norms.push_back(text.norm(j));
    for (int64_t i = 0; i < shape.n; ++i) {
      const double norm = image.norm(i);
      for (int64_t j = 0; j < shape.m; ++j) {
        double dot = 0;
        for (int64_t k = 0; k < shape.d; ++k) dot += image.at(i, k) * text.at(j, k);
        cosines.push_back(dot / norm / text_norms[j]);
      }
    }
  }

  double cosine(int64_t i, int64_t j) const { return cosines[i * shape.m + j]; }
};

// The results of one run by name.
class Results {
 public:
  template <typename T>
  void add(const std::string& name, const GuardedArray<T>& array) {
    array.check(name);
    add_bytes(name, array.data(), array.size() * sizeof(T));
    for (int64_t i = 0; i < array.size(); ++i) {
      if constexpr (std::is_integral_v<T>) {
        check(array.data()[i] >= -1 && array.data()[i] < 1000, name + " is not written");
      } else {
        check(!std::isnan(array.data()[i]), name + " is NaN");
      }
    }
  }
  void add_bytes(const std::string& name, const void* data, size_t bytes) {
    const auto* begin = static_cast<const unsigned char*>(data);
    bytes_[name].assign(begin, begin + bytes);
  }

  void expect_same(const Results& other, const std::string& what) const {
    for (const auto& [name, bytes] : bytes_)
      check(other.bytes_.at(name) == bytes, what + ": different bits in " + name);
  }

 private:
  std::map<std::string, std::vector<unsigned char>> bytes_;
};

// A feature gradient. The bits 0xFFFF are NaN in both 16-bit types and mark unwritten entries.
class Gradient {
 public:
  Gradient(const Problem& problem, int64_t rows)
      : size_(rows * problem.shape.d),
        precision_(problem.precision),
        block_(size_ * precision_.element_size, emulation::kUnwrittenFloat) {}

  void* data() const { return block_.data(); }

  void add_to(Results& results, const std::string& name) const {
    block_.check(name);
    results.add_bytes(name, block_.data(), size_ * precision_.element_size);
    const std::vector<unsigned char> unwritten(precision_.element_size, emulation::kUnwrittenFloat);
    for (int64_t i = 0; i < size_; ++i) {
      const unsigned char* entry = block_.data() + i * precision_.element_size;
      check(std::memcmp(entry, unwritten.data(), unwritten.size()) != 0, name + " is not written");
    }
  }

 private:
  int64_t size_;
  Precision precision_;
  GuardedBlock block_;
};

std::vector<double> one(double value) { return {value}; }

GuardedArray<double> doubles(int64_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<double> values(size);
  for (double& value : values) value = (static_cast<int>(random() % 201) - 100) / 100.0;
  return GuardedArray<double>(values);
}

GuardedArray<int64_t> integers(int64_t size, int64_t divisor, int64_t modulus) {
  std::vector<int64_t> values(size);
  for (int64_t i = 0; i < size; ++i) values[i] = i / divisor % modulus;
  return GuardedArray<int64_t>(values);
}

// Calls launch(context), and checks the workspace.
template <typename Launch>
void run(const Problem& problem, const Launch& launch, bool float64_is_slow = false) {
  GuardedWorkspace workspace;
  Context context{workspace, Stream{}};
  context.float64_is_slow = float64_is_slow;
  context.allow_tf32 = problem.precision.allow_tf32;
  context.large_tiles = context.tile_pairs = problem.shape.large_tiles;
  context.hopper_blocks = problem.hopper_blocks;
  check(launch(context) == kSuccess, "a launch failed");
  workspace.check();
}

void run_row_norms(const Problem& problem, Results& results) {
  const auto launch_into = [&](auto norms) {
    run(problem, [&](const Context& context) {
      return launch_row_norms_forward(problem.image.features, norms.data(), context);
    });
    results.add("norms", norms);
    for (int64_t i = 0; i < problem.shape.n; ++i) {
      check_close(norms.data()[i], problem.image.norm(i), 1e-6, "norm of row " + std::to_string(i));
    }
  };
  if (problem.precision.type == ElementType::kFloat64) {
    launch_into(GuardedArray<double>(problem.shape.n));
  } else {
    launch_into(GuardedArray<float>(problem.shape.n));
  }
}

// Labels, some of which are equal, or none.
class MaybeLabels {
 public:
  MaybeLabels(const Problem& problem, bool has_labels)
      : rows_(integers(problem.shape.n, 2, 20)),
        cols_(integers(problem.shape.m, 3, 20)),
        has_labels_(has_labels) {}

  const int64_t* rows() const { return has_labels_ ? rows_.data() : nullptr; }
  const int64_t* cols() const { return has_labels_ ? cols_.data() : nullptr; }
  bool are_same(int64_t i, int64_t j) const { return has_labels_ && rows_.data()[i] == cols_.data()[j]; }

 private:
  GuardedArray<int64_t> rows_, cols_;
  bool has_labels_;
};

// The results of the forward operator.
struct Statistics {
  GuardedArray<double> row_lse, col_lse, positive, row_hardest, col_hardest;
  GuardedArray<int64_t> row_index, col_index;

  explicit Statistics(const Shape& shape)
      : row_lse(shape.n),
        col_lse(shape.m),
        positive(shape.n),
        row_hardest(shape.n),
        col_hardest(shape.m),
        row_index(shape.n),
        col_index(shape.m) {}

  void add_to(Results& results, const std::string& name) const {
    results.add("row_lse" + name, row_lse);
    results.add("col_lse" + name, col_lse);
    results.add("positive" + name, positive);
    results.add("row_hardest" + name, row_hardest);
    results.add("col_hardest" + name, col_hardest);
    results.add("row_hardest_index" + name, row_index);
    results.add("col_hardest_index" + name, col_index);
  }
};

// Pairs of equal labels are masked.
void check_statistics(const Problem& problem, const MaybeLabels& labels, double scale, const Statistics& actual) {
  const auto [n, m, d, large_tiles] = problem.shape;
  const double tolerance = problem.precision.type == ElementType::kFloat64 ? 1e-12 : 1e-4;
  std::vector<long double> row_sums(n, 0), col_sums(m, 0);  // of exp(scale * (cosine - 1)), far below 1e-308
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      const double cosine = problem.cosine(i, j);
      if (j == i + kOffset) {
        check_close(actual.positive.data()[i], cosine, tolerance, "positive");
      } else if (!labels.are_same(i, j)) {
        const long double exponential = std::exp(scale * (static_cast<long double>(cosine) - 1));
        row_sums[i] += exponential;
        col_sums[j] += exponential;
      }
    }
  }
  const auto check_lse = [&](double lse, long double sum, const char* name) {
    if (sum == 0) return check(lse == -INFINITY, std::string(name) + " of a masked line");
    check_close(lse, static_cast<double>(scale + std::log(sum)), tolerance, name);
  };
  for (int64_t i = 0; i < n; ++i) check_lse(actual.row_lse.data()[i], row_sums[i], "row_lse");
  for (int64_t j = 0; j < m; ++j) check_lse(actual.col_lse.data()[j], col_sums[j], "col_lse");
}

// The statistics with and without the hardest negatives, and their gradient. With labels, the scale is so large
// that the lines of a tile have shifts of their own.
void run_pair_statistics(const Problem& problem, bool has_labels, Results& results) {
  const auto [n, m, d, large_tiles] = problem.shape;
  const Features &image = problem.image.features, &text = problem.text.features;
  const MaybeLabels labels(problem, has_labels);
  const std::string name = has_labels ? " of the statistics with labels" : " of the statistics";
  const GuardedArray<double> scale(one(has_labels ? kLargeScale : kScale)), scale_grad(1);
  const auto forward = [&](bool needs_hardest, bool same_are_positives) {
    Statistics out(problem.shape);
    run(problem, [&](const Context& context) {
      return launch_pair_statistics_forward(
          {image, text, scale.data(), kOffset, out.row_lse.data(), out.col_lse.data(), out.positive.data(),
           out.row_hardest.data(), out.col_hardest.data(), out.row_index.data(), out.col_index.data(),
           needs_hardest, labels.rows(), labels.cols(), same_are_positives},
          context);
    });
    out.add_to(results, name + (needs_hardest ? " with the hardest" : ""));
    return out;
  };
  const Statistics hardest = forward(true, /*same_are_positives=*/true), sums = forward(false, false);
  check_statistics(problem, labels, scale.data()[0], sums);

  const auto g_row = doubles(n, 4), g_col = doubles(m, 5), g_positive = doubles(n, 6),
             g_row_hardest = doubles(n, 7), g_col_hardest = doubles(m, 8);
  const Gradient image_grad(problem, n), text_grad(problem, m);
  run(problem, [&](const Context& context) {
    return launch_pair_statistics_backward(
        {image, text, scale.data(), kOffset, sums.row_lse.data(), sums.col_lse.data(), hardest.row_index.data(),
         hardest.col_index.data(), g_row.data(), g_col.data(), g_positive.data(), g_row_hardest.data(),
         g_col_hardest.data(), image_grad.data(), text_grad.data(), scale_grad.data(), labels.rows(),
         labels.cols()},
        context);
  });
  image_grad.add_to(results, "image_grad" + name);
  text_grad.add_to(results, "text_grad" + name);
  results.add("logit_scale_grad" + name, scale_grad);
}

// Pairs of equal labels are further positives.
void run_sigmoid_rows(const Problem& problem, bool has_labels, Results& results) {
  const auto [n, m, d, large_tiles] = problem.shape;
  const Features &image = problem.image.features, &text = problem.text.features;
  const MaybeLabels labels(problem, has_labels);
  const std::string name = has_labels ? " of the sigmoid with labels" : " of the sigmoid";
  const GuardedArray<double> scale(one(kScale)), bias(one(kBias)), row_loss(n), scale_grad(1), bias_grad(1);
  run(problem, [&](const Context& context) {
    return launch_sigmoid_rows_forward({image, text, scale.data(), bias.data(), kOffset, row_loss.data(),
                                        labels.rows(), labels.cols(), /*same_are_positives=*/true},
                                       context);
  });
  results.add("row_loss" + name, row_loss);
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < m; ++j) {
      const double logit = kScale * problem.cosine(i, j) + kBias;
      sum += std::log1p(std::exp(j == i + kOffset || labels.are_same(i, j) ? -logit : logit));
    }
    check_close(row_loss.data()[i], sum, problem.precision.type == ElementType::kFloat64 ? 1e-12 : 1e-3,
                "row_loss" + name);
  }
  const auto g_rows = doubles(n, 4);
  const Gradient image_grad(problem, n), text_grad(problem, m);
  run(problem, [&](const Context& context) {
    return launch_sigmoid_rows_backward(
        {image, text, scale.data(), bias.data(), kOffset, g_rows.data(), image_grad.data(), text_grad.data(),
         scale_grad.data(), bias_grad.data(), labels.rows(), labels.cols(), /*same_are_positives=*/true},
        context);
  });
  image_grad.add_to(results, "image_grad" + name);
  text_grad.add_to(results, "text_grad" + name);
  results.add("logit_scale_grad" + name, scale_grad);
  results.add("logit_bias_grad" + name, bias_grad);
}

// Products in float32 after deflation.
void run_deflated_cycle_grams(const Problem& problem, Results& results) {
  const int64_t n = problem.shape.n, d = problem.shape.d;
  const Features &image = problem.image.features, &text = problem.text.features;
  const Gradient image_grad(problem, n), text_grad(problem, n);
  const GuardedArray<double> plus(d * d), minus(d * d), cross(d * d);
  const auto forward = [&](const Context& context) {
    return launch_cycle_grams_forward({image, text, plus.data(), minus.data(), cross.data()}, context);
  };
  run(problem, forward, /*float64_is_slow=*/true);
  results.add("plus_gram after deflation", plus);
  results.add("minus_gram after deflation", minus);
  results.add("cross_gram after deflation", cross);
  const auto g_plus = doubles(d * d, 4), g_minus = doubles(d * d, 5), g_cross = doubles(d * d, 6);
  const auto backward = [&](const Context& context) {
    return launch_cycle_grams_backward(
        {image, text, g_plus.data(), g_minus.data(), g_cross.data(), image_grad.data(), text_grad.data()},
        context);
  };
  run(problem, backward, /*float64_is_slow=*/true);
  image_grad.add_to(results, "image_grad after deflation");
  text_grad.add_to(results, "text_grad after deflation");
}

void run_cycle(const Problem& problem, Results& results) {
  const int64_t n = problem.shape.n, d = problem.shape.d;
  const Features &image = problem.image.features, &text = problem.text.features;
  const Gradient image_grad(problem, n), text_grad(problem, n);
  const GuardedArray<double> plus(d * d), minus(d * d), cross(d * d), in_modal(1), cross_modal(1);
  run(problem, [&](const Context& context) {
    return launch_cycle_grams_forward({image, text, plus.data(), minus.data(), cross.data()}, context);
  });
  results.add("plus_gram", plus);
  results.add("minus_gram", minus);
  results.add("cross_gram", cross);
  run(problem, [&](const Context& context) {
    return launch_cycle_direct_forward({image, text, in_modal.data(), cross_modal.data()}, context);
  });
  results.add("in_modal_sum", in_modal);
  results.add("cross_modal_sum", cross_modal);

  double both = 0, difference = 0;  // compares the two routes
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) {
      both += plus.data()[i * d + j] * minus.data()[i * d + j];
      difference += cross.data()[i * d + j] * cross.data()[j * d + i];
    }
  }
  const double tolerance = problem.precision.allow_tf32 ? 1e-2 : 1e-5;
  check_close(in_modal.data()[0], (both + difference) / 2, tolerance, "in_modal_sum");
  check_close(cross_modal.data()[0], (both - difference) / 2, tolerance, "cross_modal_sum");

  const auto g_plus = doubles(d * d, 4), g_minus = doubles(d * d, 5), g_cross = doubles(d * d, 6);
  run(problem, [&](const Context& context) {
    return launch_cycle_grams_backward(
        {image, text, g_plus.data(), g_minus.data(), g_cross.data(), image_grad.data(), text_grad.data()},
        context);
  });
  image_grad.add_to(results, "image_grad by grams");
  text_grad.add_to(results, "text_grad by grams");
  const GuardedArray<double> g_in(one(0.7)), g_cross_modal(one(-0.4));
  run(problem, [&](const Context& context) {
    return launch_cycle_direct_backward(
        {image, text, g_in.data(), g_cross_modal.data(), image_grad.data(), text_grad.data()}, context);
  });
  image_grad.add_to(results, "image_grad by pairs");
  text_grad.add_to(results, "text_grad by pairs");
}

void run_retrieval(const Problem& problem, Results& results) {
  const auto [n, m, d, large_tiles] = problem.shape;
  const Features &image = problem.image.features, &text = problem.text.features;
  const auto image_labels = integers(n, 2, 20), text_labels = integers(m, 3, 20);
  const GuardedArray<int64_t> row_rank(n), col_rank(m);
  run(problem, [&](const Context& context) {
    return launch_retrieval_ranks_forward(
        {image, text, image_labels.data(), text_labels.data(), row_rank.data(), col_rank.data()}, context);
  });
  results.add("row_rank", row_rank);
  results.add("col_rank", col_rank);
  const int64_t k = std::min<int64_t>(5, m);
  const GuardedArray<double> values(n * k);
  const GuardedArray<int64_t> indices(n * k);
  run(problem, [&](const Context& context) {
    return launch_similarity_top_k_forward({image, text, k, values.data(), indices.data()}, context);
  });
  results.add("top-k values", values);
  results.add("top-k indices", indices);
}

// The results of run_all(results) must not depend on the order of the threads.
template <typename RunAll>
void in_tested_orders(const Problem& problem, const RunAll& run_all) {
  const auto [n, m, d, large_tiles] = problem.shape;
  const std::string name = std::string(problem.precision.name) + " [" + std::to_string(n) + ", " +
                           std::to_string(m) + ", " + std::to_string(d) + "]";
  const int before = failures;
  // One random order; python_tests/kernels runs others. ThreadSanitizer finds a race whether or not the order
  // makes it visible, and takes long for each order.
  std::vector<NamedOrder> tested = orders();
  tested.resize(3);
  if (emulation::kThreadSanitizer) tested.erase(tested.begin() + 1);
  const std::vector<Results> all = in_orders(tested, [&] {
    Results results;
    run_all(results);
    return results;
  });
  for (size_t i = 1; i < all.size(); ++i) all[0].expect_same(all[i], name + ", " + tested[i].name);
  if (failures > before) std::printf("^ %s\n", name.c_str());
}

void run_pairs(const Problem& problem, Results& results) {
  for (const bool has_labels : {false, true}) {
    run_pair_statistics(problem, has_labels, results);
    run_sigmoid_rows(problem, has_labels, results);
  }
}

void test_pairs(const Problem& problem) {
  in_tested_orders(problem, [&](Results& results) {
    run_row_norms(problem, results);
    run_pairs(problem, results);
    run_retrieval(problem, results);
  });
}

void test_cycles(const Problem& problem) {
  in_tested_orders(problem, [&](Results& results) {
    run_cycle(problem, results);
    // Most of its work does not depend on the shape.
    if (problem.shape.n > 1) run_deflated_cycle_grams(problem, results);
  });
}

void test_hopper(const Precision& precision) {
  Problem problem(kHopperShape, precision);
  problem.hopper_blocks = 2;
  in_tested_orders(problem, [&](Results& results) {
    const int64_t before = emulation::hopper_launches();
    run_pairs(problem, results);
    // Six forward passes, the panels of four backward passes and, in bfloat16, two products of each.
    check(emulation::hopper_launches() - before == (precision.type == ElementType::kBFloat16 ? 18 : 10),
          "not all launches used the engine for Hopper GPUs");
  });
}

}  // namespace

}  // namespace cyclip::test

// The argument is the name of a precision; ctest runs the precisions side by side.
int main(int argc, char** argv) {
  using namespace cyclip::test;
  int tested = 0;
  for (const Precision& precision : kPrecisions) {
    if (argc > 1 && precision.name != std::string(argv[1])) continue;
    for (const Shape& shape : pair_shapes(precision)) test_pairs(Problem(shape, precision));
    for (const Shape& shape : kCycleShapes) test_cycles(Problem(shape, precision));
    if (precision.element_size == 2) test_hopper(precision);
    ++tested;
  }
  check(tested > 0, "unknown precision");
  return exit_code();
}
