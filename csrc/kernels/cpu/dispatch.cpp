// Chooses the widest instruction set that the processor and the operating system support.

#include "tile_kernels.h"

namespace cyclip::cpu {

#define CYCLIP_DECLARE(isa)                        \
  namespace isa {                                  \
  extern const TileKernels<float> float_kernels;   \
  extern const TileKernels<double> double_kernels; \
  }

CYCLIP_DECLARE(baseline)
#if defined(__x86_64__)
CYCLIP_DECLARE(avx2)
CYCLIP_DECLARE(avx512)
#endif
#undef CYCLIP_DECLARE

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

template <>
const TileKernels<float>& tile_kernels<float>() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return avx512::float_kernels;
  if (isa() == Isa::kAvx2) return avx2::float_kernels;
#endif
  return baseline::float_kernels;
}

template <>
const TileKernels<double>& tile_kernels<double>() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return avx512::double_kernels;
  if (isa() == Isa::kAvx2) return avx2::double_kernels;
#endif
  return baseline::double_kernels;
}

}  // namespace cyclip::cpu
