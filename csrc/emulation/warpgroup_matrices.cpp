#include "warpgroup_matrices.h"

#include <algorithm>
#include <cstring>

#include "numbers.h"
#include "sanitizers.h"

namespace cyclip::emulation {

namespace {

constexpr int kWarps = 4, kWarpRows = 16, kDepth = 16, kMostCols = 256, kElements = 8;
constexpr uint32_t kPoison = 0xFFFFFFFFu;  // NaN

// Accesses of the tensor cores to one operand, for ThreadSanitizer.
CYCLIP_UNSEEN void record_reads(void* identity, void* key, const SharedMemory& shared, const uint32_t* offsets,
                                size_t count) {
  const Impersonation impersonation(identity);
  acquire(key);
  for (size_t i = 0; i < count; ++i) seen_read(shared.at(offsets[i]), Granules::kBytes);
  release(key);
}

}  // namespace

bool WarpgroupProduct::same_instruction(const WarpgroupProduct& other) const {
  return cols == other.cols && format == other.format && left == other.left && right == other.right &&
         left_is_transposed == other.left_is_transposed && right_is_transposed == other.right_is_transposed &&
         accumulates == other.accumulates;
}

WarpgroupMatrices::WarpgroupMatrices(Block& block, Granules& granules) : block_(block), granules_(granules) {
  warps_.resize((block.threads() + kLanes - 1) / kLanes);
  issued_.resize((warps_.size() + kWarps - 1) / kWarps);
  for (Warp& warp : warps_) warp.identity = create_identity();
}

WarpgroupMatrices::~WarpgroupMatrices() {
  for (Warp& warp : warps_) {
    acquire(&warp.key);  // the next block uses the same memory
    destroy_identity(warp.identity);
  }
}

WarpgroupMatrices::Warp& WarpgroupMatrices::self() { return warps_[running.thread->warp]; }

// ---------------------------------------------------------------- registers

WarpgroupMatrices::Registers& WarpgroupMatrices::registers_of(Warp& warp, float* const (&lanes)[kLanes], int count,
                                                              Where where) {
  for (Registers& registers : warp.registers) {
    if (registers.lanes[0] != lanes[0]) continue;
    if (registers.count == count && std::equal(lanes, lanes + kLanes, registers.lanes)) return registers;
    if (!registers.is_pending) break;
    block_.fail("wgmma with a part of the accumulators of a pending one", where);
  }
  block_.fail("wgmma on accumulators without a wgmma.fence before it", where);
}

// "wgmma.fence": orders earlier accesses to these registers before the wgmmas that follow.
void WarpgroupMatrices::fence(float* const (&first)[kLanes], int rows, int cols) {
  Warp& warp = self();
  for (int row = 0; row < rows; ++row) {
    Registers registers;
    registers.count = cols;
    for (int lane = 0; lane < kLanes; ++lane) {
      float* const from = registers.lanes[lane] = first[lane] + row * cols;
      registers.known.insert(registers.known.end(), from, from + cols);
    }
    const auto same = [&](const Registers& other) { return other.lanes[0] == registers.lanes[0]; };
    const auto found = std::find_if(warp.registers.begin(), warp.registers.end(), same);
    if (found == warp.registers.end()) {
      warp.registers.push_back(std::move(registers));
    } else if (!found->is_pending) {  // pending accumulators need no fence
      *found = std::move(registers);
    }
  }
}

void WarpgroupMatrices::require_poison(const Registers& registers, Where where) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < registers.count; ++i) {
      uint32_t bits;
      std::memcpy(&bits, &registers.lanes[lane][i], sizeof(bits));
      if (bits == kPoison) continue;
      block_.fail(message("lane ", lane, " wrote an accumulator of a wgmma that was not complete"), where);
    }
  }
}

// ---------------------------------------------------------------- operands

