// The device primitives of ../kernels/cuda/hopper_primitives.cuh for the emulator.

#pragma once

#include "hopper.h"
#include "primitives.h"
#include "tensor_map.h"

#define __grid_constant__

namespace cyclip::emulation {

inline Hopper& units() { return running.block->hopper(); }

}  // namespace cyclip::emulation

namespace cyclip::cuda {

using TensorMap = CUtensorMap;
using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

inline EncodeTensorMap find_encode_tensor_map() { return &cuTensorMapEncodeTiled; }

// ---------------------------------------------------------------- mbarriers

struct Barrier {
  alignas(8) uint64_t state;
};

inline void barrier_init(Barrier& barrier, int arrivals, const char* name, int index,
                         emulation::Where where = emulation::Where::here()) {
  emulation::units().init(&barrier, arrivals, name, index, where);
}

inline void barrier_init_fence() { emulation::units().fence_init(); }

inline void barrier_arrive(Barrier& barrier, emulation::Where where = emulation::Where::here()) {
  emulation::units().arrive(&barrier, 0, where);
}

inline void barrier_arrive_expect(Barrier& barrier, uint32_t bytes,
                                  emulation::Where where = emulation::Where::here()) {
  emulation::units().arrive(&barrier, bytes, where);
}

inline void barrier_wait(Barrier& barrier, uint32_t parity, emulation::Where where = emulation::Where::here()) {
  emulation::units().wait(&barrier, parity, where);
}

// ---------------------------------------------------------------- copies and proxies

inline void prefetch_tensor_map(const TensorMap&) {}

inline void copy_tensor_async(void* shared, const TensorMap& map, int x, int y, Barrier& barrier,
                              emulation::Where where = emulation::Where::here()) {
  emulation::units().copy_tensor(shared, map, x, y, &barrier, where);
}

inline void proxy_fence() { emulation::units().fence_proxies(); }

// ---------------------------------------------------------------- wgmma

inline void wgmma_fence() {}

template <int kRows, int kCols>
void wgmma_fence(float (&sums)[kRows][kCols], emulation::Where where = emulation::Where::here()) {
  emulation::units().fence_registers(sums[0], kRows, kCols, where);
}

template <emulation::Format kFormat, bool kLeftTransposed, bool kRightTransposed, int kCount>
void wgmma_m64k16(float (&upper)[kCount], float (&lower)[kCount], uint64_t left, uint64_t right, bool accumulates,
                  emulation::Where where = emulation::Where::here()) {
  emulation::units().multiply(
      {upper, lower, 4 * kCount, kFormat, left, right, kLeftTransposed, kRightTransposed, accumulates}, where);
}

template <bool kLeftTransposed, bool kRightTransposed, int kCount>
void wgmma_bf16(float (&upper)[kCount], float (&lower)[kCount], uint64_t left, uint64_t right, bool accumulates,
                emulation::Where where = emulation::Where::here()) {
  wgmma_m64k16<emulation::Format::kBf16, kLeftTransposed, kRightTransposed>(upper, lower, left, right, accumulates,
                                                                            where);
}

template <bool kLeftTransposed, bool kRightTransposed>
void wgmma_f16(float (&upper)[32], float (&lower)[32], uint64_t left, uint64_t right, bool accumulates,
               emulation::Where where = emulation::Where::here()) {
  wgmma_m64k16<emulation::Format::kF16, kLeftTransposed, kRightTransposed>(upper, lower, left, right, accumulates,
                                                                           where);
}

inline void wgmma_commit() { emulation::units().commit(); }

template <int kPending>
void wgmma_wait(emulation::Where where = emulation::Where::here()) {
  static_assert(kPending >= 0 && kPending <= 7);
  emulation::units().wait_products(kPending, where);
}

template <int kRows, int kCols>
void keep_in_registers(float (&)[kRows][kCols]) {}

// NaN, so that a product that adds to them is visible.
template <int kRows, int kCols>
void undefine(float (&registers)[kRows][kCols]) {
  std::memset(registers, 0xFF, sizeof(registers));
}

// ---------------------------------------------------------------- threads

inline int warpgroup_index() { return static_cast<int>(threadIdx.x) / 128; }
inline bool is_elected() { return threadIdx.x % kWarpSize == 0; }

inline void named_barrier(int number, int threads, emulation::Where where = emulation::Where::here()) {
  emulation::units().named_barrier(number, threads, true, false, where);
}

inline bool named_barrier_any(int number, int threads, bool value,
                              emulation::Where where = emulation::Where::here()) {
  return emulation::units().named_barrier(number, threads, true, value, where);
}

inline void named_barrier_arrive(int number, int threads, emulation::Where where = emulation::Where::here()) {
  emulation::units().named_barrier(number, threads, false, false, where);
}

template <int kCount>
void release_registers(emulation::Where where = emulation::Where::here()) {
  emulation::units().set_registers(kCount, false, where);
}

template <int kCount>
void request_registers(emulation::Where where = emulation::Where::here()) {
  emulation::units().set_registers(kCount, true, where);
}

// ---------------------------------------------------------------- launches

template <typename Storage>
Storage& aligned_dynamic_shared(emulation::Where where = emulation::Where::here()) {
  static_assert(alignof(Storage) <= 1024 && sizeof(Storage) <= emulation::kMaxHopperSharedBytes);
  return dynamic_shared_of<Storage>(where);
}

template <typename Arguments>
Error launch_hopper(void (*kernel)(const Arguments), dim3 blocks, dim3 threads, size_t dynamic_shared_bytes,
                    LaunchSite site, const Arguments& arguments) {
  using Call = std::pair<void (*)(const Arguments), const Arguments*>;
  const Call call{kernel, &arguments};
  emulation::run({blocks, threads, dynamic_shared_bytes,
                  [](const void* call) {
                    const auto& [kernel, arguments] = *static_cast<const Call*>(call);
                    kernel(*arguments);
                  },
                  &call, site.where, emulation::kMaxHopperSharedBytes});
  return kSuccess;
}

}  // namespace cyclip::cuda
