#include "block.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <stdexcept>

#include "hopper.h"

namespace cyclip::emulation {

constinit thread_local Running running{};

namespace {

// Thrown in the waiting threads when another one fails, so that their stacks unwind.
struct Abandoned {};

struct Setting {
  Order order = Order::kAscending;
  uint64_t seed = 0;
} setting;

int64_t hopper_launch_count = 0;

std::string triple(uint3 index) { return message("(", index.x, ", ", index.y, ", ", index.z, ")"); }

int64_t count(dim3 size) { return int64_t{size.x} * size.y * size.z; }

uint3 position(int64_t number, dim3 size) {
  return {static_cast<unsigned>(number % size.x), static_cast<unsigned>(number / size.x % size.y),
          static_cast<unsigned>(number / size.x / size.y)};
}

// splitmix64
uint64_t next_random(uint64_t* state) {
  uint64_t z = *state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

template <typename T>
void shuffle(std::vector<T>* items, uint64_t* state) {
  for (size_t left = items->size(); left > 1; --left)
    std::swap((*items)[left - 1], (*items)[next_random(state) % left]);
}

}  // namespace

void set_order(Order order, uint64_t seed) { setting = {order, seed}; }

int64_t hopper_launches() { return hopper_launch_count; }

// ---------------------------------------------------------------- a block from begin to end

Block::Block(const Launch& launch)
    : launch(launch), count_(static_cast<int>(count(launch.threads))), random_state_(setting.seed) {
  threads_ = std::make_unique<Thread[]>(count_);
  warps_.resize((count_ + kLanes - 1) / kLanes);
  precedence_.resize(warps_.size());
  for (int i = 0; i < count_; ++i) {
    threads_[i].index = position(i, launch.threads);
    threads_[i].warp = i / kLanes;
    threads_[i].lane = i % kLanes;
  }
  host_.adopt_running_thread();
}

Block::~Block() = default;

std::exception_ptr Block::run(uint3 block_index, Slot& slot) {
  for (int i = 0; i < count_; ++i) threads_[i].fiber.identity = slot.identity(i);
  slot.next_use();
  index = block_index;
  slot_ = &slot;
  slot.shared.allow(launch.most_shared_bytes);
  slot.shared.reset(launch.dynamic_shared_bytes);
  for (size_t w = 0; w < warps_.size(); ++w) {
    const int lanes = std::min<int>(kLanes, count_ - static_cast<int>(w) * kLanes);
    warps_[w] = {};
    warps_[w].all = warps_[w].ready = ~Mask{0} >> (kLanes - lanes);
  }
  for (int i = 0; i < count_; ++i) {
    threads_[i].started = threads_[i].exited = false;
    threads_[i].waits_for = nullptr;
    threads_[i].fiber.prepare(slot.stacks.bottom(i), &Block::enter);
  }
  at_barrier_ = exited_ = 0;
  draw_precedence();

  Fiber& first = next();
  Fiber::change(host_, first);
  running = {};
  hopper_.reset();
  const std::string damage = slot.shared.damage();
  if (error_ == nullptr && !damage.empty()) {
    error_ = std::make_exception_ptr(std::runtime_error(
        message("kernel launched at ", launch.where.text(), ", block ", triple(index), ": ", damage)));
  }
  return error_;
}

CYCLIP_UNSEEN void Block::enter() {
  Block& block = *running.block;
  Thread& thread = *running.thread;
  Fiber::arrived(block.host_);
  acquire(block.slot_->key_of_this_use());
  block.execute(thread);
  block.finish(thread);
  Fiber& other = block.next();
  release(block.slot_->key_of_next_use());  // last, because the host may reuse this memory afterwards
  // There is nothing left to destroy here: the stack is reused without unwinding.
  Fiber::change(thread.fiber, other, true);
}

void Block::execute(Thread& thread) {
  try {
    launch.call_kernel(launch.arguments);
    require_exit(thread);
  } catch (const Abandoned&) {
  } catch (...) {
    const Unseen unseen;
    if (error_ == nullptr) error_ = std::current_exception();
    abandon();
  }
  copies(thread).clear();
}

CYCLIP_UNSEEN void Block::finish(Thread& thread) {
  Warp& warp = warps_[thread.warp];
  warp.ready &= ~(Mask{1} << thread.lane);
  warp.exited |= Mask{1} << thread.lane;
  thread.exited = true;
  ++exited_;
}

CYCLIP_UNSEEN void Block::require_exit(const Thread& thread) {
  const Warp& warp = warps_[thread.warp];
  if (const Where* copy = copies(thread).unfinished()) {
    fail("the thread ended with an asynchronous copy under way, issued here; wait for it", *copy);
  }
  if (warp.arrived != 0) {
    const int lane = std::countr_zero(warp.arrived);
    fail(message("the thread ended while lane ", lane, " of its warp waits here, in ", warp.name), warp.where);
  }
  if (at_barrier_ != 0) {
    fail("the thread ended while others of its block wait here, at a barrier that it never reached",
         barrier_where_);
  }
  if (hopper_ != nullptr) hopper_->require_exit(exited_ + 1 == count_);
}

// Resumes all threads, so that they end.
void Block::abandon() {
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    Warp& warp = warps_[thread.warp];
    const Mask lane = Mask{1} << thread.lane;
    warp.ready = thread.started && !thread.exited ? warp.ready | lane : warp.ready & ~lane;
  }
}

void Block::fail(const std::string& what, Where where) {
  const Unseen unseen;
  throw std::runtime_error(message("kernel launched at ", launch.where.text(), ", ", text(*running.thread), ", ",
                                   where.text(), ": ", what));
}

std::string Block::text(const Thread& thread) const {
  return message("block ", triple(index), ", thread ", triple(thread.index));
}

// ---------------------------------------------------------------- scheduling

uint64_t Block::random() { return next_random(&random_state_); }

void Block::draw_precedence() {
  const Unseen unseen;
  std::iota(precedence_.begin(), precedence_.end(), 0);
  if (setting.order == Order::kDescending) std::reverse(precedence_.begin(), precedence_.end());
  if (setting.order != Order::kRandom) return;
  shuffle(&precedence_, &random_state_);
  for (Warp& warp : warps_) warp.first_lane = static_cast<int>(random() % kLanes);
}

CYCLIP_UNSEEN Fiber& Block::next() {
  if (hopper_ != nullptr && error_ == nullptr) advance_copies(false);
  do {
    for (const int w : precedence_) {
      Warp& warp = warps_[w];
      if (warp.ready == 0) continue;
      int lane = std::countr_zero(warp.ready);
      if (setting.order == Order::kDescending) {
        lane = kLanes - 1 - std::countl_zero(warp.ready);
      } else if (setting.order == Order::kRandom) {
        lane = (std::countr_zero(std::rotr(warp.ready, warp.first_lane)) + warp.first_lane) % kLanes;
      }
      Thread& thread = thread_of(warp, lane);
      thread.started = true;
      if (hopper_ != nullptr && running.thread != &thread) hopper_->switch_threads();
      running = {this, &thread};
      return thread.fiber;
    }
  } while (error_ == nullptr && exited_ != count_ && resolve_wait());
  return host_;
}

// Makes a thread ready while all wait: a copy arrives or, in a deadlock, all threads end.
bool Block::resolve_wait() {
  const Unseen unseen;
  if (hopper_ != nullptr && advance_copies(true)) return true;
  error_ = std::make_exception_ptr(std::runtime_error(
      message("kernel launched at ", launch.where.text(), ", block ", triple(index), ": ", deadlock())));
  abandon();
  return true;
}

// Completes a copy, or none if there is none or it is not due yet.
bool Block::advance_copies(bool is_due) {
  const Unseen unseen;
  try {
    return hopper_->advance_copies(is_due);
  } catch (...) {
    error_ = std::current_exception();
    abandon();
    return true;
  }
}

std::string Block::deadlock() const {
  std::string list;
  const auto describe = [&](const Thread& thread) -> std::string {
    const Warp& warp = warps_[thread.warp];
    if (thread.waits_for != nullptr) return thread.waits_for->text();
    if ((warp.at_barrier >> thread.lane & 1) != 0) return "a barrier of the block, " + barrier_where_.text();
    return message("the other lanes in ", warp.name, ", ", warp.where.text());
  };
  for (int i = 0; i < count_; ++i) {
    if (threads_[i].exited) continue;
    const std::string reason = describe(threads_[i]);
    int last = i;
    while (last + 1 < count_ && !threads_[last + 1].exited && describe(threads_[last + 1]) == reason) ++last;
    list += message("\n  threads ", i, " to ", last, " wait for ", reason);
    i = last;
  }
  return "deadlock:" + list;
}

CYCLIP_UNSEEN void Block::wait_for(const Condition& condition) {
  Thread& self = *running.thread;
  self.waits_for = &condition;
  warps_[self.warp].ready &= ~(Mask{1} << self.lane);
  wait_for_turn();
}

CYCLIP_UNSEEN void Block::wake(const Condition& condition) {
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    if (thread.waits_for != &condition) continue;
    thread.waits_for = nullptr;
    warps_[thread.warp].ready |= Mask{1} << thread.lane;
  }
  if (setting.order == Order::kRandom) draw_precedence();
}

