#if defined(__x86_64__)

#include <immintrin.h>

#include "../cycle_rows.h"
#include "../product.h"
#include "../tile_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define CYCLIP_ISA avx2
#define CYCLIP_VECTOR_BYTES 32

#include "tile_kernels.inl.h"
#include "products.inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
