// Instantiates the vector kernels for the instruction set that the including file selects. The
// including file includes tile_kernels.h and cycle_rows.h, and with them the standard headers,
// before its target pragma.

#include "../simd.inl.h"
#include "../negatives.inl.h"
#include "../softmax.inl.h"
#include "../sigmoid.inl.h"
#include "../ranks.inl.h"
#include "../top_k.inl.h"
#include "../wide.inl.h"
#include "../rows.inl.h"
#include "../cycle_rows.inl.h"

namespace cyclip::cpu::CYCLIP_ISA {

#define CYCLIP_STRINGIZE_(x) #x
#define CYCLIP_STRINGIZE(x) CYCLIP_STRINGIZE_(x)

template <typename T>
constexpr TileKernels<T> kTable = {
    CYCLIP_STRINGIZE(CYCLIP_ISA), softmax_forward<T>, softmax_backward<T>, sigmoid_forward<T>,
    sigmoid_backward<T>,          own_best<T>,        foreign_count<T>,    top_k<T>};

extern const TileKernels<float> float_kernels;
extern const TileKernels<double> double_kernels;
const TileKernels<float> float_kernels = kTable<float>;
const TileKernels<double> double_kernels = kTable<double>;

template <typename X, typename T = ComputeType<X>>
constexpr CycleRowKernels<X> kCycleTable = {add_weighted<X>, cycle_factors_forward<X, T>, along_products<T>,
                                            cycle_factors_backward<X, T>};

extern const CycleRowKernels<float> float_cycle_kernels;
extern const CycleRowKernels<double> double_cycle_kernels;
extern const CycleRowKernels<Bf16> bf16_cycle_kernels;
const CycleRowKernels<float> float_cycle_kernels = kCycleTable<float>;
const CycleRowKernels<double> double_cycle_kernels = kCycleTable<double>;
const CycleRowKernels<Bf16> bf16_cycle_kernels = kCycleTable<Bf16>;

template <typename X, typename T = ComputeType<X>>
constexpr RowKernels<X> kRowTable = {row_norms<X>, subtract_projection<X, T, T>, subtract_projection<X, T, X>};

extern const RowKernels<float> float_row_kernels;
extern const RowKernels<double> double_row_kernels;
extern const RowKernels<Bf16> bf16_row_kernels;
const RowKernels<float> float_row_kernels = kRowTable<float>;
const RowKernels<double> double_row_kernels = kRowTable<double>;
const RowKernels<Bf16> bf16_row_kernels = kRowTable<Bf16>;

}  // namespace cyclip::cpu::CYCLIP_ISA