WarpgroupMatrices::Operand WarpgroupMatrices::read(const char* name, uint64_t descriptor, bool is_transposed,
                                                   int first_line, int lines, const RequireFences& require_fences,
                                                   Where where) {
  constexpr uint64_t kUsedBits = 0xC00E'3FFF'3FFF'3FFFull;
  constexpr uint32_t kRowBytes = 128, kPatternBytes = 1024, kBlockLines = 64;
  const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3FFF) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const auto base_offset = static_cast<uint32_t>(descriptor >> 49 & 7);
  const auto fail = [&](const std::string& what) {
    block_.fail(message("descriptor of the ", name, " operand: ", what), where);
  };
  if ((descriptor & ~kUsedBits) != 0) fail("reserved bits are not zero");
  if (descriptor >> 62 != 1) fail(message("swizzle mode ", descriptor >> 62, "; only 1 (128 bytes) is emulated"));
  if ((start >> 7 & 7) != base_offset) {
    fail(message("start address ", start, " with base offset ", base_offset,
                 "; matrices must begin a swizzle pattern of 1,024 bytes, or state their offset in it"));
  }
  if (stride % kPatternBytes != 0 || (is_transposed && leading % kPatternBytes != 0)) {
    fail(message("offsets of ", leading, " and ", stride,
                 " bytes; must be multiples of the swizzle pattern, 1,024"));
  }

  Operand operand;
  operand.entries.resize(static_cast<size_t>(lines) * kDepth);
  Granule first;
  const SharedMemory& shared = block_.shared();
  // Copies the granule that begins with this entry.
  const auto take = [&](int line, int depth) {
    const auto l = static_cast<uint32_t>(first_line + line), k = static_cast<uint32_t>(depth);
    const uint32_t linear =
        is_transposed ? l / kBlockLines * leading + k / 8 * stride + k % 8 * kRowBytes + 2 * (l % kBlockLines)
                      : l / 8 * stride + l % 8 * kRowBytes + 2 * k;
    const uint32_t offset = swizzled_128(start + linear);
    if (!granules_.contains(offset)) fail(message("line ", l, " lies outside of the dynamic shared memory"));
    require_fences(offset);
    Granule& granule = granules_[offset];
    if (granule.state == Granule::kUnderWay) fail(message("line ", l, " is read before its copy has arrived"));
    if (operand.offsets.empty()) {
      first = granule;
      if (granule.state == Granule::kArrived) operand.depth_begin = is_transposed ? granule.y : granule.x;
    }
    const int across = is_transposed ? line : depth, down = is_transposed ? depth : line;
    if (granule.source != first.source ||
        (first.source != nullptr && (granule.x != first.x + across || granule.y != first.y + down))) {
      fail(message("line ", l, ", depth ", depth, " is the element (", granule.x, ", ", granule.y,
                   ") of the tensor; expected (", first.x + across, ", ", first.y + down, ")"));
    }
    ++granule.readers;
    operand.offsets.push_back(offset);
    uint16_t elements[kElements];
    std::memcpy(elements, shared.mirror(shared.at(offset)), sizeof(elements));
    operand.bytes.insert(operand.bytes.end(), elements, elements + kElements);
    for (int i = 0; i < kElements; ++i) {
      operand.entries[is_transposed ? (line + i) * kDepth + depth : line * kDepth + depth + i] = elements[i];
    }
  };
  for (int line = 0; line < lines; line += is_transposed ? kElements : 1) {
    for (int depth = 0; depth < kDepth; depth += is_transposed ? 1 : kElements) take(line, depth);
  }
  Warp& warp = self();
  record_reads(warp.identity, &warp.key, shared, operand.offsets.data(), operand.offsets.size());
  return operand;
}

bool WarpgroupMatrices::is_unchanged(const Operand& operand) const {
  const SharedMemory& shared = block_.shared();
  for (size_t i = 0; i < operand.offsets.size(); ++i) {
    if (std::memcmp(shared.mirror(shared.at(operand.offsets[i])), &operand.bytes[i * kElements],
                    Granules::kBytes) != 0) {
      return false;
    }
  }
  return true;
}

// ---------------------------------------------------------------- products

void WarpgroupMatrices::require_same_for_warpgroup(const WarpgroupProduct& product, Warp& warp, Where where) {
  auto& issued = issued_[running.thread->warp / kWarps];
  const int64_t number = warp.issued++;
  Issued& first = issued.try_emplace(number, Issued{product, where}).first->second;
  if (!first.product.same_instruction(product)) {
    block_.fail(message("wgmma ", number, " of the warp differs from that of another warp of its warpgroup, ",
                        first.where.text()),
                where);
  }
  if (++first.warps == kWarps) issued.erase(number);
}

