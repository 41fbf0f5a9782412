// The device primitives of ../kernels/cuda/primitives.cuh and nvcc's built-in names, for the emulator. Each
// checks the preconditions that a GPU does not check. If one fails, an exception with the source line and the
// thread ends the launch.

#pragma once

#include <math.h>  // declares the functions and their overloads in the global namespace

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "block.h"
#include "matrices.h"
#include "numbers.h"
#include "sanitizers.h"
#include "message.h"

// ---------------------------------------------------------------- nvcc's built-in names

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (::cyclip::emulation::running.thread->index)
#define blockIdx (::cyclip::emulation::running.block->index)
#define blockDim (::cyclip::emulation::running.block->launch.threads)
#define gridDim (::cyclip::emulation::running.block->launch.blocks)

#define CYCLIP_UNROLL
#define CYCLIP_NO_UNROLL
#define CYCLIP_SHARED(type, name) type& name = ::cyclip::emulation::shared_variable<type>([] {})

namespace cyclip::emulation {

// A separate function, and so a separate key, for each lambda and thus for each declaration.
template <typename T, typename Declaration>
T& shared_variable(Declaration) {
  static_assert(std::is_trivially_default_constructible_v<T> && std::is_trivially_destructible_v<T>);
  static const char key = 0;
  return *static_cast<T*>(running.block->shared().variable(&key, sizeof(T)));
}

// The asynchronous copies of the running thread.
inline AsyncCopies& copies() { return running.block->copies(*running.thread); }

inline void require_shared(const void* address, const char* what, Where where) {
  Block& block = *running.block;
  if (!block.shared().contains(address, AsyncCopies::kBytes)) {
    block.fail(message(what, " must lie in the block's shared memory, with the 16 bytes from there"), where);
  }
  if (reinterpret_cast<uintptr_t>(address) % AsyncCopies::kBytes != 0) {
    block.fail(message(what, " must be aligned to 16 bytes"), where);
  }
}

inline void load_matrices(const char* name, Collective perform, uint32_t (&out)[4], const void* row, Where where) {
  require_shared(row, "the row of a matrix", where);
  seen_read(row, AsyncCopies::kBytes);
  LoadMatrices operands{out, row};
  running.block->collective(name, perform, &operands, where);
}

inline void mma(const char* name, Collective perform, float (&c)[4], const uint32_t (&a)[4],
                const uint32_t (&b)[2], Where where) {
  Mma operands{c, a, b};
  running.block->collective(name, perform, &operands, where);
}

}  // namespace cyclip::emulation

