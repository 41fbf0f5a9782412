// The sigmoid loss of each row.

#include "hopper.h"
#include "region_tiles.cuh"
#include "sigmoid.cuh"

namespace cyclip::cuda {

namespace {

template <typename Tile, typename MaybeLabels>
struct ForwardArguments {
  RegionTiles<Tile> tiles;
  const double* logit_scale;
  const double* logit_bias;
  double* row_parts;  // [across][n]
  MaybeLabels same;
};

// The contribution of this tile to the row of this thread, if it owns one.
//
// sum softplus(z) = sum max(z, 0) + log prod (1 + e^-|z|), so a thread takes one logarithm for all
// entries of a row that it holds. The product is stored minus 1, so that small exponentials, the
// most frequent ones, lose no bits.
template <typename Tile, typename MaybeLabels>
__device__ typename Tile::Accumulator row_loss(LineScratch<Tile, typename Tile::Accumulator>& scratch,
                                               const Place<Tile>& place, const Window& window,
                                               typename Tile::Fragment& cosines,
                                               Logits<typename Tile::Accumulator> logit, const MaybeLabels& same) {
  using T = typename Tile::Accumulator;
  const uint64_t positives = more_positives(place, window, same);
  mask_same<Tile>(cosines, place, window, same, kMasked<T>);
  if (logit.scale < 0) {
    logit.scale = -logit.scale;
    negate_cosines<Tile>(cosines);
  }
  T rows[Tile::kThreadRows];
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    T linear = 0, product = 0;
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      T z = logit(cosines[a][b]);
      if (test<Tile>(positives, a, b) && cosines[a][b] != kMasked<T>) z = -z;
      const T u = decay(z);
      linear += fmax(z, T{0});  // fmax ignores NaN, but then u is NaN
      product = multiply_add(product, u, product + u);
    }
    rows[a] = linear + log1p(product);
  }
  scratch.put_rows(place, rows, Sum{});
  block_barrier();
  return Window::owns_row<Tile>() ? scratch.get(Sum{}) : T{0};
}

template <typename Tile, typename MaybeLabels>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    sigmoid_rows_forward_kernel(ForwardArguments<Tile, MaybeLabels> args) {
  using T = typename Tile::Accumulator;
  using Scratch = LineScratch<Tile, T>;
  auto& shared = dynamic_shared<RegionStorage<Tile, Scratch>>();
  const Place<Tile> place;
  const Logits<T> logit(args.logit_scale, args.logit_bias);
  double of_row = 0;  // the row that this thread owns, if any
  args.tiles.for_each(
      shared, place, IgnorePositives{},
      [&](const Window& window, typename Tile::Fragment& cosines) {
        of_row += static_cast<double>(row_loss(shared.epilogue, place, window, cosines, logit, args.same));
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
    const Labels labels = {args.row_labels, args.col_labels};
    const int64_t n = image.rows;
    double* row_parts = nullptr;
    int64_t parts = 0;
    bool is_done = false;
    if constexpr (sizeof(typename Math::Element) == 2) {
      is_done = uses_hopper(image.by_rows(), text.by_rows(), context);
      const auto launch_hopper = [&](const auto& same) {
        return launch_hopper_sigmoid_rows(args, same, image, text, context, &row_parts, &parts);
      };
      if (is_done) {
        CYCLIP_TRY(labels.rows ? launch_hopper(SameLabels{labels, args.same_are_positives})
                               : launch_hopper(NoLabels{}));
      }
    }
    if (!is_done) {
      CYCLIP_TRY(with_tile_or_pair<Math>(n, text.rows, labels.rows != nullptr, context, [&](auto shape) {
        using Tile = decltype(shape);
        const Regions regions = Regions::of<Tile>(n, text.rows);
        parts = regions.across;
        row_parts = context.workspace.template take<double>(parts * n);
        const RegionTiles<Tile> tiles = {
            image.by_rows(), text.by_rows(), {image.inv_norms, text.inv_norms, args.offset}, regions};
        const auto launch_tiles = [&](const auto& same) {
          using MaybeLabels = std::decay_t<decltype(same)>;
          return launch(
              sigmoid_rows_forward_kernel<Tile, MaybeLabels>, regions.blocks(), dim3(Tile::kThreads),
              sizeof(RegionStorage<Tile, LineScratch<Tile, typename Tile::Accumulator>>), context.stream,
              ForwardArguments<Tile, MaybeLabels>{tiles, args.logit_scale, args.logit_bias, row_parts, same});
        };
        if constexpr (Tile::kAcross == 1) {
          if (labels.rows) return launch_tiles(SameLabels{labels, args.same_are_positives});
        }
        return launch_tiles(NoLabels{});
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
