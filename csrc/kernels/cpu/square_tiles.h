// Passes over square matrices that process an entry together with its mirror image across the
// diagonal. They use small tiles, because the entries of a column of a large matrix map to the same
// cache set again and again. Each call processes the rows [begin, end), where begin is a multiple
// of kSquareTile, up to the diagonal, and the mirror images of these entries, so calls with
// different rows may run concurrently. Matrices are row-major, [n, n], without padding.

#pragma once

#include <cstdint>

namespace cyclip::cpu {

inline constexpr int64_t kSquareTile = 8;

// The entry (i, j) of a matrix of low rank is sum_r q_ri rows_rj + cols_ri q_rj, r < kDirections.
struct LowRank {
  const double* directions;  // q, [kDirections, n]
  const double* rows;
  const double* cols;
};

// Copies the lower triangle to the upper one.
void mirror_lower(double* matrix, int64_t n, int64_t begin, int64_t end);

// matrix += low rank, without mirror images.
void add_low_rank(double* matrix, int64_t n, const LowRank& low_rank, int64_t begin, int64_t end);

// out = from + from', minus the low-rank matrix, if any, which is symmetric in this case.
template <typename T>
void symmetrize(const double* from, int64_t n, const LowRank* low_rank, int64_t begin, int64_t end, T* out);

// out = from, minus the low-rank matrix, if any, without mirror images.
template <typename T>
void subtract_low_rank(const double* from, int64_t n, const LowRank* low_rank, int64_t begin, int64_t end, T* out);

// For W = P M' (docs/cycle.md): |(W + W')/2|^2 and |(W - W')/2|^2.
struct CycleSums {
  double in_modal = 0, cross_modal = 0;
};
template <typename T>
CycleSums cycle_pair_sums(const T* w, int64_t n, int64_t begin, int64_t end);

// out = grads.in_modal (W + W') + grads.cross_modal (W - W'); `out` may be W itself.
template <typename T>
void cycle_pair_gradients(const T* w, int64_t n, const CycleSums& grads, int64_t begin, int64_t end, T* out);

}  // namespace cyclip::cpu
