// Argument checks shared by all operators and backends. Messages name the argument, the value
// received and the remedy.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
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

inline void check_feature_pair(const Tensor& rows, const Tensor& cols, const char* row_name = "image_features",
                               const char* col_name = "text_features") {
  check_features(rows, row_name);
  check_features(cols, col_name);
  STD_TORCH_CHECK(rows.size(1) == cols.size(1), row_name, " and ", col_name, " must have the same width d, got ",
                  shape_of(rows), " and ", shape_of(cols));
  STD_TORCH_CHECK(rows.scalar_type() == cols.scalar_type(), row_name, " and ", col_name,
                  " must have the same dtype; convert one with .to()");
}

// There are fewer than 2^31 rows and columns, so a larger offset could only overflow.
inline void check_offset(int64_t offset) {
  constexpr int64_t limit = int64_t{1} << 31;
  STD_TORCH_CHECK(-limit < offset && offset < limit, "offset must lie within +-2^31, got ", offset);
}

inline void check_equal_rows(const Tensor& image_features, const Tensor& text_features) {
  STD_TORCH_CHECK(image_features.size(0) == text_features.size(0),
                  "image_features and text_features must have the same number of rows, got ",
                  shape_of(image_features), " and ", shape_of(text_features));
}

inline void check_scalar(const Tensor& scalar, const char* name) {
  STD_TORCH_CHECK(scalar.numel() == 1, name, " must hold one number, got shape ", shape_of(scalar));
}

inline void check_k(int64_t k, const Tensor& candidate_features) {
  STD_TORCH_CHECK(k >= 1 && k <= candidate_features.size(0), "k must lie in 1 ... ", candidate_features.size(0),
                  ", the number of candidates, got ", k);
}

// A contiguous argument with one entry per row: labels (int64), or statistics and gradients that
// autograd passes back (float64, or int64 indices).
template <typename E>
struct Vector {
  Tensor tensor;  // owns `data`
  const E* data;

  Vector(const Tensor& argument, int64_t size, const char* name) : tensor(checked(argument, size, name)) {
    data = tensor.template const_data_ptr<E>();
  }

 private:
  static Tensor checked(const Tensor& argument, int64_t size, const char* name) {
    constexpr ScalarType dtype = torch::headeronly::CppTypeToScalarType<E>::value;
    STD_TORCH_CHECK(argument.dim() == 1 && argument.size(0) == size && argument.scalar_type() == dtype, name,
                    " must be a vector of ", size, dtype == ScalarType::Long ? " int64" : " float64",
                    " values, got shape ", shape_of(argument));
    return torch::stable::contiguous(argument);
  }
};

// Labels of rows and columns, or of neither.
struct OptionalLabels {
  std::optional<Vector<int64_t>> rows, cols;

  OptionalLabels(const std::optional<Tensor>& row_labels, int64_t n, const std::optional<Tensor>& col_labels,
                 int64_t m) {
    STD_TORCH_CHECK(row_labels.has_value() == col_labels.has_value(),
                    "row_labels and col_labels must be given together, got ",
                    row_labels ? "row_labels" : "col_labels", " alone");
    if (!row_labels) return;
    rows.emplace(*row_labels, n, "row_labels");
    cols.emplace(*col_labels, m, "col_labels");
  }

  bool given() const { return rows.has_value(); }
  const int64_t* row_data() const { return rows ? rows->data : nullptr; }
  const int64_t* col_data() const { return cols ? cols->data : nullptr; }
};

// A contiguous [d, d] float64 argument.
inline Tensor square_matrix(const Tensor& argument, int64_t d, const char* name) {
  STD_TORCH_CHECK(argument.dim() == 2 && argument.size(0) == d && argument.size(1) == d &&
                      argument.scalar_type() == ScalarType::Double,
                  name, " must be a float64 matrix [", d, ", ", d, "], got shape ", shape_of(argument));
  return torch::stable::contiguous(argument);
}

// The gradient of K; [0, 0] if the forward pass did not compute K.
inline Tensor cross_gradient(const Tensor& argument, int64_t d) {
  return square_matrix(argument, argument.numel() == 0 ? 0 : d, "grad_cross_gram");
}

}  // namespace cyclip
