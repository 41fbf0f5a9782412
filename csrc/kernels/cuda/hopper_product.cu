// Plain products on compute capability 9.0a (product.cu).

#include "hopper.h"
#include "hopper_engine.cuh"

namespace cyclip::cuda {

namespace {

struct Arguments {
  HopperMaps maps;
  float* out;
  int64_t pitch, part_size;
  int rows, cols, depth;
  int parts, part_depth;
  int down, across;  // numbers of pairs of tiles
  bool accumulate;
};

// Stores a tile, or adds it.
template <typename Tile>
__device__ inline void store_product(const typename Tile::Fragment& sums, const Place<Tile>& place,
                                     const Arguments& args, float* out, int row_begin, int col_begin) {
  const bool stores_pairs = args.pitch % 2 == 0 && reinterpret_cast<uintptr_t>(out) % (2 * sizeof(float)) == 0;
  const int first = col_begin + place.col(0), end = args.cols - first;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const int row = row_begin + place.row(a);
    if (row >= args.rows) continue;
    float* const line = out + row * args.pitch + first;
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; b += 2) {
      const int col = Place<Tile>::col_step(b);
      if (col >= end) continue;
      const bool has_second = col + 1 < end;
      float first_sum = sums[a][b], second_sum = sums[a][b + 1];
      if (args.accumulate) {
        first_sum += line[col];
        if (has_second) second_sum += line[col + 1];
      }
      if (stores_pairs && has_second) {
        store_pair(line + col, first_sum, second_sum);
      } else {
        line[col] = first_sum;
        if (has_second) line[col + 1] = second_sum;
      }
    }
  }
}

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    product_hopper_forward_kernel(const __grid_constant__ Arguments args) {
  auto& shared = aligned_dynamic_shared<HopperStorage<Tile>>();
  const int number = begin_hopper_roles<Tile>(shared);
  // Calls f(first row, first column, part, steps) for each pair of tiles of this block.
  const auto for_each = [&](const auto& f) {
    const int count = args.down * args.across * args.parts;
    for (int pair = blockIdx.x; pair < count; pair += gridDim.x) {
      const int part = pair / (args.down * args.across), in_part = pair % (args.down * args.across);
      const int left = args.depth - part * args.part_depth,
                depth = left < args.part_depth ? left : args.part_depth;
      const int steps = depth > 0 ? (depth + Tile::kStep - 1) / Tile::kStep : 0;
      f(in_part / args.across * HopperPair<Tile>::kRows, in_part % args.across * Tile::kCols, part, steps);
    }
  };
  if (number < 0) {
    HopperProducer<Tile> producer(shared, args.maps);
    for_each([&](int row, int col, int part, int steps) {
      producer.copy_pair(row, args.rows, col, part * args.part_depth, steps);
    });
    return;
  }
  HopperConsumer<Tile> consumer(shared, number);
  const Place<Tile> place;
  for_each([&](int row, int col, int part, int steps) {
    typename Tile::Fragment sums;
    if (steps > 0) {
      consumer.multiply(sums, steps);
    } else {
      CYCLIP_UNROLL
      for (int a = 0; a < Tile::kThreadRows; ++a) {
        CYCLIP_UNROLL
        for (int b = 0; b < Tile::kThreadCols; ++b) sums[a][b] = 0;
      }
    }
    store_product(sums, place, args, args.out + part * args.part_size, row + number * Tile::kRows, col);
  });
}

}  // namespace

template <Layout kLeft, Layout kRight>
Error launch_hopper_product(const Product<Bf16>& product, const Context& context) {
  using Tile = SharedHopperTile<Bf16, kLeft, kRight>;
  const int64_t rows = product.left.lines, cols = product.right.lines, depth = product.left.depth;
  const int64_t down = ceil_div(rows, HopperPair<Tile>::kRows), across = ceil_div(cols, Tile::kCols);
  Arguments arguments = {{},
                         product.out,
                         product.pitch,
                         product.part_size,
                         static_cast<int>(rows),
                         static_cast<int>(cols),
                         static_cast<int>(depth),
                         static_cast<int>(product.parts),
                         static_cast<int>(round_up(ceil_div(depth, product.parts), Tile::kStep)),
                         static_cast<int>(down),
                         static_cast<int>(across),
                         product.accumulate};
  CYCLIP_TRY(make_tensor_maps<Tile>(&arguments.maps, product.left, product.right));
  return launch_hopper(product_hopper_forward_kernel<Tile>, hopper_blocks(down * across * product.parts, context),
                       dim3(Tile::kThreads), sizeof(HopperStorage<Tile>), context.stream, arguments);
}

template Error launch_hopper_product<Layout::kAlongDepth, Layout::kAcrossDepth>(const Product<Bf16>&,
                                                                                const Context&);
template Error launch_hopper_product<Layout::kAcrossDepth, Layout::kAcrossDepth>(const Product<Bf16>&,
                                                                                 const Context&);

}  // namespace cyclip::cuda
