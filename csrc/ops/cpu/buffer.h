// Tensors for results, and workspace that does not outlive a call.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cyclip::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
inline constexpr ScalarType kDtype = torch::headeronly::CppTypeToScalarType<T>::value;

template <typename T>
Tensor empty(std::initializer_list<int64_t> shape) {
  return torch::stable::empty(shape, kDtype<T>);
}

// Lets the system back the memory with huge pages. The allocator returns large blocks to the system,
// so every call faults on each page of them again. With small pages that takes a tenth of the time of
// a loss at N = 4,096.
inline void allow_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  // It is only advice: an error changes nothing.
  if (last > first) static_cast<void>(madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
#endif
}

// Makes glibc retain the memory of small workspaces for the next call. It returns the end of its heap
// to the system when that exceeds twice the largest block that was freed so far. The workspace of a
// small batch consists of many blocks of a few hundred kilobytes, so all of its pages would be
// returned after every call, and faulting on them again takes up to half of the time of a loss.
// Freeing one block of this size, which is never written to, raises the limit to 32 MiB, as freeing
// any tensor of its size does.
inline void retain_small_workspaces() {
#if defined(__GLIBC__)
  [[maybe_unused]] static const bool done = [] {
    void* volatile block = std::malloc(size_t{16} << 20);  // volatile: compilers remove unused blocks
    std::free(block);
    return true;
  }();
#endif
}

// Uninitialized workspace, 64-byte aligned. Not a tensor: a loss of a small batch needs dozens of
// buffers, and torch's dispatcher takes longer for one than the allocation itself.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size), data_(allocate(size)) { retain_small_workspaces(); }
  Buffer(int64_t size, T value) : Buffer(size) { std::fill_n(data(), size, value); }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  static_assert(std::is_trivially_copyable_v<T>);
  static constexpr std::align_val_t kAlignment{64};

  struct Free {
    void operator()(T* data) const { ::operator delete[](data, kAlignment); }
  };

  static T* allocate(int64_t size) {
    const size_t bytes = static_cast<size_t>(size) * sizeof(T);
    void* data = ::operator new[](bytes, kAlignment, std::nothrow);
    STD_TORCH_CHECK(data != nullptr, "out of memory: cannot allocate ", bytes, " bytes of workspace");
    return static_cast<T*>(data);
  }

  int64_t size_;
  std::unique_ptr<T[], Free> data_;
};

}  // namespace cyclip::cpu
