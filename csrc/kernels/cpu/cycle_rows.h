// Row-wise kernels of the cycle terms (docs/cycle.md): from features to P = X^ + Y^ and M = X^ - Y^, and from
// dL/dP and dL/dM back to the features. One table per instruction set, as in tile_kernels.h.
//
// Deflated rows, P_ = P - (P q) q' and M_ = M - (M q) q', lack their parts along kDirections
// orthonormal directions q, [kDirections, d]; a direction may also be zero. Those parts are stored
// in double: `along` holds <p, q_0>, <p, q_1>, <m, q_0>, <m, q_1> for each row. Features X are float, double or
// Bf16; T is their compute type. Matrices are row-major without padding.

#pragma once

#include <cstdint>

#include "rows.h"

namespace cyclip::cpu {

inline constexpr int kDirections = 2;
inline constexpr int kAlong = 2 * kDirections;

// Some raw rows of both towers, with their norms.
template <typename X>
struct TowerRows {
  const X* image;             // [rows, d]
  const X* text;              // [rows, d]
  const double* image_norms;  // [rows]
  const double* text_norms;   // [rows]
  int64_t rows, d;
};

template <typename X, typename T = ComputeType<X>>
struct CycleFactorsForward {
  TowerRows<X> towers;
  const double* directions;  // [kDirections, d], or null: P and M themselves
  T* plus;                   // [rows, d]
  T* minus;                  // [rows, d]
  double* along;             // [rows, kAlong], unless directions is null
  double* scratch;           // [2, d]
};

// The symmetric d x d matrices G_a, G_b and a third one, K, act on deflated rows as
//
//     dL/dP = P G_a + M K' = (P_ G_a_ + M_ K_') + (P_ G_a q + M_ K'q) q' + (P q)(G_a q)' + (M q)(K q)'
//     dL/dM = M G_b + P K  = (M_ G_b_ + P_ K_ ) + (M_ G_b q + P_ K q ) q' + (M q)(G_b q)' + (P q)(K'q)'
//
// The first bracket is a product in T; the kernel adds the other terms.
template <typename T>
struct CycleDeflation {
  const double* directions;  // q, [kDirections, d]
  const double* plus;        // G_a q, [kDirections, d]
  const double* minus;       // G_b q
  const double* cross;       // K q, or null: no K
  const double* cross_left;  // K' q
  const T* plus_rows;        // P_, [rows, d]
  const T* minus_rows;       // M_
  const double* along;       // [rows, kAlong]
};

template <typename X, typename T = ComputeType<X>>
struct CycleFactorsBackward {
  TowerRows<X> towers;
  const T* plus;                       // dL/dP, or its product in T, [rows, d]
  const T* minus;                      // dL/dM
  const CycleDeflation<T>* deflation;  // null: none
  X* image_grad;                       // [rows, d], in terms of the raw features
  X* text_grad;
  double* scratch;  // [2, d]
};

template <typename X>
struct CycleRowKernels {
  // sums += sum_i <x^_i, pivot> x^_i; without pivot, sum_i x^_i.
  void (*add_weighted)(const X* x, const double* norms, const double* pivot, int64_t rows, int64_t d,
                       double* sums);
  void (*factors_forward)(const CycleFactorsForward<X>&);
  // sums[a, k] = sum_i along[i, a] factor[i, k]; sums is [kAlong, d].
  void (*along_products)(const double* along, const ComputeType<X>* factor, int64_t rows, int64_t d, double* sums);
  void (*factors_backward)(const CycleFactorsBackward<X>&);
};

// Returns the best table that this processor can run.
template <typename X>
const CycleRowKernels<X>& cycle_row_kernels();

}  // namespace cyclip::cpu
