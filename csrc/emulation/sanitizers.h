// Annotations of the emulator for the sanitizers; empty if it is compiled without them.
//
// ThreadSanitizer sees one thread per CUDA thread. These threads also share the emulator's own state and the
// operands that a warp collects. Writes to both are hidden from ThreadSanitizer, which would report them as
// races. Functions that run often are CYCLIP_UNSEEN and call no other function to write. Other code is in the
// scope of an Unseen, which also covers all functions called there, but is slow.

#pragma once

#include <cstddef>

#if defined(__SANITIZE_THREAD__)
#define CYCLIP_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define CYCLIP_ASAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CYCLIP_TSAN 1
#elif __has_feature(address_sanitizer)
#define CYCLIP_ASAN 1
#elif __has_feature(memory_sanitizer)
#define CYCLIP_MSAN 1
#endif
#endif

#if defined(CYCLIP_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void __tsan_read_range(void* address, size_t bytes);
void __tsan_write_range(void* address, size_t bytes);
}
#define CYCLIP_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define CYCLIP_UNSEEN
#endif

#if defined(CYCLIP_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(CYCLIP_MSAN)
#include <sanitizer/msan_interface.h>
#endif

namespace cyclip::emulation {

#if defined(CYCLIP_TSAN)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif
#if defined(CYCLIP_ASAN)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

// While an instance exists, ThreadSanitizer ignores the reads and writes of its CUDA thread.
// Switching to another thread in the meantime is allowed, because each thread has its own state.
class Unseen {
 public:
  Unseen() {
#if defined(CYCLIP_TSAN)
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);  // also ignores writes
#endif
  }
  ~Unseen() {
#if defined(CYCLIP_TSAN)
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

// Report a copy to ThreadSanitizer, which does not notice copies of constant size that are expanded
// inline.
inline void seen_read([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#if defined(CYCLIP_TSAN)
  __tsan_read_range(const_cast<void*>(address), bytes);
#endif
}

inline void seen_write([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(CYCLIP_TSAN)
  __tsan_write_range(address, bytes);
#endif
}

// A thread's actions before it releases a key are ordered before those of a thread that acquires it
// afterwards.
inline void release([[maybe_unused]] void* key) {
#if defined(CYCLIP_TSAN)
  __tsan_release(key);
#endif
}

inline void acquire([[maybe_unused]] void* key) {
#if defined(CYCLIP_TSAN)
  __tsan_acquire(key);
#endif
}

// While an instance exists, the running code is that of another thread for ThreadSanitizer, such as an
// asynchronous unit. Only functions that are CYCLIP_UNSEEN and call nothing but the functions of this file may
// create one.
class Impersonation {
 public:
  CYCLIP_UNSEEN explicit Impersonation([[maybe_unused]] void* identity) {
#if defined(CYCLIP_TSAN)
    self_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(identity, __tsan_switch_to_fiber_no_sync);
#endif
  }
  CYCLIP_UNSEEN ~Impersonation() {
#if defined(CYCLIP_TSAN)
    __tsan_switch_to_fiber(self_, __tsan_switch_to_fiber_no_sync);
#endif
  }
  Impersonation(const Impersonation&) = delete;
  Impersonation& operator=(const Impersonation&) = delete;

#if defined(CYCLIP_TSAN)
 private:
  void* self_;
#endif
};

inline void forbid_access([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(CYCLIP_ASAN)
  __asan_poison_memory_region(address, bytes);
#endif
}

inline void allow_access([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(CYCLIP_ASAN)
  __asan_unpoison_memory_region(address, bytes);
#endif
}

// Marks memory as uninitialized for MemorySanitizer.
inline void mark_unwritten([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(CYCLIP_MSAN)
  __msan_poison(address, bytes);
#endif
}

}  // namespace cyclip::emulation
