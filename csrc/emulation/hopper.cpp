#include "hopper.h"

#include <algorithm>
#include <cstring>

#include "sanitizers.h"

namespace cyclip::emulation {

namespace {

constexpr size_t kBarrierBytes = 8;
constexpr uint64_t kBarrierMark = 0xBA44'1E40'0000'0000u;  // the content of an mbarrier, with its offset
constexpr int kMostArrivals = (1 << 20) - 1;
constexpr int kWarpsOfGroup = 4;

uint64_t content(const unsigned char* memory) {
  uint64_t bits;
  std::memcpy(&bits, memory, sizeof(bits));
  return bits;
}

}  // namespace

// ---------------------------------------------------------------- the reasons for waiting

std::string TransactionBarrier::text() const {
  return message("mbarrier ", name, ": phase ", phase, ", ", pending, " of ", arrivals, " arrivals and ", bytes,
                 " bytes are missing");
}

std::string NamedBarrier::text() const {
  return message("named barrier ", number, ": ", arrived, " of ", expected, " threads have arrived");
}

RegisterPool::RegisterPool(int threads) {
  constexpr int kRegisters = 65536, kMost = 255;
  of_warp.assign((threads + kLanes - 1) / kLanes, std::min(kRegisters / threads / 8 * 8, kMost));
}

std::string RegisterPool::text() const {
  return message("setmaxnreg to ", requested, " registers; ", free, " are free in the pool of the block");
}

Hopper::Hopper(Block& block)
    : block_(block),
      shared_(block.shared()),
      guard_(block.shared()),
      granules_(block.shared()),
      copy_identity_(create_identity()),
      registers_(block.threads()),
      matrices_(block, granules_) {
  for (int i = 0; i < 16; ++i) {
    named_[i].number = i;
    named_[i].has_arrived.resize(block.threads());
  }
}

Hopper::~Hopper() {
  acquire(&copy_key_);  // the next block uses the same memory
  destroy_identity(copy_identity_);
}

// ---------------------------------------------------------------- mbarriers

void Hopper::init(void* barrier, int arrivals, const char* name, int index, Where where) {
  seen_write(barrier, kBarrierBytes);
  const Unseen unseen;
  guard_.start();
  if (!shared_.contains(barrier, kBarrierBytes) || shared_.offset(barrier) % kBarrierBytes != 0) {
    block_.fail("an mbarrier must be 8 aligned bytes of shared memory", where);
  }
  if (arrivals < 1 || arrivals > kMostArrivals) {
    block_.fail(message("mbarrier for ", arrivals, " arrivals; must be from 1 to 2^20 - 1"), where);
  }
  const uint32_t offset = shared_.offset(barrier);
  auto& state = barriers_[offset];
  if (state != nullptr) block_.fail(message("the mbarrier ", state->name, " is initialized again"), where);
  state = std::make_unique<TransactionBarrier>(message(name, "[", index, "]"), arrivals, block_.number_of(self()));
  const uint64_t mark = kBarrierMark | offset;
  std::memcpy(shared_.mirror(barrier), &mark, sizeof(mark));
}

void Hopper::fence_init() {
  const Unseen unseen;
  const int thread = block_.number_of(self());
  for (auto& [offset, barrier] : barriers_) barrier->is_fenced = barrier->is_fenced || barrier->thread == thread;
}

TransactionBarrier& Hopper::barrier_at(void* barrier, Where where) {
  if (!shared_.contains(barrier, kBarrierBytes)) block_.fail("an mbarrier must lie in shared memory", where);
  const uint32_t offset = shared_.offset(barrier);
  const auto found = barriers_.find(offset);
  if (found == barriers_.end()) block_.fail("the mbarrier is not initialized", where);
  if (content(shared_.mirror(barrier)) != (kBarrierMark | offset)) {
    block_.fail(message("the mbarrier ", found->second->name, " was overwritten"), where);
  }
  return *found->second;
}

void Hopper::arrive(void* at, int64_t expected_bytes, Where where) {
  seen_read(at, kBarrierBytes);
  {
    const Unseen unseen;
    TransactionBarrier& barrier = barrier_at(at, where);
    if (barrier.pending == 0) {
      block_.fail(message("more than ", barrier.arrivals, " arrivals in phase ", barrier.phase,
                          " of the mbarrier ", barrier.name),
                  where);
    }
    release(barrier.key(barrier.phase));
    barrier.bytes += expected_bytes;
    --barrier.pending;
    finish_phase(barrier);
  }
  block_.yield();
}

void Hopper::finish_phase(TransactionBarrier& barrier) {
  constexpr int64_t kMostBytes = (1 << 20) - 1;
  if (std::abs(barrier.bytes) > kMostBytes) {
    block_.fail(message(barrier.bytes, " bytes are expected at the mbarrier ", barrier.name,
                        "; must be from -2^20 + 1 to 2^20 - 1"),
                Where::here());
  }
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.arrivals;
  ++barrier.phase;
  block_.wake(barrier);
}

void Hopper::wait(void* at, uint32_t parity, Where where) {
  seen_read(at, kBarrierBytes);
  const Unseen unseen;
  TransactionBarrier& barrier = barrier_at(at, where);
  while (barrier.phase % 2 == parity) block_.wait_for(barrier);
  acquire(barrier.key(parity));
}

// ---------------------------------------------------------------- bulk tensor copies

void Hopper::copy_tensor(void* shared, const CUtensorMap& map, int x, int y, void* at, Where where) {
  {
    const Unseen unseen;
    guard_.start();
    const auto require = [&](bool holds, const char* what) {
      if (!holds) block_.fail(what, where);
    };
    require(map.magic == CUtensorMap::kEncoded, "the tensor map was not encoded");
    require(reinterpret_cast<uintptr_t>(&map) % 64 == 0, "a tensor map must be aligned to 64 bytes");
    TransactionBarrier& barrier = barrier_at(at, where);
    require(barrier.is_fenced,
            "no fence.mbarrier_init by the thread that initialized the mbarrier before the copy");
    const Copy copy = {
        map,  x, y, shared_.contains(shared, 1) ? shared_.offset(shared) : 0, &barrier, block_.number_of(self()),
        where};
    require(shared_.contains(shared, copy.bytes()), "the destination must lie in the block's shared memory");
    require(copy.to % 128 == 0, "the destination must be aligned to 128 bytes");
    require_fences(copy.to, copy.bytes(), "the copy overwrites", where);
    for (uint32_t byte = 0; byte < copy.bytes(); byte += Granules::kBytes) {
      Granule& granule = granules_[copy.to + byte];
      require(granule.state != Granule::kUnderWay, "the copy overwrites the destination of a copy under way");
      require(granule.readers == 0, "the copy overwrites an operand of a wgmma that is not complete");
      granule = {Granule::kUnderWay, 0, nullptr, 0, 0};
    }
    std::memset(shared_.mirror(shared), kUnwritten, copy.bytes());
    release(&copy_key_);
    copies_.push_back(copy);
  }
  block_.yield();
}

void Hopper::require_fences(uint32_t offset, size_t bytes, const char* what, Where where) {
  const int thread = guard_.use_asynchronously(offset, bytes);
  if (thread >= 0) {
    block_.fail(message(what, " shared memory that ", block_.text(block_.thread(thread)),
                        " accessed without a fence.proxy.async"),
                where);
  }
}

bool Hopper::advance_copies(bool is_due) {
  constexpr uint64_t kDelay = 200;
  if (copies_.empty() || (!is_due && block_.random_below(kDelay) != 0)) return false;
  const uint64_t count = copies_.size(), chosen = block_.random_below(count) % count;
  const Copy copy = copies_[chosen];
  copies_.erase(copies_.begin() + static_cast<int64_t>(chosen));
  Thread* const thread = running.thread;
  running.thread = &block_.thread(copy.thread);  // for messages
  deliver(copy);
  running.thread = thread;
  return true;
}

namespace {

// The accesses of one copy, for ThreadSanitizer.
CYCLIP_UNSEEN void record_copy(void* identity, void* issue_key, void* arrival_key, void* to, size_t bytes,
                               const unsigned char* from, int64_t pitch, int64_t lines, size_t line_bytes) {
  const Impersonation impersonation(identity);
  acquire(issue_key);
  for (int64_t line = 0; line < lines; ++line) seen_read(from + line * pitch, line_bytes);
  seen_write(to, bytes);
  release(arrival_key);
  release(issue_key);
}

}  // namespace

void Hopper::deliver(const Copy& copy) {
  const CUtensorMap& map = copy.map;
  constexpr int kElements = 8;  // of a granule
  int64_t line_bytes = 0, lines = 0;
  for (int line = 0; line < map.box[1]; ++line) {
    const int64_t y = int64_t{copy.y} + line;
    for (int col = 0; col < map.box[0]; col += kElements) {
      uint16_t elements[kElements] = {};  // zero outside of the tensor
      const int64_t x = int64_t{copy.x} + col;
      const unsigned char* const from = map.address + y * map.pitch;
      for (int i = 0; i < kElements; ++i) {
        if (y < 0 || y >= map.extent[1] || x + i < 0 || x + i >= map.extent[0]) continue;
        std::memcpy(&elements[i], from + (x + i) * map.element_bytes, sizeof(elements[i]));
        if (line == 0) line_bytes += map.element_bytes;
      }
      uint32_t to = copy.to + static_cast<uint32_t>((line * map.box[0] + col) * map.element_bytes);
      if (map.swizzle == CU_TENSOR_MAP_SWIZZLE_128B) to = swizzled_128(to);
      std::memcpy(shared_.mirror(shared_.at(to)), elements, sizeof(elements));
      granules_[to] = {Granule::kArrived, 0, map.address, static_cast<int>(x), static_cast<int>(y)};
    }
    if (y >= 0 && y < map.extent[1]) ++lines;
  }
  TransactionBarrier& barrier = *copy.barrier;
  const bool is_inside = copy.x >= 0 && copy.y >= 0;  // only these reads are recorded
  record_copy(copy_identity_, &copy_key_, barrier.key(barrier.phase), shared_.at(copy.to), copy.bytes(),
              is_inside ? map.address + copy.y * map.pitch + int64_t{copy.x} * map.element_bytes : nullptr,
              map.pitch, is_inside ? lines : 0, static_cast<size_t>(line_bytes));
  barrier.bytes -= static_cast<int64_t>(copy.bytes());
  finish_phase(barrier);
}

// ---------------------------------------------------------------- wgmma

namespace {

// Calls f with the operands of all lanes once they have arrived.
template <typename Operands, typename F>
void on_whole_warp(Block& block, const char* name, const Operands& own, const F& f, Where where) {
  struct Call {
    const Operands* operands;
    const F* f;
    static void perform(void* const (&lanes)[kLanes]) {
      const Unseen unseen;
      const Operands* operands[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) operands[lane] = static_cast<const Call*>(lanes[lane])->operands;
      (*static_cast<const Call*>(lanes[0])->f)(operands);
    }
  };
  Call call{&own, &f};
  block.collective(name, &Call::perform, &call, where);
}

struct Nothing {};

}  // namespace

void Hopper::fence_registers(float* registers, int rows, int cols, Where where) {
  const Unseen unseen;
  on_whole_warp(
      block_, "wgmma.fence", registers[0],
      [&](const float* const(&first)[kLanes]) {
        float* lanes[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = const_cast<float*>(first[lane]);
        matrices_.fence(lanes, rows, cols);
      },
      where);
}

void Hopper::multiply(const WarpgroupProduct& product, Where where) {
  {
    const Unseen unseen;
    guard_.start();
    release(matrices_.key(self().warp));
    on_whole_warp(
        block_, "wgmma.mma_async", product,
        [&](const WarpgroupProduct* const(&lanes)[kLanes]) {
          const auto require = [&](uint32_t offset) {
            require_fences(offset, Granules::kBytes, "the matrix descriptor covers", where);
          };
          matrices_.issue(lanes, require, where);
        },
        where);
  }
  block_.yield();
}

void Hopper::commit() {
  const Unseen unseen;
  on_whole_warp(
      block_, "wgmma.commit_group", Nothing{}, [&](const Nothing* const(&)[kLanes]) { matrices_.commit(); },
      Where::here());
}

void Hopper::wait_products(int pending, Where where) {
  block_.yield();
  const Unseen unseen;
  on_whole_warp(
      block_, "wgmma.wait_group", Nothing{},
      [&](const Nothing* const(&)[kLanes]) { matrices_.wait(pending, where); }, where);
  acquire(matrices_.key(self().warp));
}

// ---------------------------------------------------------------- other instructions

void Hopper::fence_proxies() {
  const Unseen unseen;
  guard_.fence(block_.number_of(self()));
}

bool Hopper::named_barrier(int number, int threads, bool waits, bool vote, Where where) {
  const Unseen unseen;
  if (number < 1 || number > 15) {
    block_.fail(message("named barrier ", number, "; must be from 1 to 15, as 0 is that of the whole block"),
                where);
  }
  NamedBarrier& barrier = named_[number];
  if (threads <= 0 || threads % kLanes != 0 || threads > block_.threads()) {
    block_.fail(message("named barrier for ", threads, " threads; must be whole warps of the block"), where);
  }
  if (barrier.arrived != 0 && barrier.expected != threads) {
    block_.fail(message("named barrier ", number, " for ", threads, " threads, while others wait there for ",
                        barrier.expected),
                where);
  }
  const int own = block_.number_of(self());
  if (barrier.has_arrived[own]) {
    block_.fail(message("the thread arrives twice at the named barrier ", number, ", of which ", barrier.arrived,
                        " of ", threads, " threads have arrived"),
                where);
  }
  const unsigned turn = barrier.turns;
  release(barrier.key(turn));
  barrier.votes[turn % 2] = (barrier.arrived > 0 && barrier.votes[turn % 2]) || vote;
  barrier.expected = threads;
  barrier.has_arrived[own] = true;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    std::fill(barrier.has_arrived.begin(), barrier.has_arrived.end(), false);
    ++barrier.turns;
    block_.wake(barrier);
    block_.yield();
  } else if (waits) {
    while (barrier.turns == turn) block_.wait_for(barrier);
  }
  if (waits) acquire(barrier.key(turn));
  return barrier.votes[turn % 2];
}

void Hopper::set_registers(int count, bool increases, Where where) {
  const Unseen unseen;
  int& own = registers_.of_warp[self().warp];
  if (count < 24 || count > 256 || count % 8 != 0) {
    block_.fail(message("setmaxnreg to ", count, " registers; must be a multiple of 8 from 24 to 256"), where);
  }
  // The last lane of the warp to arrive changes the number.
  bool is_last = false;
  on_whole_warp(block_, "setmaxnreg", is_last, [&](const bool* const(&)[kLanes]) { is_last = true; }, where);
  if (!is_last) {
    while (own != count) block_.wait_for(registers_);
    return;
  }
  if (increases ? count < own : count > own) {
    block_.fail(message("setmaxnreg.", increases ? "inc" : "dec", " from ", own, " to ", count, " registers"),
                where);
  }
  while (registers_.free < count - own) {
    registers_.requested = count;
    block_.wait_for(registers_);
  }
  registers_.free -= count - own;
  own = count;
  block_.wake(registers_);
}

void Hopper::require_exit(bool is_last) {
  const Unseen unseen;
  matrices_.require_exit(is_last);
  const std::vector<int>& registers = registers_.of_warp;
  for (int warp = 0; is_last && warp + kWarpsOfGroup <= static_cast<int>(registers.size());
       warp += kWarpsOfGroup) {
    if (std::count(&registers[warp], &registers[warp] + kWarpsOfGroup, registers[warp]) != kWarpsOfGroup) {
      block_.fail("setmaxnreg by some warps of a warpgroup", Where::here());
    }
  }
  if (is_last && !copies_.empty()) {
    block_.fail("the block ended with a bulk tensor copy under way, issued here; wait for it",
                copies_.front().where);
  }
}

}  // namespace cyclip::emulation
