// The factors P = X^ + Y^ and M = X^ - Y^ of both routes of the cycle terms (docs/cycle.md), and
// the conversion of their gradients to the gradients of the features.

#pragma once

#include <tuple>

#include "../../kernels/cpu/cycle_rows.h"
#include "products.h"

namespace cyclip::cpu {

inline constexpr int64_t kFactorRows = 128;  // rows of P and M per task

template <typename X>
struct Towers {
  Features<X> image, text;
  int64_t rows, d;

  Towers(const Tensor& image_features, const Tensor& text_features)
      : image(image_features), text(text_features), rows(image.rows), d(image.d) {}

  TowerRows<X> block(int64_t begin, int64_t end) const {
    return {image.row(begin),          text.row(begin), image.norms.data() + begin,
            text.norms.data() + begin, end - begin,     d};
  }
};

// Rows of P and M, or of P_ and M_ with their parts along the directions q.
template <typename T>
struct Factors {
  int64_t rows, d;
  Buffer<T> plus_data, minus_data;
  Buffer<double> along;  // [rows, kAlong]

  Factors(int64_t rows, int64_t d)
      : rows(rows), d(d), plus_data(rows * d), minus_data(rows * d), along(rows * kAlong) {}

  // Writes the rows [begin, end), computed from `towers`, which are the same rows of the features.
  template <typename X>
  void fill(const TowerRows<X>& towers, const double* directions, int64_t begin) {
    Buffer<double> scratch(2 * d);
    cycle_row_kernels<X>().factors_forward({towers, directions, plus_data.data() + begin * d,
                                            minus_data.data() + begin * d, along.data() + begin * kAlong,
                                            scratch.data()});
  }

  Matrix<const T> plus() const { return {plus_data.data(), rows, d, d}; }
  Matrix<const T> minus() const { return {minus_data.data(), rows, d, d}; }
};

// The gradients of the raw features.
template <typename X, typename T = ComputeType<X>>
struct TowerGradients {
  Tensor image, text;

  explicit TowerGradients(const Towers<X>& towers)
      : image(torch::stable::empty_like(towers.image.tensor)),
        text(torch::stable::empty_like(towers.text.tensor)) {}

  // Writes the rows [begin, end), from dL/dP and dL/dM.
  void finish(const Towers<X>& towers, int64_t begin, int64_t end, const T* plus, const T* minus,
              const CycleDeflation<T>* deflation) {
    const int64_t d = towers.d;
    Buffer<double> scratch(2 * d);
    const auto row = [&](const Tensor& gradient) {
      return static_cast<X*>(gradient.mutable_data_ptr()) + begin * d;
    };
    cycle_row_kernels<X>().factors_backward(
        {towers.block(begin, end), plus, minus, deflation, row(image), row(text), scratch.data()});
  }

  std::tuple<Tensor, Tensor> in_dtype(ScalarType dtype) const {
    return {torch::stable::to(image, dtype), torch::stable::to(text, dtype)};
  }
};

}  // namespace cyclip::cpu
