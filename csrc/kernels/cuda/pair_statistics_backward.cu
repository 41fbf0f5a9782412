// The gradient through the softmax statistics of the negatives (docs/gradients.md).

#include "panel_kernel.cuh"
#include "softmax_slopes.cuh"

namespace cyclip::cuda {

namespace {

template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    softmax_weights_backward_kernel(const double* lse, const double* gradient, int64_t size, Weight<T>* weights) {
  const int64_t line = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (line >= size) return;
  const double value = lse[line];
  if (value == -INFINITY) {  // no negatives
    weights[line] = {0, 0};
    return;
  }
  const double base2 = value / kLn2;
  const int shift = shift_of(base2);
  weights[line] = {static_cast<T>(gradient[line] * exp2(shift - base2)), shift};
}

// Adds the gradients of the hardest negatives to the panel, one entry per row or per column. Takes
// two launches in sequence, so that no two threads write to the same entry.
template <typename Math>
__global__ void __launch_bounds__(kThreadsPerBlock)
    add_hardest_backward_kernel(Panel<Math> panel, const int64_t* hardest_index, const double* gradient,
                                bool lines_are_rows, const double* row_norms, const double* col_norms) {
  const int64_t line =
      int64_t{blockIdx.x} * blockDim.x + threadIdx.x + (lines_are_rows ? panel.row_begin : panel.col_begin);
  if (line >= (lines_are_rows ? panel.row_end : panel.col_end) || gradient[line] == 0) return;
  const int64_t row = lines_are_rows ? line : hardest_index[line];
  const int64_t col = lines_are_rows ? hardest_index[line] : line;
  if (!panel.contains(row, col)) return;
  auto& entry = *panel.at(row, col);
  const double h = widen(entry) + gradient[line] / row_norms[row] / col_norms[col];
  entry = panel_entry<Math>(static_cast<typename Math::Accumulator>(h));
}

}  // namespace

Error launch_pair_statistics_backward(const PairStatisticsBackward& args, const Context& context) {
  return with_math(args.image.type, context, [&](auto math) -> Error {
    using Math = decltype(math);
    using T = typename Math::Accumulator;
    const int64_t n = args.image.rows, m = args.text.rows;
    auto* rows = context.workspace.template take<Weight<T>>(n);
    auto* cols = context.workspace.template take<Weight<T>>(m);
    CYCLIP_TRY(launch(softmax_weights_backward_kernel<T>, blocks_for(n), dim3(kThreadsPerBlock), 0, context.stream,
                      args.row_lse, args.grad_row_lse, n, rows));
    CYCLIP_TRY(launch(softmax_weights_backward_kernel<T>, blocks_for(m), dim3(kThreadsPerBlock), 0, context.stream,
                      args.col_lse, args.grad_col_lse, m, cols));
    const Labels labels = {args.row_labels, args.col_labels};

    const PairwiseGradients gradients = {
        args.image, args.text, {args.grad_positive, args.offset}, args.image_grad, args.text_grad};
    return launch_feature_gradients<Math>(
        gradients, context, [&](const auto& panel, const Tower<Math>& image, const Tower<Math>& text) -> Error {
          const auto fill = [&](const auto& of_loss) {
            return launch_fill_panel<Math>(panel, image, text, args.offset, of_loss, args.logit_scale_grad,
                                           nullptr, context);
          };
          CYCLIP_TRY(labels.rows ? fill(Softmax<T, Labels>{rows, cols, args.logit_scale, labels})
                                 : fill(Softmax<T, NoLabels>{rows, cols, args.logit_scale, {}}));
          const auto kernel = add_hardest_backward_kernel<PanelMath<Math>>;
          CYCLIP_TRY(launch(kernel, blocks_for(panel.rows()), dim3(kThreadsPerBlock), 0, context.stream, panel,
                            args.row_hardest_index, args.grad_row_hardest, true, image.norms, text.norms));
          return launch(kernel, blocks_for(panel.cols()), dim3(kThreadsPerBlock), 0, context.stream, panel,
                        args.col_hardest_index, args.grad_col_hardest, false, image.norms, text.norms);
        });
  });
}

}  // namespace cyclip::cuda
