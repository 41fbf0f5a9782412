#include "slot.h"

#include <algorithm>

namespace cyclip::emulation {

Slot::~Slot() {
  for (void* identity : identities_) destroy_identity(identity);
}

void* Slot::identity(int thread) {
  while (static_cast<int>(identities_.size()) <= thread) identities_.push_back(create_identity());
  return identities_[thread];
}

Slots& Slots::of(int threads) {
  constexpr int kUsual = 256, kThreadsInAll = 1024;
  static thread_local Slots slots;
  if (slots.threads_ < threads) {
    slots.slots_.clear();
    slots.threads_ = std::max(threads, kUsual);
    slots.slots_.resize(kThreadSanitizer ? std::max(2, kThreadsInAll / slots.threads_) : 1);
  }
  return slots;
}

Slot& Slots::operator[](int64_t block) {
  std::unique_ptr<Slot>& slot = slots_[block % static_cast<int64_t>(slots_.size())];
  if (slot == nullptr) slot = std::make_unique<Slot>(threads_);
  return *slot;
}

void Slots::acquire_all() {
  for (const std::unique_ptr<Slot>& slot : slots_) {
    if (slot != nullptr) acquire(slot->key_of_next_use());
  }
}

}  // namespace cyclip::emulation
