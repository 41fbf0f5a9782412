// Deflation (docs/cycle.md, whose names are used here). If all images and texts are in a narrow
// cone, A = P'P has one large direction in which B = M'M is almost zero. Then <A, B> is small
// compared with |A||B|, and rounding an entry to float would be noticeable. So the products in T
// are those of P_ and M_, without the parts p q' and m q' along the main directions of both towers.
// These parts have rank kDirections and are added in double.
//
// q is [kDirections, d], the transpose of q in docs/cycle.md, and null if there is no cone.

#pragma once

#include <array>
#include <cmath>
#include <optional>

#include "../../kernels/cpu/square_tiles.h"
#include "cycle_factors.h"
#include "triangle.h"

namespace cyclip::cpu {

// A tower is a cone if the mean square of its rows along the main direction exceeds kCone. The
// first of two steps must find at least kPossibleCone.
inline constexpr double kCone = 0.75, kPossibleCone = 0.2;

inline double dot(const double* a, const double* b, int64_t d) {
  double sum = 0;
  for (int64_t k = 0; k < d; ++k) sum += a[k] * b[k];
  return sum;
}

// sums += sum_i <x^_i, v> x^_i of each tower with its own v, or the sums of the rows if v is null;
// [kDirections, d].
template <typename X>
void add_weighted(const TowerRows<X>& towers, const double* v, double* sums) {
  const auto& kernels = cycle_row_kernels<X>();
  kernels.add_weighted(towers.image, towers.image_norms, v, towers.rows, towers.d, sums);
  kernels.add_weighted(towers.text, towers.text_norms, v ? v + towers.d : nullptr, towers.rows, towers.d,
                       sums + towers.d);
}

// The same for all rows.
template <typename X>
Buffer<double> weighted_sums(const Towers<X>& towers, const double* v) {
  const int64_t n = towers.rows, d = towers.d;
  const int64_t block = std::max(kFactorRows, ceil_div(n, 64)), blocks = ceil_div(n, block);
  Buffer<double> parts(blocks * kDirections * d, 0.0), sums(kDirections * d, 0.0);
  for_each_block(n, block, [&](int64_t begin, int64_t end) {
    double* part = parts.data() + begin / block * kDirections * d;
    add_weighted(towers.block(begin, end), v, part);
  });
  for (int64_t part = 0; part < blocks; ++part) {
    for (int64_t k = 0; k < kDirections * d; ++k) sums[k] += parts[part * kDirections * d + k];
  }
  return sums;
}

// v /= |v|, or zero if |v| is at most `tolerance`.
inline void make_unit(double* v, int64_t d, double tolerance) {
  const double norm = std::sqrt(dot(v, v, d));
  for (int64_t k = 0; k < d; ++k) v[k] = norm > tolerance ? v[k] / norm : 0;
}

// Returns q, the main directions of both towers, orthonormal. A direction that depends on the other
// one is zero and deflates nothing. Without a cone it returns no directions, because deflation
// would only round numbers that may be exact. Two steps of the power method start at the sum of the
// rows, in which the first row counts twice, because the plain sum of rows at both ends of a line
// may vanish.
template <typename X>
std::optional<Buffer<double>> cone_directions(const Towers<X>& towers) {
  const int64_t d = towers.d;
  Buffer<double> q = weighted_sums(towers, nullptr);
  add_weighted(towers.block(0, 1), /*v=*/nullptr, q.data());
  double *first = q.data(), *second = first + d;
  for (const double least : {kPossibleCone, kCone}) {
    make_unit(first, d, 0);
    make_unit(second, d, 0);
    const Buffer<double> next = weighted_sums(towers, q.data());
    std::copy_n(next.data(), kDirections * d, q.data());
    const double largest = std::sqrt(std::max(dot(first, first, d), dot(second, second, d)));
    if (!(largest > least * static_cast<double>(towers.rows))) return std::nullopt;  // also true for NaN
  }
  const double before = std::sqrt(dot(second, second, d));
  make_unit(first, d, 0);
  for (int pass = 0; pass < 2; ++pass) {  // the second pass removes the rounding errors of the first
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

// The products q G and (G q)', [kDirections, d] each, with a d x d matrix G.
struct Sides {
  Buffer<double> q_g, g_q;

  Sides(const double* g, const double* q, int64_t d) : q_g(kDirections * d), g_q(kDirections * d) {
    const Matrix<const double> directions = {q, kDirections, d, d}, matrix = {g, d, d, d};
    for_each_block(d, kFactorRows, [&](int64_t begin, int64_t end) {
      const Matrix<const double> rows = matrix.row_block(begin, end);
      const Matrix<const double> cols = matrix.col_block(begin, end);
      gemm<double>({q_g.data() + begin, kDirections, end - begin, d}, directions, cols);
      gemm<double>({g_q.data() + begin, kDirections, end - begin, d}, directions, rows.transposed());
    });
  }
};

// Sums over rows of the parts p = P q and m = M q, which are stored in `along` = (p m): (p m)'P_
// and (p m)'M_, [kAlong, d] each, and (p m)'(p m).
struct Moments {
  double *along_plus, *along_minus, *along_along;
  int64_t d;

  static int64_t size(int64_t d) { return 2 * kAlong * d + kAlong * kAlong; }
  Moments(double* data, int64_t d)
      : along_plus(data), along_minus(data + kAlong * d), along_along(data + 2 * kAlong * d), d(d) {}

  // p'P_, p'M_, m'P_ and m'M_, [kDirections, d] each.
  const double* p_plus() const { return along_plus; }
  const double* p_minus() const { return along_minus; }
  const double* m_plus() const { return along_plus + kDirections * d; }
  const double* m_minus() const { return along_minus + kDirections * d; }

  Core p_p() const { return core(0, 0); }
  Core p_m() const { return core(0, kDirections); }
  Core m_m() const { return core(kDirections, kDirections); }

 private:
  Core core(int64_t row, int64_t col) const {
    Core part;
    for (int64_t r = 0; r < kDirections; ++r) {
      for (int64_t s = 0; s < kDirections; ++s) {
        part[r * kDirections + s] = along_along[(row + r) * kAlong + col + s];
      }
    }
    return part;
  }
};

// Turns `gram` = L_'R_, a product in T, into L'R, where L and R are P or M with l = L q and r = R q. It removes
// the part of `gram` along q, which is only its rounding error, and adds the terms with l'R_, r'L_ and l'r.
inline void restore(double* gram, const double* q, int64_t d, const double* l_right, const double* r_left,
                    Core l_r) {
  Sides sides(gram, q, d);
  double *left = sides.q_g.data(), *right = sides.g_q.data();
  const Core error = along_directions(left, q, d);
  for (size_t r = 0; r < l_r.size(); ++r) l_r[r] -= error[r];
  for (int64_t k = 0; k < kDirections * d; ++k) {
    left[k] = l_right[k] - left[k];
    right[k] = r_left[k] - right[k];
  }
  for (double* side : {left, right}) add_combination(-1, along_directions(side, q, d), q, d, side);
  add_combination(1, l_r, q, d, left);
  for_each_block(d, kTriangleRows,
                 [&](int64_t begin, int64_t end) { add_low_rank(gram, d, {q, left, right}, begin, end); });
}

// G_ = (1 - qq') G (1 - qq') in T, for an upstream gradient G = g, or G = g + g' if `symmetric`.
template <typename T>
struct DeflatedGradient {
  std::optional<Sides> sides;  // of G
  Buffer<T> deflated;          // G_, [d, d]

  DeflatedGradient(const double* g, const double* q, int64_t d, bool symmetric) : deflated(d * d) {
    std::optional<LowRank> low_rank;
    Buffer<double> rows(kDirections * d);
    if (q != nullptr) {
      sides.emplace(g, q, d);
      double *left = sides->q_g.data(), *right = sides->g_q.data();
      if (symmetric) {
        for (int64_t k = 0; k < kDirections * d; ++k) left[k] = right[k] += left[k];
      }
      std::copy_n(left, kDirections * d, rows.data());
      add_combination(symmetric ? -0.5 : -1, along_directions(left, q, d), q, d, rows.data());
      low_rank = {q, rows.data(), symmetric ? rows.data() : right};
    }
    const auto pass = symmetric ? symmetrize<T> : subtract_low_rank<T>;
    for_each_triangle_block(d, [&](int64_t begin, int64_t end) {
      pass(g, d, low_rank ? &*low_rank : nullptr, begin, end, deflated.data());
    });
  }

  Matrix<const T> matrix(int64_t d) const { return {deflated.data(), d, d, d}; }
};

}  // namespace cyclip::cpu
