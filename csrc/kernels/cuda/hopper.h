// Launchers of the kernels for compute capability 9.0a (hopper_*.cu). They use 16-bit features;
// hopper_engine.cuh describes the engine and its tiles.

#pragma once

#include "cosines.cuh"
#include "gradients.cuh"

namespace cyclip::cuda {

// Whether the product of these operands uses the engine for compute capability 9.0a. It copies rows that do not
// overlap.
template <Layout kLeft = Layout::kAlongDepth, Layout kRight = Layout::kAlongDepth, typename Element>
bool uses_hopper(const Operand<Element>& left, const Operand<Element>& right, const Context& context,
                 int64_t parts = 1) {
  const auto fits = [](const Operand<Element>& operand, Layout layout) {
    return operand.pitch >= (layout == Layout::kAlongDepth ? operand.depth : operand.lines);
  };
  return context.hopper_blocks > 0 && fits(left, kLeft) && fits(right, kRight) &&
         parts * ceil_div(left.lines, 128) * ceil_div(right.lines, 128) >= context.large_tiles;
}

// Pairs of equal labels do not count. With SameLabels they may be further positives instead, which are excluded
// from the hardest negatives only.
template <bool kHardest, typename Math, typename MaybeLabels>
Error launch_hopper_pair_statistics(const PairStatisticsForward& args, const MaybeLabels& labels,
                                    const Tower<Math>& image, const Tower<Math>& text, const Context& context);

// Takes memory for the parts of each row, [parts][n], without the positives.
template <typename Math, typename MaybeLabels>
Error launch_hopper_sigmoid_rows(const SigmoidRowsForward& args, const MaybeLabels& same, const Tower<Math>& image,
                                 const Tower<Math>& text, const Context& context, double** row_parts,
                                 int64_t* parts);

// Fills a panel with the derivatives of one loss (panel_kernel.cuh). The operands are the rows and columns of the
// panel; `sums` is set to the number of sums that the kernel writes.
template <typename Math, typename Loss>
Error launch_hopper_fill_panel(const Panel<PanelMath<Math>>& panel, const Operand<typename Math::Element>& image,
                               const Operand<typename Math::Element>& text, const Pairing<float>& pairing,
                               const Loss& loss, const Context& context, int64_t* sums);

// A product without the flag `enabled`.
template <Layout kLeft, Layout kRight>
Error launch_hopper_product(const Product<Bf16>& product, const Context& context);

}  // namespace cyclip::cuda