void Block::yield() { wait_for_turn(); }

Hopper& Block::hopper() {
  if (hopper_ == nullptr) {
    const Unseen unseen;
    hopper_ = std::make_unique<Hopper>(*this);
  }
  return *hopper_;
}

uint64_t Block::random_below(uint64_t limit) { return setting.order == Order::kRandom ? random() % limit : limit; }

CYCLIP_UNSEEN Thread& Block::thread_of(const Warp& warp, int lane) {
  return threads_[(&warp - warps_.data()) * kLanes + lane];
}

CYCLIP_UNSEEN void Block::wait_for_turn() {
  Thread& self = *running.thread;
  Fiber& other = next();
  if (&other != &self.fiber) Fiber::change(self.fiber, other);
  if (error_ != nullptr) throw Abandoned{};
}

CYCLIP_UNSEEN bool Block::barrier(Where where, bool vote) {
  Thread& self = *running.thread;
  Warp& warp = warps_[self.warp];
  if (warp.arrived != 0) {
    fail(message("barrier, while lane ", std::countr_zero(warp.arrived), " of the warp waits in ", warp.name,
                 " at ", warp.where.text()),
         where);
  }
  if (exited_ != 0) {
    const Thread* const ended =
        std::find_if(threads_.get(), threads_.get() + count_, [](auto& t) { return t.exited; });
    fail(message("barrier that not all threads of the block can reach: ", text(*ended), " has ended"), where);
  }
  if (at_barrier_ != 0 && where.line != barrier_where_.line) {
    fail(message("barrier, while other threads of the block wait at another one, ", barrier_where_.text()), where);
  }
  barrier_where_ = where;

  // Two alternating keys: a thread may arrive at the next barrier before others have left this one.
  const unsigned turn = barriers_ % 2;
  char* const key = &barrier_keys_[turn];
  release(key);
  votes_[turn] = (at_barrier_ > 0 && votes_[turn]) || vote;
  const Mask lane = Mask{1} << self.lane;
  warp.ready &= ~lane;
  warp.at_barrier |= lane;
  if (++at_barrier_ == count_) {
    at_barrier_ = 0;
    ++barriers_;
    for (Warp& other : warps_) {
      other.ready = other.all;
      other.at_barrier = 0;
    }
    draw_precedence();
  }
  wait_for_turn();
  acquire(key);
  return votes_[turn];
}

