// The derivative of the softmax statistics of the negatives by the logits.

#pragma once

#include <climits>

#include "cosines.cuh"
#include "labels.cuh"

namespace cyclip::cuda {

// Softmax weights g e^(z - lse) in base 2: the integer shift nearest to lse / ln 2, with the
// remainder folded into the weight.
template <typename T>
struct alignas(2 * sizeof(T)) Weight {
  T weight;
  int shift;
};

// The weights of a thread's lines for one common shift, so that one exponential serves the row and
// the column of an entry.
template <typename Tile>
struct CommonShift {
  using T = typename Tile::Accumulator;
  // An entry that is 2^-62 of a line's sum or smaller may become zero.
  static constexpr int kMostSpread = 64;
  static constexpr T kMostWeight = static_cast<T>(0x1p+60);

  int largest = INT_MIN, smallest = INT_MAX;
  T heaviest = 0;

  __device__ void include(const Weight<T>& line) {
    largest = line.shift > largest ? line.shift : largest;
    smallest = line.shift < smallest ? line.shift : smallest;
    heaviest = fmax(heaviest, fabs(line.weight));
  }
  __device__ void include(const CommonShift& others) {
    largest = others.largest > largest ? others.largest : largest;
    smallest = others.smallest < smallest ? others.smallest : smallest;
    heaviest = fmax(heaviest, others.heaviest);
  }
  // Whether no weight overflows and no entry that counts underflows.
  __device__ bool suffices() const {
    return int64_t{largest} - smallest <= kMostSpread && heaviest <= kMostWeight;
  }
  __device__ T weight(const Weight<T>& line) const {
    return line.weight * bit_cast<T>((largest - line.shift + 127) << 23);
  }
};

// dL/dz_ij = u_i e^(z_ij - r_i) + v_j e^(z_ij - c_j).
template <typename T, typename MaybeLabels>
struct Softmax {
  static constexpr bool kHasBias = false;

  const Weight<T>* rows;
  const Weight<T>* cols;
  const double* logit_scale;
  MaybeLabels labels;

  // Only in float does one exponential serve both sides if it can: in double, both versions
  // together need more registers than there are.
  template <typename Tile, typename Body>
  __device__ void with_slopes(const Place<Tile>& place, const Window& window, const Body& body) const {
    const auto base2 = masking_scale(base2_scale<T>(*logit_scale));
    Weight<T> of_row[Tile::kThreadRows], of_col[Tile::kThreadCols];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) of_row[a] = window.of_row(rows, place.row(a));
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) of_col[b] = window.of_col(cols, place.col(b));
    if constexpr (sizeof(T) == sizeof(float)) {
      CommonShift<Tile> common;
      for (const auto& line : of_row) common.include(line);
      for (const auto& line : of_col) common.include(line);
      if (common.suffices()) {
        for (auto& line : of_row) line.weight = common.weight(line);
        for (auto& line : of_col) line.weight = common.weight(line);
        const T shift = static_cast<T>(common.largest);
        body([&](int a, int b, T cosine) {
          return (of_row[a].weight + of_col[b].weight) * exp2_scaled(cosine, base2, shift);
        });
        return;
      }
    }
    body([&](int a, int b, T cosine) {
      return of_row[a].weight * exp2_scaled(cosine, base2, static_cast<T>(of_row[a].shift)) +
             of_col[b].weight * exp2_scaled(cosine, base2, static_cast<T>(of_col[b].shift));
    });
  }
};

}  // namespace cyclip::cuda
