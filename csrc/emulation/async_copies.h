// The asynchronous copies of one thread. Reading or writing too early changes the result: the
// destination is unwritten from the start of the copy to the wait, and only then is the source read
// and the destination written.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "message.h"

namespace cyclip::emulation {

class AsyncCopies {
 public:
  static constexpr size_t kBytes = 16;

  // Starts a copy. If `global` is null, it copies zeros.
  void issue(void* shared, const void* global, Where where);
  void commit() { ++open_group_; }
  // Completes all committed groups but the `pending` most recent ones.
  void wait(int pending);

  // The source line of the oldest unfinished copy; null if all are finished.
  const Where* unfinished() const { return first_ < copies_.size() ? &copies_[first_].where : nullptr; }
  void clear();

 private:
  struct Copy {
    void* shared;
    const void* global;
    int64_t group;
    Where where;
  };
  // Returns the oldest copy under way if the wait covers it.
  bool take(int pending, Copy* copy);

  std::vector<Copy> copies_;
  size_t first_ = 0;  // index of the first copy under way
  int64_t open_group_ = 0;
};

}  // namespace cyclip::emulation
