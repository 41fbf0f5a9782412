// Workspace from torch's allocator: 64-byte aligned, uninitialized, visible to torch's memory
// profiler.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace cyclip::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
inline constexpr ScalarType kDtype = torch::headeronly::CppTypeToScalarType<T>::value;

template <typename T>
Tensor empty(std::initializer_list<int64_t> shape) {
  return torch::stable::empty(shape, kDtype<T>);
}

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size), tensor_(empty<T>({size})), data_(tensor_.mutable_data_ptr<T>()) {}
  Buffer(int64_t size, T value) : Buffer(size) { std::fill_n(data_, size, value); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t size_;
  Tensor tensor_;
  T* data_;
};

}  // namespace cyclip::cpu
