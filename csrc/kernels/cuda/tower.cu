#include "tower.cuh"

#include "rows.cuh"

namespace cyclip::cuda {

namespace {

template <typename Math, typename In>
__device__ typename Math::Element convert(In x) {
  if constexpr (std::is_same_v<In, typename Math::Element>) {
    if constexpr (std::is_same_v<Math, Tf32>) return round_to_tf32(x);
    return x;
  } else {
    return widen(x);  // exact in TF32: a float16 has 10 bits of mantissa
  }
}

// A warp per row. `copy` is null if the features are used in place.
template <typename Math, typename In>
__global__ void __launch_bounds__(kThreadsPerBlock)
    prepare_tower_kernel(const In* features, int64_t rows, int64_t d, int64_t pitch, double* norms,
                         typename Math::Accumulator* inv_norms, typename Math::Element* copy, int64_t copy_pitch) {
  const int64_t row = warp_index();
  if (row >= rows) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  const In* x = features + row * pitch;
  const double norm = row_norm(x, d, lane);
  if (lane == 0) {
    norms[row] = norm;
    inv_norms[row] = static_cast<typename Math::Accumulator>(1 / norm);
  }
  if (copy == nullptr) return;
  for (int64_t k = lane; k < copy_pitch; k += kWarpSize) {
    copy[row * copy_pitch + k] = k < d ? convert<Math>(x[k]) : typename Math::Element{};
  }
}

template <typename Math, typename In>
Error prepare(const Features& features, const Context& context, Tower<Math>* tower) {
  using Element = typename Math::Element;
  const int64_t rows = features.rows, d = features.d;
  constexpr bool same_type = std::is_same_v<In, Element> && !std::is_same_v<Math, Tf32>;
  const auto whole_chunks = [](int64_t elements) { return elements % kChunk<Element> == 0; };
  const bool in_place = same_type && reinterpret_cast<uintptr_t>(features.data) % kChunkBytes == 0 &&
                        whole_chunks(d) && whole_chunks(features.pitch);
  const int64_t pitch = in_place ? features.pitch : round_up(d, kChunk<Element>);
  Element* copy = in_place ? nullptr : context.workspace.take<Element>(rows * pitch);
  double* norms = context.workspace.take<double>(rows);
  auto* inv_norms = context.workspace.take<typename Math::Accumulator>(rows);
  *tower = {in_place ? static_cast<const Element*>(features.data) : copy, rows, d, pitch, norms, inv_norms};
  return launch(prepare_tower_kernel<Math, In>, blocks_for(rows * kWarpSize), dim3(kThreadsPerBlock), 0,
                context.stream, static_cast<const In*>(features.data), rows, d, features.pitch, norms, inv_norms,
                copy, pitch);
}

}  // namespace

template <typename Math>
Error prepare_tower(const Features& features, const Context& context, Tower<Math>* tower) {
  // TF32 is used for the gradients of float16 features.
  if constexpr (std::is_same_v<Math, Tf32>) {
    if (features.type == ElementType::kFloat16) return prepare<Math, f16>(features, context, tower);
  }
  return prepare<Math, typename Math::Element>(features, context, tower);
}

template Error prepare_tower<Bf16>(const Features&, const Context&, Tower<Bf16>*);
template Error prepare_tower<F16>(const Features&, const Context&, Tower<F16>*);
template Error prepare_tower<Tf32>(const Features&, const Context&, Tower<Tf32>*);
template Error prepare_tower<F32>(const Features&, const Context&, Tower<F32>*);
template Error prepare_tower<F64>(const Features&, const Context&, Tower<F64>*);

}  // namespace cyclip::cuda
