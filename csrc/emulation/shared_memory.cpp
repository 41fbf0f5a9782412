#include "shared_memory.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "message.h"

namespace cyclip::emulation {

namespace {

constexpr size_t kAlignment = 128;
constexpr size_t kGuardBytes = 2048;  // at least, after each region
constexpr size_t kFirstGuardBytes = 4096;
constexpr unsigned char kGuard = kUnwritten;
constexpr size_t kMostRegions = 32;

}  // namespace

SharedMemory::SharedMemory()
    : pages_(kMaxHopperSharedBytes + kMostRegions * (kGuardBytes + kAlignment) + kFirstGuardBytes) {}

void SharedMemory::reset(size_t dynamic_bytes) {
  regions_.clear();
  end_ = kFirstGuardBytes;
  used_ = 0;
  allow_access(pages_.data(), pages_.size());
  std::memset(pages_.data(), kGuard, kFirstGuardBytes);
  forbid_access(pages_.data(), pages_.size());
  add(nullptr, dynamic_bytes);
}

// Guards are accessible only while they are written and checked.
void SharedMemory::add(const void* key, size_t bytes) {
  const Unseen unseen;
  const size_t begin = end_;
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment + kGuardBytes;
  used_ += bytes;
  if (used_ > most_bytes_ || regions_.size() == kMostRegions) {
    throw std::runtime_error(message("a block of ", used_, " bytes of shared memory in ", regions_.size() + 1,
                                     " parts; at most ", most_bytes_, " in ", kMostRegions));
  }
  unsigned char* const data = pages_.data() + begin;
  allow_access(data, padded);
  std::memset(data, kUnwritten, bytes);
  std::memset(data + bytes, kGuard, padded - bytes);
  forbid_access(data + bytes, padded - bytes);
  mark_unwritten(data, bytes);
  regions_.push_back({key, begin, bytes});
  end_ = begin + padded;
}

void* SharedMemory::variable(const void* key, size_t bytes) {
  const auto is_it = [&](const Region& region) { return region.key == key; };
  auto found = std::find_if(regions_.begin() + 1, regions_.end(), is_it);
  if (found == regions_.end()) {
    add(key, bytes);
    found = regions_.end() - 1;
  }
  return pages_.data() + found->begin;
}

bool SharedMemory::contains(const void* address, size_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(pages_.data());
  return std::any_of(regions_.begin(), regions_.end(), [&](const Region& region) {
    return begin >= region.begin && begin < region.end() && bytes <= region.end() - begin;
  });
}

uint32_t SharedMemory::offset(const void* address) const {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(address) - pages_.data());
}

std::string SharedMemory::damage() const {
  if (kAddressSanitizer) return "";  // the sanitizer has reported the write itself
  size_t guard = 0;
  for (size_t i = 0; i <= regions_.size(); ++i) {
    const size_t guard_end = i < regions_.size() ? regions_[i].begin : end_;
    for (size_t byte = guard; byte < guard_end; ++byte) {
      if (pages_.data()[byte] != kGuard) {
        if (i == 0) return "a thread wrote before the start of the dynamic shared memory";
        const Region& region = regions_[i - 1];
        return message("a thread wrote ", byte - region.end(), " bytes behind the end of ", region.bytes,
                       " bytes of ", region.key == nullptr ? "dynamic shared memory" : "a shared variable");
      }
    }
    if (i < regions_.size()) guard = regions_[i].end();
  }
  return "";
}

}  // namespace cyclip::emulation
