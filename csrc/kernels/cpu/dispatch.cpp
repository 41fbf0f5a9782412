// The tables of the chosen instruction set.

#include "bf16.h"
#include "cycle_rows.h"
#include "isa.h"
#include "product.h"
#include "tile_kernels.h"

namespace cyclip::cpu {

#define CYCLIP_DECLARE(isa)                                  \
  namespace isa {                                            \
  extern const TileKernels<float> float_kernels;             \
  extern const TileKernels<double> double_kernels;           \
  extern const CycleRowKernels<float> float_cycle_kernels;   \
  extern const CycleRowKernels<double> double_cycle_kernels; \
  extern const CycleRowKernels<Bf16> bf16_cycle_kernels;     \
  extern const RowKernels<float> float_row_kernels;          \
  extern const RowKernels<double> double_row_kernels;        \
  extern const RowKernels<Bf16> bf16_row_kernels;            \
  }
#define CYCLIP_DECLARE_PRODUCTS(isa)                 \
  namespace isa {                                    \
  extern const ProductKernel<float> float_product;   \
  extern const ProductKernel<double> double_product; \
  }
#define CYCLIP_DECLARE_BF16(isa)    \
  namespace isa {                   \
  extern const Bf16Kernels kernels; \
  }

CYCLIP_DECLARE(baseline)
#if defined(__x86_64__)
CYCLIP_DECLARE(avx2)
CYCLIP_DECLARE(avx512)
CYCLIP_DECLARE_PRODUCTS(avx2)
CYCLIP_DECLARE_PRODUCTS(avx512)
CYCLIP_DECLARE_BF16(avx512bf16)
#define CYCLIP_BEST(table)                          \
  (chosen_isa().isa >= Isa::kAvx512 ? avx512::table \
   : chosen_isa().isa >= Isa::kAvx2 ? avx2::table   \
                                    : baseline::table)
// Without fused multiply-add, the library's product is better.
#define CYCLIP_BEST_PRODUCT(table) \
  (chosen_isa().isa >= Isa::kAvx512 ? &avx512::table : chosen_isa().isa >= Isa::kAvx2 ? &avx2::table : nullptr)
#if defined(CYCLIP_HAS_AMX)
CYCLIP_DECLARE_BF16(amx)
#define CYCLIP_BEST_BF16(table)                                \
  (chosen_isa().isa >= Isa::kAmx          ? &amx::table        \
   : chosen_isa().isa >= Isa::kAvx512Bf16 ? &avx512bf16::table \
                                          : nullptr)
#else
#define CYCLIP_BEST_BF16(table) (chosen_isa().isa >= Isa::kAvx512Bf16 ? &avx512bf16::table : nullptr)
#endif
#else
#define CYCLIP_BEST(table) (baseline::table)
#define CYCLIP_BEST_BF16(table) nullptr
#if defined(__aarch64__)
CYCLIP_DECLARE_PRODUCTS(neon)
#define CYCLIP_BEST_PRODUCT(table) (chosen_isa().isa >= Isa::kNeon ? &neon::table : nullptr)
#else
#define CYCLIP_BEST_PRODUCT(table) nullptr
#endif
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

template <>
const CycleRowKernels<Bf16>& cycle_row_kernels<Bf16>() {
  return CYCLIP_BEST(bf16_cycle_kernels);
}

template <>
const RowKernels<float>& row_kernels<float>() {
  return CYCLIP_BEST(float_row_kernels);
}

template <>
const RowKernels<double>& row_kernels<double>() {
  return CYCLIP_BEST(double_row_kernels);
}

template <>
const RowKernels<Bf16>& row_kernels<Bf16>() {
  return CYCLIP_BEST(bf16_row_kernels);
}

template <>
const ProductKernel<float>* product_kernel<float>() {
  return CYCLIP_BEST_PRODUCT(float_product);
}

template <>
const ProductKernel<double>* product_kernel<double>() {
  return CYCLIP_BEST_PRODUCT(double_product);
}

const Bf16Kernels* bf16_kernels() { return CYCLIP_BEST_BF16(kernels); }

}  // namespace cyclip::cpu
