#include "gradients.cuh"

#include "rows.cuh"

namespace cyclip::cuda {

namespace {

// A warp per row.
template <typename T, typename Accumulator>
__global__ void __launch_bounds__(kThreadsPerBlock, 1)
    finish_gradient_backward_kernel(FinishGradient<Accumulator> args) {
  const int64_t local_row = warp_index();
  if (local_row >= args.end - args.begin) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  const int64_t d = args.tower.d, row = args.begin + local_row;
  const T* x = static_cast<const T*>(args.tower.data) + row * args.tower.pitch;

  // The row's partner, and its contribution to the gradient.
  const int64_t partner_row = row + (args.tower_is_text ? -args.positives.offset : args.positives.offset);
  const bool has_partner = partner_row >= 0 && partner_row < args.partner.rows;
  const T* y = static_cast<const T*>(args.partner.data) + (has_partner ? partner_row * args.partner.pitch : 0);
  double of_partner = 0;
  if (has_partner) {
    const double gradient = args.positives.values[args.tower_is_text ? partner_row : row];
    of_partner = gradient / args.norms[row] / args.partner_norms[partner_row];
  }

  const auto gradient = [&](int64_t k) {
    double sum = of_partner * widen(y[k]);
    for (int64_t part = 0; part < args.part_count; ++part) {
      sum += args.parts[part * args.part_size + local_row * d + k];
    }
    return sum;
  };
  store_projected(x, args.norms[row], d, lane, 1, gradient, static_cast<T*>(args.gradient) + row * d);
}

template <typename T, typename Accumulator>
Error launch_rows(const FinishGradient<Accumulator>& args, const Context& context) {
  return launch(finish_gradient_backward_kernel<T, Accumulator>, blocks_for((args.end - args.begin) * kWarpSize),
                dim3(kThreadsPerBlock), 0, context.stream, args);
}

}  // namespace

template <>
Error launch_finish_gradient<double>(const FinishGradient<double>& args, const Context& context) {
  return launch_rows<double>(args, context);
}

template <>
Error launch_finish_gradient<float>(const FinishGradient<float>& args, const Context& context) {
  switch (args.tower.type) {
    case ElementType::kBFloat16:
      return launch_rows<bf16>(args, context);
    case ElementType::kFloat16:
      return launch_rows<f16>(args, context);
    default:
      return launch_rows<float>(args, context);
  }
}

}  // namespace cyclip::cuda
