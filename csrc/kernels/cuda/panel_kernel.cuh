// The kernel that fills a panel of H for one loss. Loss gives the derivative of the loss by the
// negatives' logits:
//
//   struct Loss {
//     static constexpr bool kHasBias;  // whether the sum of all slopes is needed
//     const double* logit_scale;
//     MaybeLabels labels;              // for mask_same: the pairs that do not count
//     // Calls body(slope) once, where slope(a, b, cosine) is dL/dz of the entry in row a and
//     // column b of this thread. It is zero for the cosine of masked entries.
//     template <typename Tile, typename Body>
//     void with_slopes(const Place<Tile>&, const Window&, const Body& body) const;
//   };

#pragma once

#include "cosines.cuh"
#include "gradients.cuh"
#include "hopper.h"
#include "labels.cuh"
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
  // Entries outside the panel, if any, belong to another panel.
  Window window = {panel.row_end, panel.col_end, panel.row_begin + int64_t{blockIdx.y} * Tile::kRows,
                   panel.col_begin + int64_t{blockIdx.x} * Tile::kAcross * Tile::kCols};
  typename Tile::Fragment tiles[Tile::kAcross];
  Engine<Tile>::multiply(tiles, shared.engine, place, args.image, window.row_begin, args.text, window.col_begin, 0,
                         args.image.depth);
  const T scale = static_cast<T>(usable_scale(*args.loss.logit_scale));
  T slope_sum = 0, dot_sum = 0;
  bool is_last = Tile::kAcross == 1;
  CYCLIP_NO_UNROLL
  while (true) {
    auto& values = tiles[0];
    to_cosines(values, place, window, args.pairing, IgnorePositives{}, masked_cosine(scale));
    mask_same<Tile>(values, place, window, args.loss.labels, masked_cosine(scale));

    T col_factors[Tile::kThreadCols];
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      col_factors[b] = window.of_col(args.pairing.col_inv_norms, place.col(b));
    }
    args.loss.with_slopes(place, window, [&](const auto& slope_of) {
      CYCLIP_UNROLL
      for (int a = 0; a < Tile::kThreadRows; ++a) {
        const T row_factor = scale * window.of_row(args.pairing.row_inv_norms, place.row(a));
        CYCLIP_UNROLL
        for (int b = 0; b < Tile::kThreadCols; ++b) {
          const T slope = slope_of(a, b, values[a][b]);
          if constexpr (Loss::kHasBias) slope_sum += slope;
          dot_sum = multiply_add(slope, values[a][b], dot_sum);
          values[a][b] = slope * row_factor * col_factors[b];
        }
      }
    });

    using Element = typename PanelM::Element;
    Element* h = panel.at(window.row_begin, window.col_begin) + place.col(0);
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      Element* line = h + place.row(a) * panel.pitch;
      CYCLIP_UNROLL
      for (int b = 0; b < Tile::kThreadCols; b += 2) {  // the panel's memory holds whole tiles
        store_pair(line + Place<Tile>::col_step(b), panel_entry<PanelM>(values[a][b]),
                   panel_entry<PanelM>(values[a][b + 1]));
      }
    }
    window.col_begin += Tile::kCols;
    if (is_last || window.col_begin >= panel.col_end) break;
    copy_last<Tile>(tiles);
    is_last = true;
  }

  block_barrier();  // the sums reuse the pipeline's shared memory
  const SumPair sums = block_sum({dot_sum, slope_sum}, shared.block_sums);
  if (threadIdx.x == 0) panel.sums[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = sums;
}

// Fills the panel and adds its part to dL/ds and to dL/db (null if there is no bias).
template <typename Math, typename Loss>
Error launch_fill_panel(const Panel<PanelMath<Math>>& panel, const Tower<Math>& image, const Tower<Math>& text,
                        int64_t offset, const Loss& loss, double* scale_grad, double* bias_grad,
                        const Context& context) {
  const Pairing<typename Math::Accumulator> pairing = {image.inv_norms, text.inv_norms, offset};
  if constexpr (sizeof(typename Math::Element) == 2) {
    const auto rows = image.by_rows(panel.row_begin, panel.row_end);
    const auto cols = text.by_rows(panel.col_begin, panel.col_end);
    if (uses_hopper(rows, cols, context)) {
      int64_t count = 0;
      CYCLIP_TRY(launch_hopper_fill_panel<Math>(panel, rows, cols, pairing, loss, context, &count));
      return launch_sum_pairs(panel.sums, count, !panel.is_first(), scale_grad, bias_grad, context);
    }
  }
  const auto launch_tiles = [&](auto shape) -> Error {
    using Tile = decltype(shape);
    const dim3 blocks(static_cast<unsigned>(ceil_div(panel.cols(), Tile::kAcross * Tile::kCols)),
                      static_cast<unsigned>(ceil_div(panel.rows(), Tile::kRows)));
    const int64_t count = int64_t{blocks.x} * blocks.y;
    const PanelArguments<Tile, Loss> args = {image.by_rows(), text.by_rows(), pairing, loss, panel};
    CYCLIP_TRY(launch(fill_panel_backward_kernel<Tile, Loss>, blocks, dim3(Tile::kThreads),
                      sizeof(typename Engine<Tile>::Storage), context.stream, args));
    return launch_sum_pairs(panel.sums, count, !panel.is_first(), scale_grad, bias_grad, context);
  };
  if constexpr (std::is_same_v<decltype(loss.labels), NoLabels>) {
    return with_tile_or_pair<Math>(panel.rows(), panel.cols(), false, context, launch_tiles);
  } else {
    return with_tile<Math>(panel.rows(), panel.cols(), context, launch_tiles);
  }
}

}  // namespace cyclip::cuda
