// The shared memory of one block: the dynamic part, whose size the launch sets, and its variables,
// each between guards.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "fiber.h"

namespace cyclip::emulation {

// The shared memory of a block on the architecture with the least of it (12.0).
inline constexpr size_t kMaxSharedBytes = 99 * 1024;
inline constexpr size_t kMaxHopperSharedBytes = 227 * 1024;

// NaN in every floating type.
inline constexpr unsigned char kUnwritten = 0xFF;

class SharedMemory {
 public:
  SharedMemory();

  // Starts over, with unwritten dynamic shared memory.
  void reset(size_t dynamic_bytes);

  // Whether the block may use the memory of a Hopper GPU.
  void allow(size_t most_bytes) { most_bytes_ = most_bytes; }

  // The dynamic shared memory begins a page of the host.
  unsigned char* dynamic() const { return pages_.data() + regions_.front().begin; }
  size_t dynamic_bytes() const { return regions_.front().bytes; }

  // The variable of this key. The first thread of the block that calls this creates it.
  void* variable(const void* key, size_t bytes);

  // Whether [address, address + bytes) lies within one variable or the dynamic shared memory.
  bool contains(const void* address, size_t bytes) const;

  // Address in the window of shared memory.
  uint32_t offset(const void* address) const;

  // The same byte at an address that stays accessible while the guard of `proxies.h` protects the first one.
  unsigned char* mirror(const void* address) const { return pages_.mirror() + offset(address); }
  unsigned char* at(uint32_t offset) const { return pages_.data() + offset; }

  // A message on writes into the guards; empty if there were none.
  std::string damage() const;

 private:
  struct Region {
    const void* key;  // null for the dynamic region
    size_t begin, bytes;
    size_t end() const { return begin + bytes; }
  };

  void add(const void* key, size_t bytes);

  MirroredPages pages_;
  std::vector<Region> regions_;  // the dynamic region comes first
  size_t end_ = 0;               // after the last guard
  size_t used_ = 0;              // bytes of all regions
  size_t most_bytes_ = kMaxSharedBytes;
};

}  // namespace cyclip::emulation
