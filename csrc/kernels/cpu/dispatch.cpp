// Chooses the widest instruction set that the processor and the operating system support.

#include "bf16.h"
#include "cycle_rows.h"
#include "product.h"
#include "tile_kernels.h"

namespace cyclip::cpu {

#define CYCLIP_DECLARE(isa)                                  \
  namespace isa {                                            \
  extern const TileKernels<float> float_kernels;             \
  extern const TileKernels<double> double_kernels;           \
  extern const CycleRowKernels<float> float_cycle_kernels;   \
  extern const CycleRowKernels<double> double_cycle_kernels; \
  }
#define CYCLIP_DECLARE_PRODUCTS(isa)                 \
  namespace isa {                                    \
  extern const ProductKernel<float> float_product;   \
  extern const ProductKernel<double> double_product; \
  }

CYCLIP_DECLARE(baseline)
#if defined(__x86_64__)
CYCLIP_DECLARE(avx2)
CYCLIP_DECLARE(avx512)
CYCLIP_DECLARE_PRODUCTS(avx2)
CYCLIP_DECLARE_PRODUCTS(avx512)
namespace avx512bf16 {
extern const Bf16Kernels kernels;
}
#endif
#undef CYCLIP_DECLARE
#undef CYCLIP_DECLARE_PRODUCTS

namespace {

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace

#if defined(__x86_64__)
#define CYCLIP_BEST(table) \
  (isa() == Isa::kAvx512 ? avx512::table : isa() == Isa::kAvx2 ? avx2::table : baseline::table)
#else
#define CYCLIP_BEST(table) (baseline::table)
#endif

template <>
const TileKernels<float>& tile_kernels<float>() {
  return CYCLIP_BEST(float_kernels);
}

template <>
const TileKernels<double>& tile_kernels<double>() {
  return CYCLIP_BEST(double_kernels);
}

template <>
const CycleRowKernels<float>& cycle_row_kernels<float>() {
  return CYCLIP_BEST(float_cycle_kernels);
}

template <>
const CycleRowKernels<double>& cycle_row_kernels<double>() {
  return CYCLIP_BEST(double_cycle_kernels);
}

// Without fused multiply-add the library's product is the better one.
template <>
const ProductKernel<float>* product_kernel<float>() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return &avx512::float_product;
  if (isa() == Isa::kAvx2) return &avx2::float_product;
#endif
  return nullptr;
}

template <>
const ProductKernel<double>* product_kernel<double>() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return &avx512::double_product;
  if (isa() == Isa::kAvx2) return &avx2::double_product;
#endif
  return nullptr;
}

const Bf16Kernels* bf16_kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16")) return &avx512bf16::kernels;
#endif
  return nullptr;
}

}  // namespace cyclip::cpu
