// Torch's matrix product on raw memory.

#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "buffer.h"

namespace cyclip::cpu {

// A strided matrix in somebody else's memory.
template <typename T>
struct Matrix {
  T* data;
  int64_t rows, cols;
  int64_t row_stride, col_stride = 1;

  Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
  Matrix row_block(int64_t begin, int64_t end) const {
    return {data + begin * row_stride, end - begin, cols, row_stride, col_stride};
  }
};

// c = a b, or c += a b. Called inside a task it runs on that task's thread alone. It enters torch below
// the dispatcher: the worker threads of the pool know nothing of the caller's autograd state.
template <typename T>
void gemm(const Matrix<T>& c, const Matrix<const T>& a, const Matrix<const T>& b, bool accumulate = false) {
  const auto view = [](const auto& m) {
    return torch::stable::from_blob(const_cast<T*>(m.data), {m.rows, m.cols}, {m.row_stride, m.col_stride},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU), kDtype<T>);
  };
  const Tensor out = view(c), left = view(a), right = view(b);
  if (accumulate) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), 1, 1));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
  }
}

}  // namespace cyclip::cpu
