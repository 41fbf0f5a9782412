// Deflation (docs/cycle.md). Where all images and texts lie in a narrow cone, A = P'P has one large direction in
// which B = M'M has next to nothing; then <A, B> is small beside |A||B|, and an entry rounded to float would
// show. So P and M go without their parts along the main directions of both towers into products in T, and these
// parts, of rank kDirections, are put back in double.
//
// Directions q, [kDirections, d], and v of the same shape are plain pointers; q may be null: no cone.

#pragma once

#include <array>
#include <cmath>
#include <optional>

#include "../../kernels/cpu/square_tiles.h"
#include "cycle_factors.h"
#include "triangle.h"

namespace cyclip::cpu {

// Mean square of a tower's rows along its main direction, above which they form a cone; and what a first look
// has to find for a second.
inline constexpr double kCone = 0.75, kPerhapsCone = 0.2;

inline double dot(const double* a, const double* b, int64_t d) {
  double sum = 0;
  for (int64_t k = 0; k < d; ++k) sum += a[k] * b[k];
  return sum;
}

// sum_i <x^_i, v> x^_i of each tower with its own v, or without v the sums of the rows; [kDirections, d].
template <typename T>
Buffer<double> weighted_sums(const Towers<T>& towers, const double* v) {
  const int64_t n = towers.rows, d = towers.d;
  const int64_t block = std::max(kFactorRows, ceil_div(n, 64)), blocks = ceil_div(n, block);
  Buffer<double> parts(blocks * kDirections * d, 0.0), sums(kDirections * d, 0.0);
  for_each_block(n, block, [&](int64_t begin, int64_t end) {
    double* part = parts.data() + begin / block * kDirections * d;
    const TowerRows<T> rows = towers.block(begin, end);
    const auto& kernels = cycle_row_kernels<T>();
    kernels.add_weighted(rows.image, rows.image_norms, v, rows.rows, d, part);
    kernels.add_weighted(rows.text, rows.text_norms, v ? v + d : nullptr, rows.rows, d, part + d);
  });
  for (int64_t part = 0; part < blocks; ++part) {
    for (int64_t k = 0; k < kDirections * d; ++k) sums[k] += parts[part * kDirections * d + k];
  }
  return sums;
}

// v /= |v|, or zero where that is no more than `tolerance`.
inline void make_unit(double* v, int64_t d, double tolerance) {
  const double norm = std::sqrt(dot(v, v, d));
  for (int64_t k = 0; k < d; ++k) v[k] = norm > tolerance ? v[k] / norm : 0;
}

// The main directions of both towers, orthonormal; one that has nothing of its own is zero, which deflates
// nothing. Without a cone there are none: deflation would only round what may be exact. Two steps of the power
// method from the sum of the rows, with the first one counted twice: where rows lie at both ends of a line
// their sum may vanish.
template <typename T>
std::optional<Buffer<double>> cone_directions(const Towers<T>& towers) {
  const int64_t d = towers.d;
  Buffer<double> q = weighted_sums(towers, nullptr);
  const TowerRows<T> first_rows = towers.block(0, 1);
  for (int64_t k = 0; k < d; ++k) {
    q[k] += first_rows.image[k] / first_rows.image_norms[0];
    q[d + k] += first_rows.text[k] / first_rows.text_norms[0];
  }
  double *first = q.data(), *second = first + d;
  for (const double least : {kPerhapsCone, kCone}) {
    make_unit(first, d, 0);
    make_unit(second, d, 0);
    const Buffer<double> next = weighted_sums(towers, q.data());
    std::copy_n(next.data(), kDirections * d, q.data());
    const double largest = std::sqrt(std::max(dot(first, first, d), dot(second, second, d)));
    if (!(largest > least * static_cast<double>(towers.rows))) return std::nullopt;  // also for NaN
  }
  const double before = std::sqrt(dot(second, second, d));
  make_unit(first, d, 0);
  for (int pass = 0; pass < 2; ++pass) {  // the second removes what rounding left in the first
    const double along = dot(first, second, d);
    for (int64_t k = 0; k < d; ++k) second[k] -= along * first[k];
  }
  make_unit(second, d, 1e-8 * before);
  return q;
}

using Core = std::array<double, kDirections * kDirections>;

// v += factor c q.
inline void add_combination(double factor, const Core& c, const double* q, int64_t d, double* v) {
  for (int64_t r = 0; r < kDirections; ++r) {
    for (int64_t s = 0; s < kDirections; ++s) {
      const double weight = factor * c[r * kDirections + s];
      for (int64_t k = 0; k < d; ++k) v[r * d + k] += weight * q[s * d + k];
    }
  }
}

// v q'.
inline Core along_directions(const double* v, const double* q, int64_t d) {
  Core result;
  for (int64_t r = 0; r < kDirections; ++r) {
    for (int64_t s = 0; s < kDirections; ++s) {
      result[r * kDirections + s] = dot(v + r * d, q + s * d, d);
    }
  }
  return result;
}

// q g and q g', [kDirections, d] both.
struct Sides {
  Buffer<double> left, right;

