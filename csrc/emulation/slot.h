// The resources of a running block: stacks, shared memory, and its threads' identities to
// ThreadSanitizer. Making them costs much more than running a small block, so they are used again.

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

  void* identity(int thread);  // created at the first call; null without ThreadSanitizer

  // Orders one use of the slot after the other, and threads after what the host did before: the host and
  // the threads that end release the key of the next use, threads that start acquire that of their own.
  // (One key for both would order threads of a block after others that happened to end before.)
  void* key_of_this_use() { return &keys_[use_ % 2]; }
  void* key_of_next_use() { return &keys_[(use_ + 1) % 2]; }
  void next_use() {
    release(key_of_next_use());
    ++use_;
  }

  Stacks stacks;
  SharedMemory shared;
  std::vector<AsyncCopies> copies;  // of each thread

 private:
  std::vector<void*> identities_;
  unsigned use_ = 0;
  char keys_[2] = {};
};

// The slots that the blocks of a grid use in turn. ThreadSanitizer considers two blocks in the same slot as
// ordered. With several slots it detects races between blocks whose distance is less than their number.
class Slots {
 public:
  // The slots of this host thread, with room for a block of this many threads.
  static Slots& of(int threads);

  Slot& operator[](int64_t block);
  void acquire_all();  // the host, after a grid

 private:
  std::vector<std::unique_ptr<Slot>> slots_;
  int threads_ = 0;
};

}  // namespace cyclip::emulation
