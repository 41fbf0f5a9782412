// The kernel that fills a panel of H for one loss. Loss gives the slope of the loss by one negative's logit:
//
//   struct Loss {
//     struct Scalars { T scale; ... };    // s, and other values that all entries share
//     struct Row; struct Col;             // values that the slopes of a line share
//     Scalars scalars() const;
//     Row row(int64_t i) const;
//     Col col(int64_t j) const;
//     static T slope(T cosine, const Scalars&, const Row&, const Col&);  // dL/dz_ij
//   };

#pragma once

#include "cosines.cuh"
#include "gradients.cuh"
#include "sum_pairs.cuh"

namespace cyclip::cuda {

template <typename Tile, typename Loss>
struct PanelArguments {
  using T = typename Tile::Accumulator;
  Operand<typename Tile::Element> image, text;
  Pairing<T> pairing;
  Loss loss;
  Panel<PanelMath<typename Tile::Math>> panel;
};

template <typename Tile, typename Loss>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    fill_panel_backward_kernel(PanelArguments<Tile, Loss> args) {
  using T = typename Tile::Accumulator;
  using PanelM = PanelMath<typename Tile::Math>;
  union Storage {
    typename Engine<Tile>::Storage engine;
    BlockSums<Tile::kThreads> block_sums;
  };
  auto& shared = dynamic_shared<Storage>();
  const Place<Tile> place;
  const auto& panel = args.panel;
  // Entries beyond the panel, if any, belong to another panel.
  const Window window = {panel.row_end, panel.col_end, panel.row_begin + int64_t{blockIdx.y} * Tile::kRows,
                         panel.col_begin + int64_t{blockIdx.x} * Tile::kCols};
  typename Tile::Fragment values;
  Engine<Tile>::multiply(values, shared.engine, place, args.image, window.row_begin, args.text, window.col_begin,
                         0, args.image.depth);
  to_cosines(values, place, window, args.pairing, IgnorePositives{});

  const auto scalars = args.loss.scalars();
  typename Loss::Col cols[Tile::kThreadCols];
  T col_factors[Tile::kThreadCols];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) {
    const int64_t col = window.inner_col(place.col(b));
    cols[b] = args.loss.col(col);
    col_factors[b] = args.pairing.col_inv_norms[col];
  }
  T slope_sum = 0, dot_sum = 0;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    const int64_t row = window.inner_row(place.row(a));
    const auto of_row = args.loss.row(row);
    const T row_factor = scalars.scale * args.pairing.row_inv_norms[row];
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      const T cosine = values[a][b];
      const bool counts = cosine != kMasked<T>;
      const T slope = Loss::slope(cosine, scalars, of_row, cols[b]);
      slope_sum += counts ? slope : T{0};
      dot_sum += counts ? slope * cosine : T{0};
      values[a][b] = counts ? slope * row_factor * col_factors[b] : T{0};
    }
  }

  using Element = typename PanelM::Element;
  Element* h = panel.at(window.row_begin, window.col_begin);
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; b += 2) {  // the panel's memory holds whole tiles
      store_pair(h + place.row(a) * panel.pitch + place.col(b), panel_entry<PanelM>(values[a][b]),
                 panel_entry<PanelM>(values[a][b + 1]));
    }
  }

  block_barrier();  // from the pipeline's shared memory to the sums'
  const SumPair sums = block_sum({dot_sum, slope_sum}, shared.block_sums);
  if (threadIdx.x == 0) panel.sums[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = sums;
}

// Fills the panel and adds its part to dL/ds and dL/db (null: there is no bias).
template <typename Math, typename Loss>
Error launch_fill_panel(const Panel<PanelMath<Math>>& panel, const Tower<Math>& image, const Tower<Math>& text,
                        int64_t offset, const Loss& loss, double* scale_grad, double* bias_grad,
                        const Context& context) {
  return with_tile<Math>(panel.rows(), panel.cols(), context, [&](auto shape) -> Error {
    using Tile = decltype(shape);
    const dim3 blocks(static_cast<unsigned>(ceil_div(panel.cols(), Tile::kCols)),
                      static_cast<unsigned>(ceil_div(panel.rows(), Tile::kRows)));
    const int64_t count = int64_t{blocks.x} * blocks.y;
    const PanelArguments<Tile, Loss> args = {
        image.by_rows(), text.by_rows(), {image.inv_norms, text.inv_norms, offset}, loss, panel};
    CYCLIP_TRY(launch(fill_panel_backward_kernel<Tile, Loss>, blocks, dim3(Tile::kThreads),
                      sizeof(typename Engine<Tile>::Storage), context.stream, args));
    return launch_sum_pairs(panel.sums, count, !panel.is_first(), scale_grad, bias_grad, context);
  });
}

}  // namespace cyclip::cuda
