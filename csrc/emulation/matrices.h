// The matrix instructions of a warp, on the operands of its 32 lanes. Fragment layouts: PTX ISA, "Matrix
// Fragments for mma.m16n8k16", "... mma.m16n8k8", "... mma.m8n8k4", and "ldmatrix".

#pragma once

#include <cstdint>

#include "block.h"

namespace cyclip::emulation {

struct LoadMatrices {
  uint32_t* out;    // [4]
  const void* row;  // 16 bytes
};
void load_matrices(void* const (&lanes)[kLanes]);
void load_matrices_transposed(void* const (&lanes)[kLanes]);

// Sums start with c and accumulate in ascending order of depth, rounded at each step. A GPU may use
// another order or rounding.
struct Mma {
  float* c;           // [4]
  const uint32_t* a;  // [4]
  const uint32_t* b;  // [2]
};
void mma_bf16(void* const (&lanes)[kLanes]);
void mma_f16(void* const (&lanes)[kLanes]);
void mma_tf32(void* const (&lanes)[kLanes]);

struct MmaF64 {
  double* c;  // [2]
  double a, b;
};
void mma_f64(void* const (&lanes)[kLanes]);

}  // namespace cyclip::emulation
