// Device primitives: everything a kernel uses that is not plain C++. The kernels of this folder use
// these and no intrinsics directly, so the emulator only has to replace this header
// (../../emulation/primitives.h defines each primitive and checks its preconditions).
//
// Kernels are __global__ functions in which all threads of a block reach every barrier, and whole
// warps call warp primitives. Launches go through `launch`.

#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define CYCLIP_UNROLL _Pragma("unroll")
#define CYCLIP_NO_UNROLL _Pragma("unroll 1")
// A variable in shared memory with one value per block, uninitialized.
#define CYCLIP_SHARED(type, name) __shared__ type name

namespace cyclip::cuda {

using Stream = cudaStream_t;
using Error = cudaError_t;
inline constexpr Error kSuccess = cudaSuccess, kInvalidValue = cudaErrorInvalidValue;

inline constexpr int kWarpSize = 32;

// ---------------------------------------------------------------- blocks and warps

__device__ inline void block_barrier() { __syncthreads(); }

// A barrier that returns whether `value` was true for any thread of the block.
__device__ inline bool block_any(bool value) { return __syncthreads_or(value); }

// The value of the lane whose index differs in the bits of `mask`. Values have 4 or 8 bytes.
template <typename T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// The block's dynamic shared memory, 128-byte aligned and uninitialized.
template <typename Storage>
__device__ inline Storage& dynamic_shared() {
  // A comment in the PTX, not an instruction. benchmarks/sass_report.py reads it, because the compiler's report
  // lacks the dynamic shared memory of a launch.
  asm volatile("// dynamic_shared_bytes %0" ::"n"(sizeof(Storage)));
  extern __shared__ __align__(128) unsigned char raw[];
  return *reinterpret_cast<Storage*>(raw);
}

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// ---------------------------------------------------------------- asynchronous copies

// Copies 16 bytes from global to shared memory, both 16-byte aligned. If not `valid`, writes zeros
// and does not read `global`. The result is visible to the thread after copy_async_wait, and to the
// block after a barrier that follows.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group of this thread's copies.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's most recent groups are under way.
template <int kPending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---------------------------------------------------------------- matrix fragments

// Loads four 8x8 matrices of 16-bit entries. Lane l passes the address of row l % 8 of matrix l / 8
// (16 bytes, aligned). For each matrix m it receives, in out[m], the entries 2 (l % 4) and 2 (l %
// 4) + 1 of row l / 4.
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same with each matrix transposed: entries 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
__device__ inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b with the fragment layouts of the PTX ISA. g = lane / 4 and t = lane % 4:
//   c[0..3]        (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
//   16-bit, k = 16: a[0..3] rows g, g+8, g, g+8, entries (2t, 2t+1) for the first two and (2t+8, 2t+9) for
//                   the others; b[0..1] column g, entries (2t, 2t+1) and (2t+8, 2t+9)
//   tf32, k = 8:   a[0..3] (g, t), (g+8, t), (g, t+4), (g+8, t+4); b[0..1] (t, g), (t+4, g)
//   f64, k = 4:    c[0..1] (g, 2t), (g, 2t+1); a (g, t); b (t, g)
// Volatile, because the whole warp must execute them: the compiler must not move them into a branch
// that uses the result.
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_f64(double (&c)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
}

// ---------------------------------------------------------------- conversions, to nearest even

__device__ inline uint16_t float_to_bf16_bits(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

__device__ inline uint16_t float_to_f16_bits(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

__device__ inline float f16_bits_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

// 2^x to a relative error of 2^-22; zero below the smallest normal number.
__device__ inline float exp2_approximately(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to one unit in the last place, for x and 1 / x that are normal numbers.
__device__ inline float reciprocal_approximately(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The nearest number with 10 bits of mantissa, ties away from zero: the part of a float that the
// tensor cores read.
__device__ inline float round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// ---------------------------------------------------------------- launches

// Starts `kernel` and returns the error of the launch without waiting.
template <typename... Parameters, typename... Arguments>
Error launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t dynamic_shared_bytes, Stream stream,
             Arguments... arguments) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (dynamic_shared_bytes > kWithoutAsking) {
    const Error error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(dynamic_shared_bytes));
    if (error != kSuccess) return error;
  }
  kernel<<<blocks, threads, dynamic_shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace cyclip::cuda

#else
#include "../../emulation/primitives.h"
#endif
