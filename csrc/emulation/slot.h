// The resources of a running block: stacks, shared memory, and the identities of its threads for
// ThreadSanitizer. Creating them costs much more than running a small block, so they are reused.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "async_copies.h"
#include "fiber.h"
#include "shared_memory.h"

namespace cyclip::emulation {

class Slot {
 public:
  explicit Slot(int threads) : stacks(threads), copies(threads) {}
  ~Slot();
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  void* identity(int thread);  // created on first use; null without ThreadSanitizer

  // Orders successive uses of the slot, and threads after earlier actions of the host: the host and
  // ending threads release the key of the next use, and starting threads acquire the key of their
  // own. (A single key for both would order threads of a block after others that happened to end
  // before.)
  void* key_of_this_use() { return &keys_[use_ % 2]; }
  void* key_of_next_use() { return &keys_[(use_ + 1) % 2]; }
  void next_use() {
    release(key_of_next_use());
    ++use_;
  }

  Stacks stacks;
  SharedMemory shared;
  std::vector<AsyncCopies> copies;  // one per thread

 private:
  std::vector<void*> identities_;
  unsigned use_ = 0;
  char keys_[2] = {};
};

// The slots that the blocks of a grid use in turn. ThreadSanitizer treats two blocks in the same
// slot as ordered, so there are several slots: races are detected between blocks that are at most
// that far apart.
class Slots {
 public:
  // The slots of this host thread, with memory for a block of this many threads.
  static Slots& of(int threads);

  Slot& operator[](int64_t block);
  void acquire_all();  // called by the host after a grid

 private:
  std::vector<std::unique_ptr<Slot>> slots_;
  int threads_ = 0;
};

}  // namespace cyclip::emulation
