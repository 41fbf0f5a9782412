// Device primitives of compute capability 9.0a, for the sources hopper_*.cu only: mbarriers, bulk tensor copies
// and wgmma. ../../emulation/hopper_primitives.h defines each of them for the emulator.
//
// A warpgroup is 128 threads, four whole warps from a multiple of 128 on. Registers that a pending wgmma writes
// must be neither read nor written, and its operands in shared memory must not be overwritten.

#pragma once

#include "primitives.cuh"

#ifdef __CUDACC__

#include <cudaTypedefs.h>

namespace cyclip::cuda {

using TensorMap = CUtensorMap;
using EncodeTensorMap = PFN_cuTensorMapEncodeTiled_v12000;

// The driver's function that encodes tensor maps, or null without such a driver.
inline EncodeTensorMap find_encode_tensor_map() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const Error error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else  // before CUDA 12.5; the function has had one version only
  const Error error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != kSuccess) cudaGetLastError();  // clears it
  const bool is_usable = error == kSuccess && found == cudaDriverEntryPointSuccess;
  return is_usable ? reinterpret_cast<EncodeTensorMap>(function) : nullptr;
}

// ---------------------------------------------------------------- mbarriers, in shared memory

struct Barrier {
  alignas(8) uint64_t state;
};

// A phase ends when this many threads have arrived, and all bytes that they expect. The emulator reports the name
// and the index in a deadlock.
__device__ inline void barrier_init(Barrier& barrier, int arrivals, const char* /*name*/, int /*index*/) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals)
               : "memory");
}

// By the thread that initialized the barriers, before a barrier of the block.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void barrier_arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

__device__ inline void barrier_arrive_expect(Barrier& barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity has ended. It must be the current phase or the one before it.
__device__ inline void barrier_wait(Barrier& barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
}

// ---------------------------------------------------------------- copies and proxies

__device__ inline void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Starts the copy of one box, with zeros outside the tensor. x is the position along the dimension that is
// contiguous in memory. The barrier receives the bytes of the whole box, even if all of it lies outside. One
// thread calls it. `map` must be a member of a __grid_constant__ parameter.
__device__ inline void copy_tensor_async(void* shared, const TensorMap& map, int x, int y, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(shared_address(shared)),
      "l"(&map), "r"(x), "r"(y), "r"(shared_address(&barrier))
      : "memory");
}

// By each thread that accessed shared memory, before the barrier after which a copy or a wgmma uses it.
__device__ inline void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---------------------------------------------------------------- wgmma

// Stops the compiler from moving accesses to these registers across this point.
template <int kRows, int kCols>
__device__ inline void keep_in_registers(float (&registers)[kRows][kCols]) {
  CYCLIP_UNROLL
  for (int a = 0; a < kRows; ++a) {
    CYCLIP_UNROLL
    for (int b = 0; b < kCols; ++b) asm volatile("" : "+f"(registers[a][b])::"memory");
  }
}

// Before the wgmmas of each step.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Between accesses to the accumulators and the wgmmas that follow.
template <int kRows, int kCols>
__device__ inline void wgmma_fence(float (&sums)[kRows][kCols]) {
  keep_in_registers(sums);
  wgmma_fence();
}

#define CYCLIP_PAIR(i) "+f"(upper[i]), "+f"(upper[i + 1]), "+f"(lower[i]), "+f"(lower[i + 1])
#define CYCLIP_PAIRS(i) CYCLIP_PAIR(i), CYCLIP_PAIR(i + 2), CYCLIP_PAIR(i + 4), CYCLIP_PAIR(i + 6)
#define CYCLIP_WGMMA_OPERANDS                                                                        \
  "l"(left), "l"(right), "r"(static_cast<int>(accumulates)), "n"(static_cast<int>(kLeftTransposed)), \
      "n"(static_cast<int>(kRightTransposed))
#define CYCLIP_WGMMA_N128(type)                                                                         \
  asm volatile(                                                                                         \
      "{\n"                                                                                             \
      ".reg .pred p;\n"                                                                                 \
      "setp.ne.b32 p, %66, 0;\n"                                                                        \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                      \
      " {"                                                                                              \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
      "%59, %60, %61, %62, %63}, "                                                                      \
      "%64, %65, p, 1, 1, %67, %68;\n"                                                                  \
      "}"                                                                                               \
      : CYCLIP_PAIRS(0), CYCLIP_PAIRS(8), CYCLIP_PAIRS(16), CYCLIP_PAIRS(24)                            \
      : CYCLIP_WGMMA_OPERANDS)
