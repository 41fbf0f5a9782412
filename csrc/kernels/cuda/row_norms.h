#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

namespace cyclip::cuda {

// Norms of 16-bit features are float: a rounded norm would scale all of a row's similarities.
template <typename T>
using Norm = std::conditional_t<std::is_same_v<T, double>, double, float>;

// norms[i] = max(|x_i|, 1e-12) for `rows` rows of d elements, consecutive ones `pitch` elements apart.
// T is float, double, __half or __nv_bfloat16. Sums in double, in an order that depends on the shape
// and the alignment alone. NaN stays NaN.
template <typename T>
cudaError_t launch_row_norms_forward(const T* features, int64_t rows, int64_t d, int64_t pitch, Norm<T>* norms,
                                     cudaStream_t stream);

}  // namespace cyclip::cuda