void WarpgroupMatrices::issue(const WarpgroupProduct* const (&lanes)[kLanes], const RequireFences& require_fences,
                              Where where) {
  Warp& warp = self();
  const WarpgroupProduct& product = *lanes[0];
  for (const WarpgroupProduct* lane : lanes) {
    if (!lane->same_instruction(product)) block_.fail("wgmma that differs between the lanes of a warp", where);
  }
  if (warps_.size() / kWarps <= static_cast<size_t>(running.thread->warp / kWarps)) {
    block_.fail("wgmma needs whole warpgroups of 128 threads", where);
  }
  require_same_for_warpgroup(product, warp, where);
  const int cols = product.cols, count = cols / 4, warp_of_group = running.thread->warp % kWarps;
  if (cols < 8 || cols > kMostCols || cols % 8 != 0) block_.fail(message("wgmma with N = ", cols), where);

  Registers* rows[2];
  for (int i = 0; i < 2; ++i) {
    float* first[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) first[lane] = i == 0 ? lanes[lane]->upper : lanes[lane]->lower;
    Registers& registers = *(rows[i] = &registers_of(warp, first, count, where));
    if (registers.is_pending) {
      require_poison(registers, where);
      continue;
    }
    registers.results.clear();
    for (float* lane : first) registers.results.insert(registers.results.end(), lane, lane + count);
    if (std::memcmp(registers.results.data(), registers.known.data(), registers.known.size() * sizeof(float)) !=
        0) {
      block_.fail("the accumulators changed after the last wgmma.fence", where);
    }
  }

  Pending pending{warp.open_group, {}, {}, where};
  pending.left = read("left", product.left, product.left_is_transposed, warp_of_group * kWarpRows, kWarpRows,
                      require_fences, where);
  pending.right = read("right", product.right, product.right_is_transposed, 0, cols, require_fences, where);
  if (pending.left.depth_begin >= 0 && pending.right.depth_begin >= 0 &&
      pending.left.depth_begin != pending.right.depth_begin) {
    block_.fail(message("wgmma of the depth from ", pending.left.depth_begin, " of the left operand and from ",
                        pending.right.depth_begin, " of the right one"),
                where);
  }

  const auto widen = [&](uint16_t bits) {
    return product.format == Format::kBf16 ? bf16_to_float(bits) : f16_to_float(bits);
  };
  static thread_local float right[kDepth][kMostCols], sums[kWarpRows][kMostCols];
  for (int col = 0; col < cols; ++col) {
    for (int k = 0; k < kDepth; ++k) right[k][col] = widen(pending.right.entries[col * kDepth + k]);
  }
  const auto for_accumulators = [&](const auto& f) {  // f(accumulator, sum)
    for (int i = 0; i < 2; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        float* const of_lane = &rows[i]->results[lane * count];
        for (int c = 0; c < count; ++c)
          f(of_lane[c], sums[lane / 4 + 8 * i][8 * (c / 2) + 2 * (lane % 4) + c % 2]);
      }
    }
  };
  for_accumulators([&](float accumulator, float& sum) { sum = product.accumulates ? accumulator : 0; });
  // The order and rounding of sums are not specified; here, depths are added one by one.
  for (int row = 0; row < kWarpRows; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      const float left = widen(pending.left.entries[row * kDepth + k]);
      for (int col = 0; col < cols; ++col) sums[row][col] += left * right[k][col];
    }
  }
  for_accumulators([](float& accumulator, float sum) { accumulator = sum; });
  for (Registers* registers : rows) {
    registers->is_pending = true;
    registers->group = warp.open_group;
    for (float* lane : registers->lanes) std::memset(lane, 0xFF, count * sizeof(float));
  }
  warp.pending.push_back(std::move(pending));
}

void WarpgroupMatrices::commit() { ++self().open_group; }

void WarpgroupMatrices::wait(int pending, Where where) {
  Warp& warp = self();
  const int64_t end = warp.open_group - pending;  // groups before it are complete
  for (; !warp.pending.empty() && warp.pending.front().group < end; warp.pending.pop_front()) {
    const Pending& product = warp.pending.front();
    for (const Operand* operand : {&product.left, &product.right}) {
      if (!is_unchanged(*operand)) block_.fail("an operand changed before this wgmma was complete", product.where);
      for (const uint32_t offset : operand->offsets) --granules_[offset].readers;
    }
  }
  for (Registers& registers : warp.registers) {
    if (!registers.is_pending || registers.group >= end) continue;
    require_poison(registers, where);
    registers.is_pending = false;
    registers.known = registers.results;
    for (int lane = 0; lane < kLanes; ++lane) {
      std::copy_n(&registers.results[lane * registers.count], registers.count, registers.lanes[lane]);
    }
  }
}

void WarpgroupMatrices::require_exit(bool is_last) {
  if (!self().pending.empty()) {
    block_.fail("the thread ended with a wgmma under way, issued here; wait for it", self().pending.front().where);
  }
  for (const auto& issued : issued_) {
    if (is_last && !issued.empty()) {
      block_.fail("a wgmma that not all warps of the warpgroup executed", issued.begin()->second.where);
    }
  }
}

}  // namespace cyclip::emulation