CYCLIP_UNSEEN void Block::collective(const char* name, Collective perform, void* operands, Where where) {
  Thread& self = *running.thread;
  Warp& warp = warps_[self.warp];
  require_whole_warp(warp, name, perform, where);
  const Mask lane = Mask{1} << self.lane;
  warp.name = name;
  warp.perform = perform;
  warp.where = where;
  warp.operands[self.lane] = operands;
  warp.arrived |= lane;
  warp.ready &= ~lane;
  if (warp.arrived == warp.all) {
    warp.arrived = 0;
    warp.ready = warp.all;
    perform(warp.operands);
  }
  wait_for_turn();
}

CYCLIP_UNSEEN void Block::require_whole_warp(const Warp& warp, const char* name, Collective perform, Where where) {
  if (warp.all != ~Mask{0}) {
    fail(message(name, " in a warp of ", std::popcount(warp.all),
                 " threads; make the block a multiple of 32 threads"),
         where);
  }
  if (const Mask missing = warp.exited | warp.at_barrier) {
    const int lane = std::countr_zero(missing);
    fail(message(name, " without the whole warp: lane ", lane,
                 (warp.exited >> lane & 1) != 0 ? " has ended" : " waits at a barrier, " + barrier_where_.text()),
         where);
  }
  if (warp.arrived != 0 && (warp.perform != perform || warp.where.line != where.line)) {
    fail(message(name, ", while lane ", std::countr_zero(warp.arrived), " of the warp waits in ", warp.name,
                 " at ", warp.where.text()),
         where);
  }
}

