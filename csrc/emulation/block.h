// Executes a grid, thread by thread: fibers and their scheduling. Blocks run one after another. The
// threads of a block switch when they have to wait for one another, and at the instructions of hopper.h.

#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"
#include "slot.h"
#include "message.h"

// The same types as in the vendor's headers.
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cyclip::emulation {

inline constexpr int kLanes = 32;

struct Launch {
  dim3 blocks, threads;
  size_t dynamic_shared_bytes;
  void (*call_kernel)(const void* arguments);
  const void* arguments;
  Where where;
  size_t most_shared_bytes = kMaxSharedBytes;
};

class Hopper;

// A reason for a thread to wait, other than a barrier of the block or the other lanes of its warp.
class Condition {
 public:
  virtual std::string text() const = 0;

 protected:
  ~Condition() = default;
};

// A collective operation of a warp: a function of the operands of all lanes, run when the last lane arrives.
using Collective = void (*)(void* const (&operands)[kLanes]);

struct Thread {
  uint3 index;
  int warp, lane;
  bool started, exited;
  const Condition* waits_for;  // null if it does not
  Fiber fiber;
};

class Block {
 public:
  explicit Block(const Launch& launch);
  ~Block();
  std::exception_ptr run(uint3 index, Slot& slot);  // null if there was no error

  const Launch& launch;
  uint3 index{};
  SharedMemory& shared() { return slot_->shared; }
  AsyncCopies& copies(const Thread& thread) { return slot_->copies[&thread - threads_.get()]; }

  // Called by the running thread. They return when it may continue.
  bool barrier(Where where, bool vote = false);  // returns whether any thread voted true
  void collective(const char* name, Collective perform, void* operands, Where where);

  void wait_for(const Condition& condition);  // until `wake` is called with the same condition
  void yield();                               // lets threads that take precedence run first

  void wake(const Condition& condition);
  Hopper& hopper();  // the asynchronous units of this block, created on first use
  int threads() const { return count_; }
  int number_of(const Thread& thread) const { return static_cast<int>(&thread - threads_.get()); }
  Thread& thread(int number) const { return threads_[number]; }
  std::string text(const Thread& thread) const;
  // A random number below `limit`, or `limit` in the other orders.
  uint64_t random_below(uint64_t limit);

  // Called by the running thread. Ends the launch with this message.
  [[noreturn]] void fail(const std::string& what, Where where);

 private:
  using Mask = uint32_t;  // of the lanes of a warp
  struct Warp {
    Mask all, ready, at_barrier, exited;
    Mask arrived;  // at the collective
    Collective perform;
    const char* name;
    Where where;
    void* operands[kLanes];
    int first_lane;  // the lane that takes precedence in random order
  };

  static void enter();
  void execute(Thread& thread);
  void require_exit(const Thread& thread);
  void finish(Thread& thread);
  void abandon();

  Fiber& next();
  bool resolve_wait();
  bool advance_copies(bool is_due);
  void wait_for_turn();
  void draw_precedence();
  void require_whole_warp(const Warp& warp, const char* name, Collective perform, Where where);
  std::string deadlock() const;
  Thread& thread_of(const Warp& warp, int lane);
  uint64_t random();

  std::unique_ptr<Thread[]> threads_;
  std::vector<Warp> warps_;
  std::vector<int> precedence_;  // warps in the order in which they run
  int count_;
  int at_barrier_ = 0, exited_ = 0;
  unsigned barriers_ = 0;  // number of barriers that all threads have passed
  Where barrier_where_{};
  char barrier_keys_[2] = {};
  bool votes_[2] = {};
  std::exception_ptr error_;
  Fiber host_;
  Slot* slot_ = nullptr;
  std::unique_ptr<Hopper> hopper_;
  uint64_t random_state_;
};

// The running block and thread; null outside of kernels.
struct Running {
  Block* block;
  Thread* thread;
};
extern constinit thread_local Running running;

// Runs the whole grid. Throws the exception of a kernel, or std::runtime_error if a kernel misuses
// a primitive.
void run(const Launch& launch);

}  // namespace cyclip::emulation
