// Argument checks shared by all operators and backends. Messages name the argument, the value
// received and the remedy.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

namespace cyclip {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    text += (dim ? ", " : "") + std::to_string(tensor.size(dim));
  }
  return text + "]";
}

inline bool is_supported(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

inline void check_features(const Tensor& features, const char* name) {
  STD_TORCH_CHECK(features.dim() == 2, name, " must be [N, d], got shape ", shape_of(features));
  STD_TORCH_CHECK(features.size(0) > 0 && features.size(1) > 0, name, " must not be empty, got shape ",
                  shape_of(features));
  STD_TORCH_CHECK(features.size(0) < (int64_t{1} << 31), name, " must have fewer than 2^31 rows, got shape ",
                  shape_of(features), "; split the batch");
  STD_TORCH_CHECK(is_supported(features.scalar_type()), name,
                  " must be float32, float64, bfloat16 or float16; convert it with .float()");
}

inline void check_feature_pair(const Tensor& image_features, const Tensor& text_features) {
  check_features(image_features, "image_features");
  check_features(text_features, "text_features");
  STD_TORCH_CHECK(image_features.size(1) == text_features.size(1),
                  "image_features and text_features must have the same width d, got ", shape_of(image_features),
                  " and ", shape_of(text_features));
  STD_TORCH_CHECK(image_features.scalar_type() == text_features.scalar_type(),
                  "image_features and text_features must have the same dtype; convert one with .to()");
}

// Rows and columns both number below 2^31, so a larger offset could only overflow.
inline void check_offset(int64_t offset) {
  STD_TORCH_CHECK(std::abs(offset) < (int64_t{1} << 31), "offset must lie within +-2^31, got ", offset);
}

inline void check_equal_rows(const Tensor& image_features, const Tensor& text_features) {
  STD_TORCH_CHECK(image_features.size(0) == text_features.size(0),
                  "image_features and text_features must have the same number of rows, got ",
                  shape_of(image_features), " and ", shape_of(text_features));
}

// A gradient or statistic that came back through autograd: float64, one entry per row.
inline void check_vector(const Tensor& tensor, int64_t size, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size && tensor.scalar_type() == dtype, name,
                  " must be a vector of ", size, dtype == ScalarType::Long ? " int64" : " float64",
                  " values, got shape ", shape_of(tensor));
}

}  // namespace cyclip
