// The sigmoid loss of each row.

#include "hopper.h"
#include "region_tiles.cuh"
#include "sigmoid.cuh"

namespace cyclip::cuda {

namespace {

template <typename Tile>
struct ForwardArguments {
  RegionTiles<Tile> tiles;
  const double* logit_scale;
  const double* logit_bias;
  double* row_parts;  // [across][n]
};

// The contribution of this tile to the row of this thread, if it owns one.
template <typename Tile>
__device__ typename Tile::Accumulator row_loss(LineScratch<Tile, typename Tile::Accumulator>& scratch,
                                               const Place<Tile>& place, typename Tile::Fragment& cosines,
                                               Logits<typename Tile::Accumulator> logit) {
  using T = typename Tile::Accumulator;
  if (logit.scale < 0) {
    logit.scale = -logit.scale;
    negate_cosines<Tile>(cosines);
  }
  T rows[Tile::kThreadRows];
  negative_losses<Tile>(rows, cosines, logit);
  scratch.put_rows(place, rows, Sum{});
  block_barrier();
  return Window::owns_row<Tile>() ? scratch.get(Sum{}) : T{0};
}

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    sigmoid_rows_forward_kernel(ForwardArguments<Tile> args) {
  using T = typename Tile::Accumulator;
  using Scratch = LineScratch<Tile, T>;
  auto& shared = dynamic_shared<RegionStorage<Tile, Scratch>>();
  const Place<Tile> place;
  const Logits<T> logit(args.logit_scale, args.logit_bias);
  double of_row = 0;  // the row that this thread owns, if any
  args.tiles.for_each(
      shared, place, IgnorePositives{},
      [&](const Window&, typename Tile::Fragment& cosines) {
        of_row += static_cast<double>(row_loss(shared.epilogue, place, cosines, logit));
      },
      [&](const Window& strip) {
        if (Window::owns_row<Tile>() && strip.has_line<Tile>()) {
          args.row_parts[blockIdx.x * strip.rows + strip.line<Tile>()] = of_row;
        }
        of_row = 0;
      });
}

// Adds up the parts of each row and its positive, a warp per row.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    merge_rows_forward_kernel(PositivePairs positives, const double* row_parts, int parts, double* row_loss) {
  const int64_t n = positives.image.rows, row = warp_index();
  if (row >= n) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  static_assert(kMostRegions <= kWarpSize);
  double loss = warp_sum(lane < parts ? row_parts[lane * n + row] : 0);
  if (positives.exists(row)) loss += softplus(-positives.logit(positives.cosine<T>(row, lane)));
  if (lane == 0) row_loss[row] = loss;
}

}  // namespace

Error launch_sigmoid_rows_forward(const SigmoidRowsForward& args, const Context& context) {
  return with_math(args.image.type, context, [&](auto math) -> Error {
    using Math = decltype(math);
    Tower<Math> image, text;
    CYCLIP_TRY(prepare_tower(args.image, context, &image));
    CYCLIP_TRY(prepare_tower(args.text, context, &text));
    const int64_t n = image.rows;
    double* row_parts = nullptr;
    int64_t parts = 0;
    bool is_done = false;
    if constexpr (sizeof(typename Math::Element) == 2) {
      is_done = uses_hopper(image.by_rows(), text.by_rows(), context);
      if (is_done) CYCLIP_TRY(launch_hopper_sigmoid_rows<Math>(args, image, text, context, &row_parts, &parts));
    }
    if (!is_done) {
      CYCLIP_TRY(with_tile<Math>(n, text.rows, context, [&](auto shape) {
        using Tile = decltype(shape);
        const Regions regions = Regions::of<Tile>(n, text.rows);
        parts = regions.across;
        row_parts = context.workspace.template take<double>(parts * n);
        const RegionTiles<Tile> tiles = {
            image.by_rows(), text.by_rows(), {image.inv_norms, text.inv_norms, args.offset}, regions};
        return launch(sigmoid_rows_forward_kernel<Tile>, regions.blocks(), dim3(Tile::kThreads),
                      sizeof(RegionStorage<Tile, LineScratch<Tile, typename Tile::Accumulator>>), context.stream,
                      ForwardArguments<Tile>{tiles, args.logit_scale, args.logit_bias, row_parts});
      }));
    }
    const PositivePairs positives = {args.image,  args.text,        image.norms,    text.norms,
                                     args.offset, args.logit_scale, args.logit_bias};
    return launch(merge_rows_forward_kernel<typename Math::Element>, blocks_for(n * kWarpSize),
                  dim3(kThreadsPerBlock), 0, context.stream, positives, row_parts, static_cast<int>(parts),
                  args.row_loss);
  });
}

}  // namespace cyclip::cuda
