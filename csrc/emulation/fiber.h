// Fibers: separate stacks that take turns on one thread of the host.

#pragma once

#include <cstddef>

#include "sanitizers.h"

#if !defined(__x86_64__) || defined(CYCLIP_PORTABLE_FIBERS)
#define CYCLIP_UCONTEXT 1
#include <ucontext.h>
#endif

namespace cyclip::emulation {

// Zeroed pages. ThreadSanitizer's record of them is discarded when they are released.
class Pages {
 public:
  explicit Pages(size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  unsigned char* data() const { return data_; }
  size_t size() const { return size_; }
  void protect(size_t offset, size_t bytes);  // forbids all access from now on

 private:
  unsigned char* data_;
  size_t size_;
};

// Zeroed pages at two addresses.
class MirroredPages {
 public:
  explicit MirroredPages(size_t bytes);
  ~MirroredPages();
  MirroredPages(const MirroredPages&) = delete;
  MirroredPages& operator=(const MirroredPages&) = delete;

  unsigned char* data() const { return data_; }
  unsigned char* mirror() const { return mirror_; }
  size_t size() const { return size_; }

 private:
  unsigned char* data_;
  unsigned char* mirror_;
  size_t size_;
};

// Stacks, each above an inaccessible page. Their tops have different offsets in a page: with equal
// offsets, they would all map to the same few lines of the cache.
class Stacks {
 public:
  explicit Stacks(int count);
  unsigned char* bottom(int i) const { return pages_.data() + i * kPitch + kPage + i % 32 * kStagger; }
  static constexpr size_t kBytes = (kAddressSanitizer ? 512 : 128) * 1024;

 private:
  static constexpr size_t kPage = 4096, kStagger = 320;
  static constexpr size_t kPitch = kPage + kBytes + 31 * kStagger / kPage * kPage + kPage;
  Pages pages_;
};

class Fiber {
 public:
  Fiber() = default;  // for the host's thread, to switch from it and back
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The first switch to it calls `entry`, which must not return.
  void prepare(unsigned char* stack_bottom, void (*entry)());

  // ThreadSanitizer's name of this fiber; it belongs to the caller. Null without that sanitizer.
  void* identity = nullptr;
  void adopt_running_thread();  // sets it for the fiber of the host's thread

  // Switches from `from`, which must be running, to `to`, and returns when a fiber switches back to
  // `from`. With `for_good`, it never returns.
  static void change(Fiber& from, Fiber& to, bool for_good = false);

  // An entry function must call this first.
  static void arrived(Fiber& host);

 private:
#if defined(CYCLIP_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

void* create_identity();
void destroy_identity(void* identity);

}  // namespace cyclip::emulation
