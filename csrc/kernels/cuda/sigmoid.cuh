// The pairwise sigmoid loss: softplus(-l_ij z_ij) with z = s S + b, l = 1 for the positive and -1
// for all others. Negatives are entries of tiles, in the arithmetic of the tile. The positive of a
// row is a single entry, computed separately in double from the raw features.

#pragma once

#include "cosines.cuh"
#include "labels.cuh"
#include "rows.cuh"
#include "tower.cuh"

namespace cyclip::cuda {

// ---------------------------------------------------------------- negatives

// The logit of a masked entry is so low that its loss and its gradient are zero.
template <typename T>
struct Logits {
  T scale, bias;

  __device__ Logits(const double* logit_scale, const double* logit_bias)
      : scale(masking_scale(static_cast<T>(usable_scale(*logit_scale)))), bias(static_cast<T>(*logit_bias)) {}

  __device__ T operator()(T cosine) const { return multiply_add(cosine, scale, bias); }
};

// e^(-|z|), from which both softplus and its derivative are computed without overflow.
template <typename T>
__device__ inline T decay(T z) {
  return exp2_scaled(-fabs(z), base2_scale<T>(1), T{0});
}

// 1 / (1 + u) for 0 <= u <= 1.
__device__ inline float one_over_one_plus(float u) { return reciprocal_approximately(1 + u); }
__device__ inline double one_over_one_plus(double u) { return 1 / (1 + u); }

// ---------------------------------------------------------------- positives

__device__ inline double softplus(double z) { return (z > 0 ? z : 0) + log1p(exp(-fabs(z))); }

__device__ inline double logistic(double z) { return 1 / (1 + exp(-z)); }

struct PositivePairs {
  Features image, text;
  const double* image_norms;
  const double* text_norms;
  int64_t offset;
  const double* logit_scale;
  const double* logit_bias;

  __device__ bool exists(int64_t row) const { return row + offset >= 0 && row + offset < text.rows; }

  // S_ij on all lanes of a warp, where T is the type of the features.
  template <typename T>
  __device__ double cosine(int64_t row, int lane) const {
    const T* x = static_cast<const T*>(image.data) + row * image.pitch;
    const T* y = static_cast<const T*>(text.data) + (row + offset) * text.pitch;
    double dot = 0;
    for (int64_t k = lane; k < image.d; k += kWarpSize) dot += static_cast<double>(widen(x[k])) * widen(y[k]);
    return warp_sum(dot) / image_norms[row] / text_norms[row + offset];
  }

  __device__ double logit(double cosine) const { return usable_scale(*logit_scale) * cosine + *logit_bias; }
};

}  // namespace cyclip::cuda