// ---------------------------------------------------------------- a grid

namespace {

void require_launchable(const Launch& launch) {
  const auto require = [&](bool holds, const std::string& what) {
    if (!holds) throw std::runtime_error(message("launch at ", launch.where.text(), ": ", what));
  };
  const auto [bx, by, bz] = launch.blocks;
  const auto [tx, ty, tz] = launch.threads;
  require(bx >= 1 && by >= 1 && bz >= 1 && bx < 1u << 31 && by < 1u << 16 && bz < 1u << 16,
          message(triple({bx, by, bz}), " blocks; must be from 1 to (2^31 - 1, 2^16 - 1, 2^16 - 1)"));
  require(tx >= 1 && ty >= 1 && tz >= 1 && tz <= 64 && count(launch.threads) <= 1024,
          message(triple({tx, ty, tz}), " threads; must be from 1 to 1024 in all, and 64 along z"));
  require(
      launch.dynamic_shared_bytes <= launch.most_shared_bytes,
      message(launch.dynamic_shared_bytes, " bytes of dynamic shared memory; at most ", launch.most_shared_bytes,
              launch.most_shared_bytes == kMaxSharedBytes ? " on all architectures" : ""));
}

// The order in which the blocks run.
class BlockOrder {
 public:
  explicit BlockOrder(int64_t blocks) : blocks_(blocks) {
    if (setting.order != Order::kRandom) return;
    shuffled_.resize(blocks);
    std::iota(shuffled_.begin(), shuffled_.end(), 0);
    uint64_t state = ~setting.seed;
    shuffle(&shuffled_, &state);
  }

  int64_t operator[](int64_t i) const {
    if (setting.order == Order::kRandom) return shuffled_[i];
    return setting.order == Order::kDescending ? blocks_ - 1 - i : i;
  }

 private:
  int64_t blocks_;
  std::vector<int64_t> shuffled_;
};

}  // namespace

void run(const Launch& launch) {
  require_launchable(launch);
  const Unseen unseen;
  if (launch.most_shared_bytes == kMaxHopperSharedBytes) ++hopper_launch_count;
  const int64_t blocks = count(launch.blocks);
  const BlockOrder order(blocks);
  Block block(launch);
  Slots& slots = Slots::of(static_cast<int>(count(launch.threads)));
  std::exception_ptr error;
  for (int64_t i = 0; i < blocks && error == nullptr; ++i)
    error = block.run(position(order[i], launch.blocks), slots[i]);
  slots.acquire_all();  // only here, because blocks are not ordered among themselves
  if (error != nullptr) std::rethrow_exception(error);
}

}  // namespace cyclip::emulation