namespace cyclip::cuda {

inline constexpr int kWarpSize = emulation::kLanes;

// ---------------------------------------------------------------- blocks and warps

inline void block_barrier(emulation::Where where = emulation::Where::here()) {
  emulation::running.block->barrier(where);
}

inline bool block_any(bool value, emulation::Where where = emulation::Where::here()) {
  return emulation::running.block->barrier(where, value);
}

template <typename T>
T shuffle_xor(T value, int mask, emulation::Where where = emulation::Where::here()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  struct Operands {
    T value, result;
    int mask;

    CYCLIP_UNSEEN static void perform(void* const (&lanes)[kWarpSize]) {
      for (int lane = 0; lane < kWarpSize; ++lane) {
        auto* const to = static_cast<Operands*>(lanes[lane]);
        to->result = static_cast<const Operands*>(lanes[lane ^ to->mask])->value;
      }
    }
  };
  if (mask < 0 || mask >= kWarpSize) {
    emulation::running.block->fail(emulation::message("shuffle_xor with mask ", mask, "; must be from 0 to 31"),
                                   where);
  }
  Operands operands{value, value, mask};
  emulation::running.block->collective("shuffle_xor", &Operands::perform, &operands, where);
  return operands.result;
}

template <typename Storage>
Storage& dynamic_shared_of(emulation::Where where) {
  static_assert(std::is_trivially_default_constructible_v<Storage> && std::is_trivially_destructible_v<Storage>);
  emulation::Block& block = *emulation::running.block;
  if (sizeof(Storage) > block.shared().dynamic_bytes()) {
    block.fail(emulation::message("dynamic_shared of ", sizeof(Storage), " bytes, but the launch gave ",
                                  block.shared().dynamic_bytes()),
               where);
  }
  return *reinterpret_cast<Storage*>(block.shared().dynamic());
}

template <typename Storage>
Storage& dynamic_shared(emulation::Where where = emulation::Where::here()) {
  static_assert(alignof(Storage) <= 128);
  return dynamic_shared_of<Storage>(where);
}

inline uint32_t shared_address(const void* shared, emulation::Where where = emulation::Where::here()) {
  emulation::Block& block = *emulation::running.block;
  if (!block.shared().contains(shared, 1))
    block.fail("the argument of shared_address must be shared memory", where);
  return block.shared().offset(shared);
}

// ---------------------------------------------------------------- asynchronous copies

inline void copy_async_16(void* shared, const void* global, bool valid,
                          emulation::Where where = emulation::Where::here()) {
  emulation::require_shared(shared, "the destination of copy_async_16", where);
  emulation::Block& block = *emulation::running.block;
  if (reinterpret_cast<uintptr_t>(global) % emulation::AsyncCopies::kBytes != 0) {
    block.fail("the source of copy_async_16 must be aligned to 16 bytes", where);
  }
  if (valid && (global == nullptr || block.shared().contains(global, 1))) {
    block.fail("the source of copy_async_16 must be global memory", where);
  }
  emulation::copies().issue(shared, valid ? global : nullptr, where);
}

inline void copy_async_commit() { emulation::copies().commit(); }

template <int kPending>
void copy_async_wait() {
  static_assert(kPending >= 0);
  emulation::copies().wait(kPending);
}

// ---------------------------------------------------------------- matrix fragments

inline void load_matrices(uint32_t (&out)[4], const void* row, emulation::Where where = emulation::Where::here()) {
  emulation::load_matrices("load_matrices", &emulation::load_matrices, out, row, where);
}

inline void load_matrices_transposed(uint32_t (&out)[4], const void* row,
                                     emulation::Where where = emulation::Where::here()) {
  emulation::load_matrices("load_matrices_transposed", &emulation::load_matrices_transposed, out, row, where);
}

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     emulation::Where where = emulation::Where::here()) {
  emulation::mma("mma_bf16", &emulation::mma_bf16, c, a, b, where);
}

inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    emulation::Where where = emulation::Where::here()) {
  emulation::mma("mma_f16", &emulation::mma_f16, c, a, b, where);
}

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     emulation::Where where = emulation::Where::here()) {
  emulation::mma("mma_tf32", &emulation::mma_tf32, c, a, b, where);
}

inline void mma_f64(double (&c)[2], double a, double b, emulation::Where where = emulation::Where::here()) {
  emulation::MmaF64 operands{c, a, b};
  emulation::running.block->collective("mma_f64", &emulation::mma_f64, &operands, where);
}

// ---------------------------------------------------------------- conversions

inline uint16_t float_to_bf16_bits(float x) { return emulation::float_to_bf16(x); }
inline uint16_t float_to_f16_bits(float x) { return emulation::float_to_f16(x); }
inline float f16_bits_to_float(uint16_t bits) { return emulation::f16_to_float(bits); }
inline float exp2_approximately(float x) { return emulation::exp2_approximately(x); }
inline float reciprocal_approximately(float x) { return 1 / x; }
inline float round_to_tf32(float x) { return emulation::round_to_tf32(x); }

// ---------------------------------------------------------------- launches

// The stream of a launch with its source location: a default argument cannot follow the parameter pack.
struct LaunchSite {
  emulation::Where where;
  LaunchSite(Stream, emulation::Where where = emulation::Where::here()) : where(where) {}
};

template <typename... Parameters, typename... Arguments>
Error launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t dynamic_shared_bytes,
             LaunchSite site, Arguments... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernels take their arguments as bytes");
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call{kernel, {arguments...}};
  emulation::run({blocks, threads, dynamic_shared_bytes,
                  [](const void* call) {
                    const auto& [kernel, arguments] = *static_cast<const Call*>(call);
                    std::apply(kernel, arguments);
                  },
                  &call, site.where});
  return kSuccess;
}

}  // namespace cyclip::cuda
