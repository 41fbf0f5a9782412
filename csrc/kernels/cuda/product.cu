#include "product.cuh"

#include "hopper.h"

namespace cyclip::cuda {

namespace {

template <typename Tile, Layout kLeft, Layout kRight>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    product_forward_kernel(Product<typename Tile::Math> args, int64_t part_depth) {
  using ThisEngine = Engine<Tile, kLeft, kRight>;
  auto& shared = dynamic_shared<typename ThisEngine::Storage>();
  const Place<Tile> place;
  const int64_t row_begin = int64_t{blockIdx.x} * Tile::kRows, col_begin = int64_t{blockIdx.y} * Tile::kCols;
  const int64_t depth_begin = blockIdx.z * part_depth, depth = args.left.depth;
  const int64_t depth_end = depth_begin + part_depth < depth ? depth_begin + part_depth : depth;
  if (args.enabled && *args.enabled == 0) return;  // the whole grid returns
  typename Tile::Fragment sums[1];
  ThisEngine::multiply(sums, shared, place, args.left, row_begin, args.right, col_begin, depth_begin, depth_end);

  auto* out = args.out + blockIdx.z * args.part_size;
  const bool stores_pairs =
      sizeof(*out) < 8 && args.pitch % 2 == 0 && reinterpret_cast<uintptr_t>(out) % (2 * sizeof(*out)) == 0;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const int64_t row = row_begin + place.row(a);
    if (row >= args.left.lines) continue;
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; b += 2) {
      const int64_t col = col_begin + place.col(b);
      if (col >= args.right.lines) continue;
      auto* entry = out + row * args.pitch + col;
      const bool has_second = col + 1 < args.right.lines;
      auto first = sums[0][a][b], second = sums[0][a][b + 1];
      if (args.accumulate) {
        first += entry[0];
        if (has_second) second += entry[1];
      }
      if (stores_pairs && has_second) {
        store_pair(entry, first, second);
      } else {
        entry[0] = first;
        if (has_second) entry[1] = second;
      }
    }
  }
}

}  // namespace

template <typename Math, Layout kLeft, Layout kRight>
Error launch_product(const Product<Math>& product, const Context& context) {
  const int64_t rows = product.left.lines, cols = product.right.lines;
  if constexpr (std::is_same_v<Math, Bf16>) {
    if (product.enabled == nullptr &&
        uses_hopper<kLeft, kRight>(product.left, product.right, context, product.parts))
      return launch_hopper_product<kLeft, kRight>(product, context);
  }
  return with_tile<Math>(rows, cols * product.parts, context, [&](auto shape) {
    using Tile = decltype(shape);
    const int64_t part_depth = round_up(ceil_div(product.left.depth, product.parts), Tile::kStep);
    const dim3 blocks(static_cast<unsigned>(ceil_div(rows, Tile::kRows)),
                      static_cast<unsigned>(ceil_div(cols, Tile::kCols)), static_cast<unsigned>(product.parts));
    return launch(product_forward_kernel<Tile, kLeft, kRight>, blocks, dim3(Tile::kThreads),
                  sizeof(typename Engine<Tile, kLeft, kRight>::Storage), context.stream, product, part_depth);
  });
}

#define CYCLIP_INSTANTIATE(Math)                                                                        \
  template Error launch_product<Math, Layout::kAlongDepth, Layout::kAcrossDepth>(const Product<Math>&,  \
                                                                                 const Context&);       \
  template Error launch_product<Math, Layout::kAcrossDepth, Layout::kAcrossDepth>(const Product<Math>&, \
                                                                                  const Context&);
CYCLIP_INSTANTIATE(Bf16)
CYCLIP_INSTANTIATE(Tf32)
CYCLIP_INSTANTIATE(F32)
CYCLIP_INSTANTIATE(F64)
// W = P M' of the cycle terms.
template Error launch_product<F32, Layout::kAlongDepth, Layout::kAlongDepth>(const Product<F32>&, const Context&);
template Error launch_product<F64, Layout::kAlongDepth, Layout::kAlongDepth>(const Product<F64>&, const Context&);

}  // namespace cyclip::cuda
