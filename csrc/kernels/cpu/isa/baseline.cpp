// Kernels for every processor of the architecture (SSE2 on x86-64, NEON on arm64).

#include "../cycle_rows.h"
#include "../tile_kernels.h"

#define CYCLIP_ISA baseline
#define CYCLIP_VECTOR_BYTES 16

#include "tile_kernels.inl.h"
