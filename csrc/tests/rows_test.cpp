// Row-wise kernels of the best instruction set of this processor, compared with plain loops: norms,
// projections, and the factors of the cycle terms with their gradients.

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"
#include "kernels/cpu/cycle_rows.h"

namespace cyclip::test {

namespace {

using namespace cyclip::cpu;

template <typename T>
double widened(T x) {
  return static_cast<double>(x);
}
double widened(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return static_cast<double>(wide);
}

// Random numbers, rounded towards zero if X is Bf16. The first row is zero.
template <typename X>
std::vector<X> random_rows(int64_t rows, int64_t d, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<X> x(rows * d);
  for (int64_t i = d; i < rows * d; ++i) {
    const float number = normal(generator);
    if constexpr (std::is_same_v<X, Bf16>) {
      uint32_t bits;
      std::memcpy(&bits, &number, sizeof(bits));
      x[i] = static_cast<Bf16>(bits >> 16);
    } else {
      x[i] = number;
    }
  }
  return x;
}

template <typename A, typename B>
double dot(const A* a, const B* b, int64_t d) {
  double sum = 0;
  for (int64_t k = 0; k < d; ++k) sum += widened(a[k]) * widened(b[k]);
  return sum;
}

template <typename X>
void test_rows(int64_t rows, int64_t d, double tolerance, double rounding) {
  using T = ComputeType<X>;
  const std::string what = std::to_string(rows) + " x " + std::to_string(d) + ", entry ";
  const std::vector<X> image = random_rows<X>(rows, d, 1), text = random_rows<X>(rows, d, 2);
  const std::vector<T> plus = random_rows<T>(rows, d, 3), minus = random_rows<T>(rows, d, 4);

  std::vector<double> image_norms(rows), text_norms(rows);
  row_kernels<X>().norms(image.data(), rows, d, image_norms.data());
  row_kernels<X>().norms(text.data(), rows, d, text_norms.data());
  std::vector<T> projected = plus;
  row_kernels<X>().subtract_projection(image.data(), image_norms.data(), rows, d, projected.data(),
                                       projected.data());
  std::vector<X> rounded(rows * d);
  row_kernels<X>().subtract_projection_rounded(image.data(), image_norms.data(), rows, d, plus.data(),
                                               rounded.data());
  const TowerRows<X> towers = {image.data(), text.data(), image_norms.data(), text_norms.data(), rows, d};
  std::vector<T> sum(rows * d), difference(rows * d);
  std::vector<double> along(rows * kAlong), scratch(2 * d);
  cycle_row_kernels<X>().factors_forward(
      {towers, nullptr, sum.data(), difference.data(), along.data(), scratch.data()});
  std::vector<X> image_grad(rows * d), text_grad(rows * d);
  cycle_row_kernels<X>().factors_backward(
      {towers, plus.data(), minus.data(), nullptr, image_grad.data(), text_grad.data(), scratch.data()});

  for (int64_t i = 0; i < rows; ++i) {
    const X *x = image.data() + i * d, *y = text.data() + i * d;
    const double norm = std::fmax(std::sqrt(dot(x, x, d)), kEps), other = std::fmax(std::sqrt(dot(y, y, d)), kEps);
    check_close(image_norms[i], norm, 1e-14, "norm of " + what + std::to_string(i));
    std::vector<double> of_image(d), of_text(d);  // dL/dx^ and dL/dy^
    for (int64_t k = 0; k < d; ++k) {
      of_image[k] = widened(plus[i * d + k]) + widened(minus[i * d + k]);
      of_text[k] = widened(plus[i * d + k]) - widened(minus[i * d + k]);
    }
    const double along_x = dot(x, plus.data() + i * d, d) / (norm * norm);
    const double image_along = dot(x, of_image.data(), d) / (norm * norm);
    const double text_along = dot(y, of_text.data(), d) / (other * other);
    for (int64_t k = 0; k < d; ++k) {
      const int64_t at = i * d + k;
      const double x_k = widened(x[k]), y_k = widened(y[k]);
      check_close(projected[at], plus[at] - along_x * x_k, tolerance,
                  "projection of " + what + std::to_string(at));
      check_close(widened(rounded[at]), plus[at] - along_x * x_k, rounding,
                  "rounded projection of " + what + std::to_string(at));
      check_close(sum[at], x_k / norm + y_k / other, tolerance, "P of " + what + std::to_string(at));
      check_close(difference[at], x_k / norm - y_k / other, tolerance, "M of " + what + std::to_string(at));
      check_close(widened(image_grad[at]), (of_image[k] - image_along * x_k) / norm, rounding,
                  "dL/dx of " + what + std::to_string(at));
      check_close(widened(text_grad[at]), (of_text[k] - text_along * y_k) / other, rounding,
                  "dL/dy of " + what + std::to_string(at));
    }
  }
}

}  // namespace

}  // namespace cyclip::test

int main() {
  for (const int64_t rows : {1, 3, 6, 9}) {
    for (const int64_t d : {1, 7, 8, 31, 64, 77}) {
      cyclip::test::test_rows<float>(rows, d, 2e-7, 2e-7);
      cyclip::test::test_rows<double>(rows, d, 1e-14, 1e-14);
      cyclip::test::test_rows<cyclip::cpu::Bf16>(rows, d, 2e-7, 1.0 / 256);
    }
  }
  return cyclip::test::exit_code();
}
