// The sigmoid loss of each row on compute capability 9.0a (sigmoid_rows_forward.cu).

#include "hopper.h"
#include "hopper_cosines.cuh"
#include "hopper_regions.cuh"
#include "sigmoid.cuh"

namespace cyclip::cuda {

namespace {

template <typename Tile>
struct Storage {
  HopperStorage<Tile> engine;
  ColumnNorms norms[Tile::kConsumers];
};

struct Arguments {
  HopperMaps maps;
  HopperRegions regions;
  Pairing<float> pairing;
  int steps;
  const double* logit_scale;
  const double* logit_bias;
  double* row_parts;  // [across][n]
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    sigmoid_rows_hopper_forward_kernel(const __grid_constant__ Arguments args) {
  auto& shared = aligned_dynamic_shared<Storage<Tile>>();
  const int number = begin_hopper_roles<Tile>(shared.engine);
  const HopperRegions& regions = args.regions;
  if (number < 0) {
    regions.copy<Tile>(shared.engine, args.maps, args.steps);
    return;
  }
  HopperConsumer<Tile> consumer(shared.engine, number);
  const Place<Tile> place;
  const Logits<float> logit(args.logit_scale, args.logit_bias);
  double of_row = 0;  // the row place.row(place.t), whose entries are all in this thread's warp
  regions.for_each<Tile>(
      [&](const HopperRegions::Strip& strip, int col_begin) {
        const Window window = {regions.rows, regions.cols, int64_t{strip.row} + number * Tile::kRows, col_begin};
        typename Tile::Fragment cosines;
        consumer.barrier();  // all threads have read the norms of the previous tile
        shared.norms[number].load(window, args.pairing);
        consumer.multiply(cosines, args.steps);
        if (window.row_begin >= window.rows) return;
        to_hopper_cosines(cosines, place, window, args.pairing, shared.norms[number], masked_cosine(logit.scale),
                          IgnorePositives{});
        float rows[Tile::kThreadRows];
        CYCLIP_UNROLL
        for (int a = 0; a < Tile::kThreadRows; ++a) {
          float linear = 0, product = 0;  // as in sigmoid_rows_forward.cu
          CYCLIP_UNROLL
          for (int b = 0; b < Tile::kThreadCols; ++b) {
            const float z = logit(cosines[a][b]), u = decay(z);
            linear += fmax(z, 0.0f);
            product = multiply_add(product, u, product + u);
          }
          rows[a] = linear + log1p(product);
        }
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

template <typename Math>
Error launch_hopper_sigmoid_rows(const SigmoidRowsForward& args, const Tower<Math>& image, const Tower<Math>& text,
                                 const Context& context, double** row_parts, int64_t* parts) {
  using Tile = HopperTile<Math>;
  const auto regions = HopperRegions::of<Tile>(image.rows, text.rows);
  *parts = regions.regions.across;
  *row_parts = context.workspace.take<double>(*parts * image.rows);
  Arguments arguments = {{},
                         regions,
                         {image.inv_norms, text.inv_norms, args.offset},
                         static_cast<int>(ceil_div(image.d, Tile::kStep)),
                         args.logit_scale,
                         args.logit_bias,
                         *row_parts};
  CYCLIP_TRY(make_tensor_maps<Tile>(&arguments.maps, image.by_rows(), text.by_rows()));
  return launch_hopper(sigmoid_rows_hopper_forward_kernel<Tile>, hopper_blocks(regions.count(), context),
                       dim3(Tile::kThreads), sizeof(Storage<Tile>), context.stream, arguments);
}

template Error launch_hopper_sigmoid_rows<Bf16>(const SigmoidRowsForward&, const Tower<Bf16>&, const Tower<Bf16>&,
                                                const Context&, double**, int64_t*);
template Error launch_hopper_sigmoid_rows<F16>(const SigmoidRowsForward&, const Tower<F16>&, const Tower<F16>&,
                                               const Context&, double**, int64_t*);

}  // namespace cyclip::cuda
