// One tower's features, ready for the kernels.

#pragma once

#include "../../kernels/cpu/rows.h"
#include "../../kernels/cpu/tile_kernels.h"
#include "../checks.h"
#include "buffer.h"
#include "gemm.h"
#include "parallel.h"

namespace cyclip::cpu {

// Rows per task of the row-wise kernels, and of a product.
inline int64_t row_block(int64_t rows) { return rows >= 1024 ? 256 : rows >= 128 ? 64 : 32; }

// Contiguous features with the inverses of their norms. X is the type in memory: float, to which
// 16-bit inputs may be widened exactly, double or Bf16. Features are not normalized: the tile
// kernels apply the norms.
template <typename X>
struct Features {
  using T = ComputeType<X>;

  Tensor tensor;  // owns `data`
  const X* data;
  int64_t rows, d;
  Buffer<double> norms;
  Buffer<T> inv_norms;  // padded for vector loads; rounded once, from the double norm

  explicit Features(const Tensor& features)
      : tensor(aligned(torch::stable::contiguous(in_memory_type(features)))),
        data(static_cast<const X*>(tensor.const_data_ptr())),
        rows(features.size(0)),
        d(features.size(1)),
        norms(rows),
        inv_norms(padded(rows)) {
    for_each_block(rows, row_block(rows), [&](int64_t begin, int64_t end) {
      row_kernels<X>().norms(data + begin * d, end - begin, d, norms.data() + begin);
      for (int64_t i = begin; i < end; ++i) inv_norms[i] = static_cast<T>(1 / norms[i]);
    });
  }

  const X* row(int64_t i) const { return data + i * d; }

  // out_i = gradient_i - <gradient_i, x^_i> x^_i for the rows [begin, end), of which the first is at
  // `gradient` and `out`, which may be the same.
  template <typename Out>
  void subtract_projection(int64_t begin, int64_t end, const T* gradient, Out* out) const {
    const auto kernel = [] {
      if constexpr (std::is_same_v<Out, T>) {
        return row_kernels<X>().subtract_projection;
      } else {
        return row_kernels<X>().subtract_projection_rounded;
      }
    }();
    kernel(row(begin), norms.data() + begin, end - begin, d, gradient, out);
  }

  static Tensor in_memory_type(const Tensor& features) {
    if constexpr (std::is_same_v<X, Bf16>)
      return features;
    else
      return torch::stable::to(features, kDtype<T>);
  }

  // The order of the additions in the library's matrix products depends on the alignment of memory, so a view into
  // a larger tensor would differ in its last bits from its clone. Fresh memory is aligned to 64 bytes.
  static Tensor aligned(const Tensor& features) {
    const auto address = reinterpret_cast<uintptr_t>(features.const_data_ptr());
    return address % 64 == 0 ? features : torch::stable::clone(features);
  }

  Matrix<const T> block(int64_t begin, int64_t end) const { return {row(begin), end - begin, d, d}; }
};

// Calls f with a value of the type in which `features` are read: theirs, or float for float16.
template <typename F>
auto with_feature_type(const Tensor& features, const F& f) {
  const ScalarType dtype = features.scalar_type();
  return dtype == ScalarType::Double ? f(double{}) : dtype == ScalarType::BFloat16 ? f(Bf16{}) : f(float{});
}

inline double scalar_value(const Tensor& scalar, const char* name) {
  check_scalar(scalar, name);
  return *torch::stable::to(scalar, ScalarType::Double).const_data_ptr<double>();
}

inline Tensor scalar_tensor(double value) {
  Tensor tensor = empty<double>({});
  *tensor.mutable_data_ptr<double>() = value;
  return tensor;
}

}  // namespace cyclip::cpu