#define CYCLIP_WGMMA_N256(type)                                                                                   \
  asm volatile(                                                                                                   \
      "{\n"                                                                                                       \
      ".reg .pred p;\n"                                                                                           \
      "setp.ne.b32 p, %130, 0;\n"                                                                                 \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                                \
      " {"                                                                                                        \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "           \
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "           \
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "           \
      "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "           \
      "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "           \
      "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "             \
      "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "               \
      "%128, %129, p, 1, 1, %131, %132;\n"                                                                        \
      "}"                                                                                                         \
      : CYCLIP_PAIRS(0), CYCLIP_PAIRS(8), CYCLIP_PAIRS(16), CYCLIP_PAIRS(24), CYCLIP_PAIRS(32), CYCLIP_PAIRS(40), \
        CYCLIP_PAIRS(48), CYCLIP_PAIRS(56)                                                                        \
      : CYCLIP_WGMMA_OPERANDS)

// A product of 64 lines by 128 or 256 lines of depth 16, by a warpgroup: rows of `upper` are g + 16 w, those of
// `lower` 8 more, where w is the warp of the warpgroup and g and t as in mma_bf16; columns are 2 t, 2 t + 1, 2 t +
// 8, ... Without `accumulates` the sums begin with zero. Operands are in shared memory: a descriptor of lines
// along the depth, or, if it is transposed, across it.
template <bool kLeftTransposed, bool kRightTransposed>
__device__ inline void wgmma_bf16(float (&upper)[32], float (&lower)[32], uint64_t left, uint64_t right,
                                  bool accumulates) {
  CYCLIP_WGMMA_N128("bf16");
}

template <bool kLeftTransposed, bool kRightTransposed>
__device__ inline void wgmma_bf16(float (&upper)[64], float (&lower)[64], uint64_t left, uint64_t right,
                                  bool accumulates) {
  CYCLIP_WGMMA_N256("bf16");
}

template <bool kLeftTransposed, bool kRightTransposed>
__device__ inline void wgmma_f16(float (&upper)[32], float (&lower)[32], uint64_t left, uint64_t right,
                                 bool accumulates) {
  CYCLIP_WGMMA_N128("f16");
}

#undef CYCLIP_WGMMA_N256
#undef CYCLIP_WGMMA_N128
#undef CYCLIP_WGMMA_OPERANDS
#undef CYCLIP_PAIRS
#undef CYCLIP_PAIR

// Closes a group of this warp's wgmmas.
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of this warp's most recent groups are pending.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// States that the values are not used any more. The emulator overwrites them.
template <int kRows, int kCols>
__device__ inline void undefine(float (&)[kRows][kCols]) {}

// ---------------------------------------------------------------- threads

// The warpgroup of this thread, in a register that is the same for the whole warp.
__device__ inline int warpgroup_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
}

// True for one lane of a warp, all lanes of which must call it. The compiler then issues bulk copies without a
// loop.
__device__ inline bool is_elected() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// A barrier of some warps of the block. Numbers are from 1 to 15.
__device__ inline void named_barrier(int number, int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// The same, and returns whether `value` was true for any of the threads.
__device__ inline bool named_barrier_any(int number, int threads, bool value) {
  uint32_t any;
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "barrier.cta.red.or.pred.aligned q, %2, %3, p;\n"
      "selp.u32 %0, 1, 0, q;\n"
      "}"
      : "=r"(any)
      : "r"(static_cast<uint32_t>(value)), "r"(number), "r"(threads)
      : "memory");
  return any != 0;
}

// Arrives at such a barrier without waiting.
__device__ inline void named_barrier_arrive(int number, int threads) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Changes the registers of each thread of a warpgroup. All its warps call it.
template <int kCount>
__device__ inline void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void request_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---------------------------------------------------------------- launches

// The block's dynamic shared memory, 1024-byte aligned: the swizzle of copies and matrices repeats at that
// distance.
template <typename Storage>
__device__ inline Storage& aligned_dynamic_shared() {
  static_assert(alignof(Storage) <= 1024 && sizeof(Storage) <= 227 * 1024);
  asm volatile("// dynamic_shared_bytes %0" ::"n"(sizeof(Storage)));
  extern __shared__ __align__(1024) unsigned char aligned_raw[];
  if ((shared_address(aligned_raw) & 1023) != 0) __trap();
  return *reinterpret_cast<Storage*>(aligned_raw);
}

// Like `launch`, with more shared memory. The kernel's parameter must be __grid_constant__.
template <typename Arguments>
Error launch_hopper(void (*kernel)(const Arguments), dim3 blocks, dim3 threads, size_t dynamic_shared_bytes,
                    Stream stream, const Arguments& arguments) {
  return launch(kernel, blocks, threads, dynamic_shared_bytes, stream, arguments);
}

}  // namespace cyclip::cuda

#else
#include "../../emulation/hopper_primitives.h"
#endif
