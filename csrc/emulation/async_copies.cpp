#include "async_copies.h"

#include <cstring>

#include "sanitizers.h"
#include "shared_memory.h"

namespace cyclip::emulation {

void AsyncCopies::issue(void* shared, const void* global, Where where) {
  seen_write(shared, kBytes);
  std::memset(shared, kUnwritten, kBytes);
  mark_unwritten(shared, kBytes);
  copies_.push_back({shared, global, open_group_, where});
}

void AsyncCopies::wait(int pending) {
  for (Copy copy; take(pending, &copy);) {
    if (copy.global != nullptr) seen_read(copy.global, kBytes);
    seen_write(copy.shared, kBytes);
    if (copy.global != nullptr) {
      std::memcpy(copy.shared, copy.global, kBytes);
    } else {
      std::memset(copy.shared, 0, kBytes);
    }
  }
}

bool AsyncCopies::take(int pending, Copy* copy) {
  if (first_ == copies_.size()) {
    clear();
    return false;
  }
  *copy = copies_[first_];
  if (copy->group + pending >= open_group_) return false;
  ++first_;
  return true;
}

void AsyncCopies::clear() {
  copies_.clear();
  first_ = 0;
}

}  // namespace cyclip::emulation
