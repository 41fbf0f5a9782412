// Products for arm64. Its baseline already has fused multiply-adds, so all other kernels are those
// of baseline.cpp.

#if defined(__aarch64__)

#include "../product.h"
#include "../tile_kernels.h"

#define CYCLIP_ISA neon
#define CYCLIP_VECTOR_BYTES 16

#include "../simd.inl.h"
#include "products.inl.h"

#endif
