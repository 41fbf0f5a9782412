// The two ways to access shared memory: loads and stores of threads use the generic proxy, bulk copies and wgmma
// the asynchronous one (PTX ISA, "Async proxy"). Bytes that go from one to the other need a
// fence.proxy.async by the thread of the generic access, except after the completion of an asynchronous one.
//
// Accesses of threads are plain C++, so they are observed as page faults: the pages of the dynamic shared memory
// are inaccessible until a thread touches them. Once a page has been used by the asynchronous proxy, it becomes
// inaccessible again whenever another thread continues. The first access of a thread to a page is observed, not
// those that follow: memory for either proxy should not share pages with the other.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shared_memory.h"

namespace cyclip::emulation {

class ProxyGuard {
 public:
  explicit ProxyGuard(SharedMemory& shared);
  ~ProxyGuard();
  ProxyGuard(const ProxyGuard&) = delete;
  ProxyGuard& operator=(const ProxyGuard&) = delete;

  // Starts with the first instruction of the asynchronous proxy in a block.
  void start();

  // The number of a thread with an access to these bytes that no fence followed, or -1. From now on the pages are
  // used by the asynchronous proxy.
  int use_asynchronously(uint32_t offset, size_t bytes);

  void fence(int thread);
  void switch_threads();  // called before another thread continues

  // Called by the handler of page faults: whether the address belongs to the guarded memory.
  bool observe(void* address);

 private:
  static constexpr size_t kPageBytes = 4096;

  struct Access {
    int thread;
    size_t byte;
  };
  struct Page {
    bool is_asynchronous = false, is_open = false;
    std::vector<Access> unfenced;
  };

  void protect(size_t page, bool is_open);
  void collect();

  unsigned char* begin_;
  uint32_t first_offset_;
  size_t bytes_;
  std::vector<Page> pages_;
  // Accesses of the running thread, as the handler found them: at most one to each page. The handler must not
  // allocate memory.
  std::vector<Access> observed_;
  size_t observed_count_ = 0;
  bool is_started_ = false;
};

}  // namespace cyclip::emulation
