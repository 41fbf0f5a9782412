// The kernel that fills a panel of H for one loss on compute capability 9.0a (panel_kernel.cuh). The slopes of a
// loss are those of its struct for the portable engine. A thread has too many columns to hold their values in
// registers, so they are in shared memory:
//
//   template <>
//   struct HopperSlopes<Loss> {
//     struct Lines;  // of one consumer's tile, in shared memory
//     HopperSlopes(const Loss&, Lines&);
//     // Before the product. Contains a barrier of the consumer, after which all its threads have finished the
//     // previous tile.
//     template <typename Tile>
//     void load(const HopperConsumer<Tile>&, const Window&);
//     // After the product. Calls body(slopes) once. slopes(b) returns slope(a, cosine), the derivative by the
//     // entry in row a and column b of this thread. It sets the cosine to `masked` if the entry does not count.
//     template <typename Tile, typename Body>
//     void with_slopes(const Place<Tile>&, const Window&, float masked, const Body& body) const;
//   };

#pragma once

#include "gradients.cuh"
#include "hopper.h"
#include "hopper_cosines.cuh"
#include "hopper_labels.cuh"

namespace cyclip::cuda {

template <typename Loss>
struct HopperSlopes;

template <typename Tile, typename Loss>
struct HopperPanelStorage {
  HopperStorage<Tile> engine;
  struct Epilogue {
    ColumnNorms norms;
    typename HopperSlopes<Loss>::Lines lines;
  };
  Epilogue epilogues[Tile::kConsumers];
};

template <typename Math, typename Loss>
struct HopperPanelArguments {
  HopperMaps maps;  // of the panel's rows and columns
  Pairing<float> pairing;
  Loss loss;
  Panel<PanelMath<Math>> panel;
  int steps;
  int down, across;  // numbers of pairs of tiles
};

// Calls f(row, column), relative to the panel, for each pair of tiles of this block. Pairs that are processed at
// the same time form a block of the panel of about kGroup rows of pairs, so that they share operands in the L2
// cache.
template <typename Tile, typename F>
__device__ inline void for_each_pair_of_panel(int down, int across, const F& f) {
  constexpr int kGroup = 8;
  const int count = down * across;
  for (int pair = blockIdx.x; pair < count; pair += gridDim.x) {
    const int first = pair / (kGroup * across) * kGroup, in_group = pair - first * across;
    const int height = down - first < kGroup ? down - first : kGroup;
    f((first + in_group % height) * HopperPair<Tile>::kRows, in_group / height * Tile::kCols);
  }
}

template <typename Tile, typename Loss>
__global__ void __launch_bounds__(Tile::kThreads, 1) fill_panel_hopper_backward_kernel(
    const __grid_constant__ HopperPanelArguments<typename Tile::Math, Loss> args) {
  using PanelM = PanelMath<typename Tile::Math>;
  auto& shared = aligned_dynamic_shared<HopperPanelStorage<Tile, Loss>>();
  const int number = begin_hopper_roles<Tile>(shared.engine);
  const auto& panel = args.panel;
  if (number < 0) {
    HopperProducer<Tile> producer(shared.engine, args.maps);
    for_each_pair_of_panel<Tile>(args.down, args.across, [&](int row, int col) {
      producer.copy_pair(row, panel.rows(), col, 0, args.steps);
    });
    return;
  }
  HopperConsumer<Tile> consumer(shared.engine, number);
  auto& epilogue = shared.epilogues[number];
  const Place<Tile> place;
  const float scale = static_cast<float>(usable_scale(*args.loss.logit_scale)), masked = masked_cosine(scale);
  for_each_pair_of_panel<Tile>(args.down, args.across, [&](int row, int col) {
    row += number * Tile::kRows;
    const bool has_rows = row < panel.rows();
    // Entries outside the panel, if any, belong to another panel.
    const Window window = {panel.row_end, panel.col_end, panel.row_begin + row, panel.col_begin + col};
    HopperSlopes<Loss> slopes(args.loss, epilogue.lines);
    if (has_rows) {
      slopes.load(consumer, window);
      epilogue.norms.load(window, args.pairing);
    }
    typename Tile::Fragment values;
    consumer.multiply(values, args.steps);
    if (!has_rows) return;
    to_hopper_cosines(values, place, window, args.pairing, epilogue.norms, masked, IgnorePositives{});

    using Element = typename PanelM::Element;
    Element* lines[Tile::kThreadRows];
    float row_factors[Tile::kThreadRows], dot_sums[Tile::kThreadRows], slope_sums[Tile::kThreadRows];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      lines[a] = panel.at(window.row_begin + place.row(a), window.col_begin) + place.col(0);
      row_factors[a] = scale * window.of_row(args.pairing.row_inv_norms, place.row(a));
      dot_sums[a] = slope_sums[a] = 0;
    }
    slopes.with_slopes(place, window, masked, [&](const auto& slopes_of) {
      CYCLIP_UNROLL
      for (int b = 0; b < Tile::kThreadCols; b += 2) {
        const auto first = slopes_of(b), second = slopes_of(b + 1);
        const float first_factor = epilogue.norms.inv_norms[place.col(b)],
                    second_factor = epilogue.norms.inv_norms[place.col(b + 1)];
        CYCLIP_UNROLL
        for (int a = 0; a < Tile::kThreadRows; ++a) {
          const auto h = [&](const auto& slope_of, float& cosine, float col_factor) {
            const float slope = slope_of(a, cosine);
            if constexpr (Loss::kHasBias) slope_sums[a] += slope;
            dot_sums[a] = multiply_add(slope, cosine, dot_sums[a]);
            return panel_entry<PanelM>(slope * row_factors[a] * col_factor);
          };
          const auto of_first = h(first, values[a][b], first_factor);
          const auto of_second = h(second, values[a][b + 1], second_factor);
          // The panel's memory holds whole tiles.
          store_pair(lines[a] + Place<Tile>::col_step(b), of_first, of_second);
        }
      }
    });

    SumPair sums = {0, 0};
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      sums.first += static_cast<double>(dot_sums[a]);
      sums.second += static_cast<double>(slope_sums[a]);
    }
    sums = {warp_sum(sums.first), warp_sum(sums.second)};
    const int tile = row / Tile::kRows * args.across + col / Tile::kCols;
    if (threadIdx.x % kWarpSize == 0) panel.sums[int64_t{Tile::kWarps} * tile + place.warp] = sums;
  });
}

template <typename Math, typename Loss>
Error launch_hopper_fill_panel(const Panel<PanelMath<Math>>& panel, const Operand<typename Math::Element>& image,
                               const Operand<typename Math::Element>& text, const Pairing<float>& pairing,
                               const Loss& loss, const Context& context, int64_t* sums) {
  using Tile = HopperTile<Math>;
  const int64_t down = ceil_div(panel.rows(), HopperPair<Tile>::kRows),
                across = ceil_div(panel.cols(), Tile::kCols);
  HopperPanelArguments<Math, Loss> arguments = {{},
                                                pairing,
                                                loss,
                                                panel,
                                                static_cast<int>(ceil_div(image.depth, Tile::kStep)),
                                                static_cast<int>(down),
                                                static_cast<int>(across)};
  CYCLIP_TRY(make_tensor_maps<Tile>(&arguments.maps, image, text));
  *sums = Tile::kWarps * ceil_div(panel.rows(), Tile::kRows) * across;
  return launch_hopper(fill_panel_hopper_backward_kernel<Tile, Loss>, hopper_blocks(down * across, context),
                       dim3(Tile::kThreads), sizeof(HopperPanelStorage<Tile, Loss>), context.stream, arguments);
}

}  // namespace cyclip::cuda
