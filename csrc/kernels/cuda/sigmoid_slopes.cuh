// The derivative of the sigmoid loss by the logits of the negatives, and of positives by their labels.

#pragma once

#include "sigmoid.cuh"

namespace cyclip::cuda {

// dL/dz_ij = g_i logistic(z_ij), and -g_i logistic(-z_ij) for positives.
template <typename T, typename MaybeLabels>
struct Sigmoid {
  static constexpr bool kHasBias = true;

  const double* grad_rows;
  const double* logit_scale;
  const double* logit_bias;
  MaybeLabels labels;

  template <typename Tile, typename Body>
  __device__ void with_slopes(const Place<Tile>& place, const Window& window, const Body& body) const {
    const Logits<T> logit(logit_scale, logit_bias);
    T gradients[Tile::kThreadRows];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      gradients[a] = static_cast<T>(window.of_row(grad_rows, place.row(a)));
    }
    const uint64_t positives = more_positives(place, window, labels);
    body([&](int a, int b, T cosine) {
      const bool is_positive = test<Tile>(positives, a, b) && fabs(cosine) != -kMasked<T>;
      const T of_cosine = logit(cosine), z = is_positive ? -of_cosine : of_cosine, u = decay(z);
      const T gradient = is_positive ? -gradients[a] : gradients[a];
      return gradient * (z > 0 ? T{1} : u) * one_over_one_plus(u);
    });
  }
};

}  // namespace cyclip::cuda