  Sides(const double* g, const double* q, int64_t d) : left(kDirections * d), right(kDirections * d) {
    const Matrix<const double> directions = {q, kDirections, d, d}, matrix = {g, d, d, d};
    for_each_block(d, kFactorRows, [&](int64_t begin, int64_t end) {
      const Matrix<const double> rows = matrix.row_block(begin, end);
      const Matrix<const double> cols = matrix.col_block(begin, end);
      gemm<double>({left.data() + begin, kDirections, end - begin, d}, directions, cols);
      gemm<double>({right.data() + begin, kDirections, end - begin, d}, directions, rows.transposed());
    });
  }
};

// What deflation keeps apart, summed over rows: along'P_ and along'M_, [kAlong, d] each, and along'along.
struct Moments {
  double *plus, *minus, *along;

  static int64_t size(int64_t d) { return 2 * kAlong * d + kAlong * kAlong; }
  Moments(double* data, int64_t d) : plus(data), minus(data + kAlong * d), along(data + 2 * kAlong * d) {}

  Core core(int64_t row, int64_t col) const {
    Core part;
    for (int64_t r = 0; r < kDirections; ++r) {
      for (int64_t s = 0; s < kDirections; ++s) part[r * kDirections + s] = along[(row + r) * kAlong + col + s];
    }
    return part;
  }
};

// From g = L_'R_ with its rounding errors to L'R: takes out what it has along q, which should be nothing, and
// puts in l'R_, r'L_ (`rows` and `cols`, [kDirections, d]) and l'r (`core`), where l = L q and r = R q.
inline void restore(double* g, const double* q, int64_t d, const double* rows, const double* cols, Core core) {
  Sides sides(g, q, d);
  const Core error = along_directions(sides.left.data(), q, d);
  for (size_t r = 0; r < core.size(); ++r) core[r] -= error[r];
  for (int64_t k = 0; k < kDirections * d; ++k) {
    sides.left[k] = rows[k] - sides.left[k];
    sides.right[k] = cols[k] - sides.right[k];
  }
  for (double* side : {sides.left.data(), sides.right.data()}) {
    add_combination(-1, along_directions(side, q, d), q, d, side);
  }
  add_combination(1, core, q, d, sides.left.data());
  for_each_block(d, kTriangleRows, [&](int64_t begin, int64_t end) {
    add_low_rank(g, d, {q, sides.left.data(), sides.right.data()}, begin, end);
  });
}

// An upstream gradient g, or g + g', without what it has along q, in T.
template <typename T>
struct DeflatedGradient {
  std::optional<Sides> sides;  // q g and q g', or the sum of both twice
  Buffer<T> rest;              // [d, d]

  DeflatedGradient(const double* g, const double* q, int64_t d, bool symmetric) : rest(d * d) {
    std::optional<LowRank> low_rank;
    Buffer<double> rows(kDirections * d);
    if (q != nullptr) {
      sides.emplace(g, q, d);
      double *left = sides->left.data(), *right = sides->right.data();
      if (symmetric) {
        for (int64_t k = 0; k < kDirections * d; ++k) left[k] = right[k] += left[k];
      }
      std::copy_n(left, kDirections * d, rows.data());
      add_combination(symmetric ? -0.5 : -1, along_directions(left, q, d), q, d, rows.data());
      low_rank = {q, rows.data(), symmetric ? rows.data() : right};
    }
    const auto pass = symmetric ? symmetrize<T> : subtract_low_rank<T>;
    for_each_triangle_block(d, [&](int64_t begin, int64_t end) {
      pass(g, d, low_rank ? &*low_rank : nullptr, begin, end, rest.data());
    });
  }

  Matrix<const T> matrix(int64_t d) const { return {rest.data(), d, d, d}; }
};

}  // namespace cyclip::cpu
