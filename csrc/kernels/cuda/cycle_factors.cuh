// P = X^ + Y^ and M = X^ - Y^, from which both routes to the cycle terms start (docs/cycle.md), and the way
// back from their gradients to those of the raw features.

#pragma once

#include "host.h"
#include "operand_tile.cuh"

namespace cyclip::cuda {

// Two matrices [rows, d], which belong to P and M or to their gradients, for some rows of the features.
// Padding from d to the pitch, a multiple of a chunk, keeps rows aligned; in P and M it is zero.
template <typename Work>
struct CycleFactors {
  Work* plus;
  Work* minus;
  int64_t rows, d, pitch;

  static CycleFactors allocate(int64_t rows, int64_t d, Workspace& workspace) {
    const int64_t pitch = pitch_of(d);
    return {workspace.take<Work>(rows * pitch), workspace.take<Work>(rows * pitch), rows, d, pitch};
  }
  static int64_t pitch_of(int64_t d) { return round_up(d, kChunk<Work>); }

  CycleFactors first(int64_t count) const { return {plus, minus, count, d, pitch}; }

  Operand<Work> plus_by_rows() const { return {plus, rows, d, pitch}; }
  Operand<Work> minus_by_rows() const { return {minus, rows, d, pitch}; }
  Operand<Work> plus_by_columns() const { return {plus, d, rows, pitch}; }
  Operand<Work> minus_by_columns() const { return {minus, d, rows, pitch}; }
};

// The raw features, and room for the norms of their rows.
struct CycleFeatures {
  Features image, text;
  double* image_norms;  // [n]
  double* text_norms;   // [n]

  static CycleFeatures of(const Features& image, const Features& text, Workspace& workspace) {
    return {image, text, workspace.take<double>(image.rows), workspace.take<double>(text.rows)};
  }
};

// x 1/|x|, rounded. Written as a multiply-add that adds nothing, because the compiler would fuse a plain
// product with the difference that follows, and M of equal rows would be its rounding error and not zero.
template <typename Work, typename T>
__device__ inline Work normalized(T x, Work inv_norm) {
  return multiply_add(static_cast<Work>(widen(x)), inv_norm, Work{0});
}

// Calls f with a value of the features' type.
template <typename Work, typename F>
Error with_element(ElementType type, const F& f) {
  if constexpr (std::is_same_v<Work, double>) {
    if (type == ElementType::kFloat64) return f(double{});
  }
  switch (type) {
    case ElementType::kBFloat16:
      return f(bf16{});
    case ElementType::kFloat16:
      return f(f16{});
    default:
      return f(float{});
  }
}

// Fills P and M of the rows from `begin`, as many as they have, and these rows' norms. Work is double, or
// float if the features are not double.
template <typename Work>
Error launch_cycle_factors_forward(const CycleFeatures& features, int64_t begin, const CycleFactors<Work>& factors,
                                   const Context& context);

// From dL/dP and dL/dM of the same rows, and their norms: dL/dX^ = dL/dP + dL/dM, dL/dY^ = dL/dP - dL/dM, then
// the derivative of normalization. The gradients are [n, d] in the type of the features.
template <typename Work>
Error launch_cycle_factors_backward(const CycleFeatures& features, int64_t begin,
                                    const CycleFactors<Work>& gradients, void* image_grad, void* text_grad,
                                    const Context& context);

// How many rows of P and M the Gram route works on at a time, where a row takes so many bytes.
inline int64_t cycle_chunk_rows(int64_t rows, int64_t row_bytes, const Context& context) {
  constexpr int64_t kRowUnit = 128;
  const int64_t affordable = context.panel_bytes / 4 / row_bytes;  // panels are the larger part of a loss
  return std::min(rows, std::max(affordable / kRowUnit * kRowUnit, kRowUnit));
}

}  // namespace cyclip::cuda
