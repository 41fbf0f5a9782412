// wgmma.mma_async.m64nNk16 of 16-bit operands in shared memory (PTX ISA, "Asynchronous warpgroup-level matrix
// instructions": "Matrix Descriptor Format", "Shared Memory Matrix Layout", "Register Fragments").
//
// Each warp computes its 16 of the 64 rows. The product is computed when the instruction is issued. Until the
// thread waits for it, the accumulators are NaN and must not change, and neither must the operands.

#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "block.h"

namespace cyclip::emulation {

// The content of 16 bytes of shared memory.
struct Granule {
  enum State : uint8_t { kUnknown, kUnderWay, kArrived } state = kUnknown;
  uint16_t readers = 0;          // pending wgmma of warps
  const void* source = nullptr;  // of the copy: the tensor, and the position of the first element
  int x = 0, y = 0;
};

class Granules {
 public:
  static constexpr uint32_t kBytes = 16;
  explicit Granules(const SharedMemory& shared)
      : first_(shared.offset(shared.dynamic())), all_((shared.dynamic_bytes() + kBytes - 1) / kBytes) {}

  bool contains(uint32_t offset) const { return offset >= first_ && (offset - first_) / kBytes < all_.size(); }
  Granule& operator[](uint32_t offset) { return all_[(offset - first_) / kBytes]; }

 private:
  uint32_t first_;
  std::vector<Granule> all_;
};

// The swizzle of 128-byte rows, of the copies and of the matrices.
inline uint32_t swizzled_128(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

enum class Format { kBf16, kF16 };

// The operands of one thread. Registers 4 j to 4 j + 3 of the ISA are upper[2 j], upper[2 j + 1], lower[2 j] and
// lower[2 j + 1], in the rows g and g + 8 of the warp and the columns 8 j + 2 t and 8 j + 2 t + 1.
struct WarpgroupProduct {
  float* upper;
  float* lower;
  int cols;  // N
  Format format;
  uint64_t left, right;  // descriptors
  bool left_is_transposed, right_is_transposed;
  bool accumulates;

  bool same_instruction(const WarpgroupProduct& other) const;
};

class WarpgroupMatrices {
 public:
  WarpgroupMatrices(Block& block, Granules& granules);
  ~WarpgroupMatrices();

  // Called once per warp, with the operands of all lanes.
  void fence(float* const (&registers)[kLanes], int rows, int cols);
  // Calls require_fences(offset) for each granule that is read.
  using RequireFences = std::function<void(uint32_t offset)>;
  void issue(const WarpgroupProduct* const (&lanes)[kLanes], const RequireFences& require_fences, Where where);
  void commit();
  void wait(int pending, Where where);

  void require_exit(bool is_last);
  void* key(int warp) { return &warps_[warp].key; }

 private:
  // A row of accumulators on all lanes.
  struct Registers {
    float* lanes[kLanes];
    int count;
    std::vector<float> known, results;  // [lanes][count]: at the fence, and after the pending products
    bool is_pending = false;
    int64_t group = 0;
  };
  struct Operand {
    std::vector<uint32_t> offsets;         // of its granules
    std::vector<uint16_t> bytes, entries;  // of its granules; [lines][16]
    int depth_begin = -1;                  // of the tensor that it was copied from
  };
  struct Pending {
    int64_t group;
    Operand left, right;
    Where where;
  };
  struct Warp {
    std::deque<Pending> pending;
    std::vector<Registers> registers;
    int64_t open_group = 0, issued = 0;
    char key = 0;
    void* identity = nullptr;
  };
  struct Issued {
    WarpgroupProduct product;
    Where where;
    int warps = 0;
  };

  Warp& self();
  Registers& registers_of(Warp& warp, float* const (&lanes)[kLanes], int count, Where where);
  void require_poison(const Registers& registers, Where where);
  void require_same_for_warpgroup(const WarpgroupProduct& product, Warp& warp, Where where);
  Operand read(const char* name, uint64_t descriptor, bool is_transposed, int first_line, int lines,
               const RequireFences& require_fences, Where where);
  bool is_unchanged(const Operand& operand) const;

  Block& block_;
  Granules& granules_;
  std::vector<Warp> warps_;
  std::vector<std::map<int64_t, Issued>>
      issued_;  // of each warpgroup, by number, until all its warps have issued it
};

}  // namespace cyclip::emulation
