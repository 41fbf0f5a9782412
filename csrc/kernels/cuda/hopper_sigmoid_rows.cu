// The sigmoid loss of each row on compute capability 9.0a (sigmoid_rows_forward.cu).

#include "hopper.h"
#include "hopper_cosines.cuh"
#include "hopper_labels.cuh"
#include "hopper_regions.cuh"
#include "sigmoid.cuh"

namespace cyclip::cuda {

namespace {

template <typename Tile, typename MaybeLabels>
struct Storage {
  HopperStorage<Tile> engine;
  ColumnNorms norms[Tile::kConsumers];
  ColumnLabels<MaybeLabels> labels[Tile::kConsumers];
};

template <typename MaybeLabels>
struct Arguments {
  HopperMaps maps;
  HopperRegions regions;
  Pairing<float> pairing;
  int steps;
  const double* logit_scale;
  const double* logit_bias;
  double* row_parts;  // [across][n]
  MaybeLabels same;
};

template <typename Tile, typename MaybeLabels>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    sigmoid_rows_hopper_forward_kernel(const __grid_constant__ Arguments<MaybeLabels> args) {
  auto& shared = aligned_dynamic_shared<Storage<Tile, MaybeLabels>>();
  const int number = begin_hopper_roles<Tile>(shared.engine);
  const HopperRegions& regions = args.regions;
  if (number < 0) {
    regions.copy<Tile>(shared.engine, args.maps, args.steps);
    return;
  }
  HopperConsumer<Tile> consumer(shared.engine, number);
  const Place<Tile> place;
  const Logits<float> logit(args.logit_scale, args.logit_bias);
  const float masked = masked_cosine(logit.scale);
  double of_row = 0;  // the row place.row(place.t), whose entries are all in this thread's warp
  regions.for_each<Tile>(
      [&](const HopperRegions::Strip& strip, int col_begin) {
        const Window window = {regions.rows, regions.cols, int64_t{strip.row} + number * Tile::kRows, col_begin};
        typename Tile::Fragment cosines;
        consumer.barrier();  // all threads have read the norms of the previous tile
        shared.norms[number].load(window, args.pairing);
        shared.labels[number].load(window, args.same);
        consumer.multiply(cosines, args.steps);
        if (window.row_begin >= window.rows) return;
        to_hopper_cosines(cosines, place, window, args.pairing, shared.norms[number], masked, IgnorePositives{});
        const SameEntries<Tile, MaybeLabels> same(place, window, args.same, shared.labels[number]);
        float rows[Tile::kThreadRows], products[Tile::kThreadRows];  // as in sigmoid_rows_forward.cu
        CYCLIP_UNROLL
        for (int a = 0; a < Tile::kThreadRows; ++a) rows[a] = products[a] = 0;
        with_meaning(args.same, [&](auto meaning) {
          CYCLIP_UNROLL
          for (int b = 0; b < Tile::kThreadCols; ++b) {
            const auto is_same = same.of_column(b);
            CYCLIP_UNROLL
            for (int a = 0; a < Tile::kThreadRows; ++a) {
              float cosine = cosines[a][b];
              const bool is_positive = apply_labels(meaning, is_same(a), cosine, masked);
              const float of_cosine = logit(cosine), z = is_positive ? -of_cosine : of_cosine, u = decay(z);
              rows[a] += fmax(z, 0.0f);
              products[a] = multiply_add(products[a], u, products[a] + u);
            }
          }
        });
        CYCLIP_UNROLL
        for (int a = 0; a < Tile::kThreadRows; ++a) rows[a] += log1p(products[a]);
        reduce_by_halving<2, 1, Tile::kThreadRows>(rows, Sum{});
        of_row += static_cast<double>(rows[0]);
      },
      [&](const HopperRegions::Strip& strip) {
        const int64_t row = int64_t{strip.row} + number * Tile::kRows + place.row(place.t);
        if (row < regions.rows) args.row_parts[strip.across * regions.rows + row] = of_row;
        of_row = 0;
      });
}

}  // namespace

template <typename Math, typename MaybeLabels>
Error launch_hopper_sigmoid_rows(const SigmoidRowsForward& args, const MaybeLabels& same, const Tower<Math>& image,
                                 const Tower<Math>& text, const Context& context, double** row_parts,
                                 int64_t* parts) {
  using Tile = HopperTile<Math>;
  const auto regions = HopperRegions::of<Tile>(image.rows, text.rows);
  *parts = regions.regions.across;
  *row_parts = context.workspace.take<double>(*parts * image.rows);
  Arguments<MaybeLabels> arguments = {{},
                                      regions,
                                      {image.inv_norms, text.inv_norms, args.offset},
                                      static_cast<int>(ceil_div(image.d, Tile::kStep)),
                                      args.logit_scale,
                                      args.logit_bias,
                                      *row_parts,
                                      same};
  CYCLIP_TRY(make_tensor_maps<Tile>(&arguments.maps, image.by_rows(), text.by_rows()));
  return launch_hopper(sigmoid_rows_hopper_forward_kernel<Tile, MaybeLabels>,
                       hopper_blocks(regions.count(), context), dim3(Tile::kThreads),
                       sizeof(Storage<Tile, MaybeLabels>), context.stream, arguments);
}

#define CYCLIP_INSTANTIATE(Math, MaybeLabels)                                                                  \
  template Error launch_hopper_sigmoid_rows(const SigmoidRowsForward&, const MaybeLabels&, const Tower<Math>&, \
                                            const Tower<Math>&, const Context&, double**, int64_t*);
CYCLIP_INSTANTIATE(Bf16, NoLabels)
CYCLIP_INSTANTIATE(Bf16, SameLabels)
CYCLIP_INSTANTIATE(F16, NoLabels)
CYCLIP_INSTANTIATE(F16, SameLabels)

}  // namespace cyclip::cuda
