// Matrix products on raw memory: by the kernels of this package if the processor supports them,
// otherwise by torch's. The former do not prepare the operands for the shapes used here and are as
// fast as the arithmetic units.

#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/headeronly/util/shim_utils.h>

#include "../../kernels/cpu/product.h"
#include "buffer.h"
#include "parallel.h"

namespace cyclip::cpu {

// A view of a strided matrix.
template <typename T>
struct Matrix {
  T* data;
  int64_t rows, cols;
  int64_t row_stride, col_stride = 1;

  Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
  Matrix row_block(int64_t begin, int64_t end) const {
    return {data + begin * row_stride, end - begin, cols, row_stride, col_stride};
  }
  Matrix col_block(int64_t begin, int64_t end) const { return transposed().row_block(begin, end).transposed(); }
};

// Calls torch below the dispatcher, because worker threads do not have the autograd state of the
// caller. Inside a task, it runs only on the thread of that task.
template <typename T>
void library_product(const Matrix<T>& c, const Matrix<const T>& a, const Matrix<const T>& b, bool accumulate) {
  const auto view = [](const auto& m) {
    return torch::stable::from_blob(const_cast<T*>(m.data), {m.rows, m.cols}, {m.row_stride, m.col_stride},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU), kDtype<T>);
  };
  const Tensor out = view(c), left = view(a), right = view(b);
  if (accumulate) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), 1, 1));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
  }
}

// A right operand in panels; columns beyond its last one are zero. Its products write whole panels.
template <typename Word>
class Panels {
 public:
  Panels(const ProductKernel<Word>& kernel, const Matrix<const Word>& b)
      : cols_(kernel.panel_cols), depth_(b.rows), words_(round_up(b.cols, cols_) * depth_) {
    for_each_block(b.cols, cols_, [&](int64_t begin, int64_t end) {
      fill_panel(b.data + begin * b.col_stride, b.col_stride, b.row_stride, depth_, end - begin, cols_,
                 words_.data() + begin * depth_);
    });
  }

  // The operand from `col` on, which must be the first column of a panel.
  RightOperand<Word> from(int64_t col) const { return {words_.data() + col * depth_, cols_, depth_ * cols_}; }
  int64_t count(int64_t cols) const { return ceil_div(cols, cols_); }

 private:
  int64_t cols_, depth_;
  Buffer<Word> words_;
};

template <typename Word>
void run_product(const ProductKernel<Word>& kernel, const Product<Word>& product) {
  if (product.left.depth_stride == 1) return blocked_product<Word>(kernel, product, nullptr);
  Buffer<Word> workspace(kProductWorkspace<Word>);
  blocked_product(kernel, product, workspace.data());
}

// c = a b, or c += a b. Rows of c are contiguous.
template <typename T>
void gemm(const Matrix<T>& c, const Matrix<const T>& a, const Matrix<const T>& b, bool accumulate = false) {
  const ProductKernel<T>* kernel = product_kernel<T>();
  if (!kernel) return library_product(c, a, b, accumulate);
  const int64_t width = kernel->panel_cols;
  const LeftOperand<T> left = {a.data, a.row_stride, a.col_stride};
  const int64_t whole = c.cols / width;
  if (whole > 0 && b.col_stride == 1) {
    run_product<T>(*kernel,
                   {left, {b.data, b.row_stride, width}, c.data, c.row_stride, a.rows, a.cols, whole, accumulate});
  } else if (whole > 0) {
    const Panels<T> panels(*kernel, b.col_block(0, whole * width));
    run_product<T>(*kernel, {left, panels.from(0), c.data, c.row_stride, a.rows, a.cols, whole, accumulate});
  }
  if (whole * width == c.cols) return;
  // The last columns form a panel of their own.
  const int64_t first = whole * width, cols = c.cols - first;
  const Panels<T> panels(*kernel, b.col_block(first, c.cols));
  Buffer<T> out(a.rows * width);
  run_product<T>(*kernel, {left, panels.from(0), out.data(), width, a.rows, a.cols, 1, false});
  for (int64_t row = 0; row < c.rows; ++row) {
    T* to = c.data + row * c.row_stride + first;
    for (int64_t col = 0; col < cols; ++col) to[col] = out[row * width + col] + (accumulate ? to[col] : 0);
  }
}

}  // namespace cyclip::cpu
