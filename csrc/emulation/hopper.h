// The asynchronous units of a block on Hopper GPUs: mbarriers, bulk tensor copies, wgmma, named barriers and the
// pool of registers (PTX ISA, the sections named at each operation). hopper_primitives.h calls it.

#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "block.h"
#include "proxies.h"
#include "tensor_map.h"
#include "warpgroup_matrices.h"

namespace cyclip::emulation {

// "mbarrier": a phase ends when all its arrivals and all its bytes have arrived.
class TransactionBarrier final : public Condition {
 public:
  TransactionBarrier(std::string name, int arrivals, int thread)
      : name(std::move(name)), arrivals(arrivals), thread(thread), pending(arrivals) {}

  std::string text() const override;
  void* key(unsigned phase) { return &keys_[phase % 2]; }

  const std::string name;
  const int arrivals;
  const int thread;  // that initialized it
  int pending;
  int64_t bytes = 0;
  unsigned phase = 0;
  bool is_fenced = false;

 private:
  char keys_[2] = {};
};

// "barrier": barriers 1 to 15 of a block, for any number of whole warps.
class NamedBarrier final : public Condition {
 public:
  std::string text() const override;
  void* key(unsigned turn) { return &keys_[turn % 2]; }

  int number = 0, expected = 0, arrived = 0;
  unsigned turns = 0;
  std::vector<bool> has_arrived;  // of each thread
  bool votes[2] = {};

 private:
  char keys_[2] = {};
};

// "setmaxnreg": registers per thread, and the number that is free per thread of a warp, summed over the warps.
class RegisterPool final : public Condition {
 public:
  explicit RegisterPool(int threads);
  std::string text() const override;

  std::vector<int> of_warp;
  int free = 0, requested = 0;
};

class Hopper {
 public:
  explicit Hopper(Block& block);
  ~Hopper();

  // ---------------------------------------------------------------- mbarriers

  void init(void* barrier, int arrivals, const char* name, int index, Where where);
  void fence_init();
  void arrive(void* barrier, int64_t expected_bytes, Where where);
  void wait(void* barrier, uint32_t parity, Where where);

  // ---------------------------------------------------------------- bulk tensor copies

  // "cp.async.bulk.tensor": the destination is unwritten until the copy arrives: at a random time, or, in the
  // other orders, when all threads wait.
  void copy_tensor(void* shared, const CUtensorMap& map, int x, int y, void* barrier, Where where);
  bool advance_copies(bool is_due);

  // ---------------------------------------------------------------- wgmma

  void fence_registers(float* registers, int rows, int cols, Where where);
  void multiply(const WarpgroupProduct& product, Where where);
  void commit();
  void wait_products(int pending, Where where);

  // ---------------------------------------------------------------- other instructions

  void fence_proxies();
  bool named_barrier(int number, int threads, bool waits, bool vote, Where where);
  void set_registers(int count, bool increases, Where where);

  CYCLIP_UNSEEN void switch_threads() { guard_.switch_threads(); }
  void require_exit(bool is_last);  // called by a thread that ends

 private:
  struct Copy {
    CUtensorMap map;
    int x, y;
    uint32_t to;
    TransactionBarrier* barrier;
    int thread;
    Where where;
    size_t bytes() const { return size_t{2} * map.box[0] * map.box[1]; }
  };

  TransactionBarrier& barrier_at(void* barrier, Where where);
  void finish_phase(TransactionBarrier& barrier);
  void deliver(const Copy& copy);
  void require_fences(uint32_t offset, size_t bytes, const char* what, Where where);
  Thread& self() const { return *running.thread; }

  Block& block_;
  SharedMemory& shared_;
  ProxyGuard guard_;
  Granules granules_;
  std::map<uint32_t, std::unique_ptr<TransactionBarrier>> barriers_;
  std::deque<Copy> copies_;
  void* copy_identity_;
  char copy_key_ = 0;
  NamedBarrier named_[16];
  RegisterPool registers_;
  WarpgroupMatrices matrices_;
};

}  // namespace cyclip::emulation
