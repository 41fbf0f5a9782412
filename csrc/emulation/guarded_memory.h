// Device memory of one call under emulation. Allocations have exactly the requested size and start with values
// that no kernel writes. Guards around them show writes out of bounds. With the address sanitizer they are plain
// allocations, because it detects both reads and writes out of bounds.

#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/cuda/operators.h"

namespace cyclip::emulation {

#ifdef __SANITIZE_ADDRESS__
inline constexpr size_t kGuardBytes = 0;
#else
inline constexpr size_t kGuardBytes = 4096;
#endif

inline constexpr unsigned char kUnwrittenFloat = 0xFF;  // NaN in every floating type
inline constexpr unsigned char kUnwrittenInt = 0x5A;    // -1 is a result of some operators

class GuardedBlock {
 public:
  GuardedBlock(size_t bytes, unsigned char fill) : bytes_(bytes), whole_(allocate(bytes + 2 * kGuardBytes)) {
    for (size_t i = 0; i < kGuardBytes; ++i) before(i) = behind(i) = guard(i);
    std::memset(data(), fill, bytes);
  }

  unsigned char* data() const { return whole_.get() + kGuardBytes; }

  void check(const std::string& what) const {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (before(i) != guard(i)) fail(what, -1 - static_cast<int64_t>(i));
      if (behind(i) != guard(i)) fail(what, static_cast<int64_t>(bytes_ + i));
    }
  }

 private:
  static constexpr std::align_val_t kAlignment{256};

  // Content of the guards at this distance from the memory. Near the memory it is NaN, which a read shows;
  // farther away it is a number, so that a NaN written there shows.
  static unsigned char guard(size_t distance) { return distance < 256 ? 0xFF : 0xA5; }
  unsigned char& before(size_t distance) const { return whole_[kGuardBytes - 1 - distance]; }
  unsigned char& behind(size_t distance) const { return whole_[kGuardBytes + bytes_ + distance]; }

  struct Release {
    void operator()(unsigned char* memory) const { ::operator delete(memory, kAlignment); }
  };

  static unsigned char* allocate(size_t bytes) {
    return static_cast<unsigned char*>(::operator new(bytes, kAlignment));
  }

  [[noreturn]] void fail(const std::string& what, int64_t byte) const {
    throw std::runtime_error("written outside of " + what + ", " + std::to_string(bytes_) + " bytes: at byte " +
                             std::to_string(byte));
  }

  size_t bytes_;
  std::unique_ptr<unsigned char[], Release> whole_;
};

// An array of a call, filled with values that no kernel writes or with those of an input.
template <typename T>
class GuardedArray {
 public:
  explicit GuardedArray(int64_t size)
      : size_(size), block_(size * sizeof(T), std::is_integral_v<T> ? kUnwrittenInt : kUnwrittenFloat) {}
  explicit GuardedArray(const std::vector<T>& values) : GuardedArray(static_cast<int64_t>(values.size())) {
    std::memcpy(block_.data(), values.data(), values.size() * sizeof(T));
  }

  T* data() const { return reinterpret_cast<T*>(block_.data()); }
  int64_t size() const { return size_; }
  void check(const std::string& what) const { block_.check(what); }

 private:
  int64_t size_;
  GuardedBlock block_;
};

class GuardedWorkspace : public cuda::Workspace {
 public:
  void* allocate(int64_t bytes) override {
    if (bytes < 0) throw std::runtime_error("workspace of " + std::to_string(bytes) + " bytes");
    blocks_.emplace_back(static_cast<size_t>(bytes), kUnwrittenFloat);
    return blocks_.back().data();
  }

  void check() const {
    for (size_t i = 0; i < blocks_.size(); ++i)
      blocks_[i].check("allocation " + std::to_string(i) + " of the workspace");
  }

 private:
  std::deque<GuardedBlock> blocks_;
};

}  // namespace cyclip::emulation
