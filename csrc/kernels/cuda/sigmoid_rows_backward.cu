// The gradient of the sigmoid loss (docs/gradients.md).

#include "panel_kernel.cuh"
#include "sigmoid_slopes.cuh"

namespace cyclip::cuda {

namespace {

// The positives of the rows [begin, end), a warp per row: dL/dS, and the parts of dL/ds and dL/db.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    sigmoid_positives_backward_kernel(PositivePairs positives, const double* grad_rows, int64_t begin, int64_t end,
                                      double* cosine_gradients, SumPair* sums) {
  const int64_t row = begin + warp_index();
  if (row >= end) return;  // a whole warp, so that its shuffles stay complete
  const int lane = threadIdx.x % kWarpSize;
  double cosine = 0, slope = 0;
  if (positives.exists(row)) {
    cosine = positives.cosine<T>(row, lane);
    slope = -grad_rows[row] * logistic(-positives.logit(cosine));
  }
  if (lane > 0) return;
  cosine_gradients[row] = slope * usable_scale(*positives.logit_scale);
  sums[row - begin] = {slope * cosine, slope};
}

}  // namespace

Error launch_sigmoid_rows_backward(const SigmoidRowsBackward& args, const Context& context) {
  return with_math(args.image.type, context, [&](auto math) -> Error {
    using Math = decltype(math);
    using T = typename Math::Accumulator;
    const int64_t n = args.image.rows;
    const SameLabels same = {{args.row_labels, args.col_labels}, args.same_are_positives};
    double* cosine_gradients = context.workspace.template take<double>(n);
    SumPair* positive_sums = context.workspace.template take<SumPair>(n);
    const PairwiseGradients gradients = {
        args.image, args.text, {cosine_gradients, args.offset}, args.image_grad, args.text_grad};
    return launch_feature_gradients<Math>(
        gradients, context, [&](const auto& panel, const Tower<Math>& image, const Tower<Math>& text) -> Error {
          const auto fill = [&](const auto& of_loss) {
            return launch_fill_panel<Math>(panel, image, text, args.offset, of_loss, args.logit_scale_grad,
                                           args.logit_bias_grad, context);
          };
          CYCLIP_TRY(same.labels.rows
                         ? fill(Sigmoid<T, SameLabels>{args.grad_rows, args.logit_scale, args.logit_bias, same})
                         : fill(Sigmoid<T, NoLabels>{args.grad_rows, args.logit_scale, args.logit_bias, {}}));
          if (panel.col_begin > 0) return kSuccess;  // the first panel of these rows has included their positives
          const PositivePairs positives = {args.image,  args.text,        image.norms,    text.norms,
                                           args.offset, args.logit_scale, args.logit_bias};
          CYCLIP_TRY(launch(sigmoid_positives_backward_kernel<typename Math::Element>,
                            blocks_for(panel.rows() * kWarpSize), dim3(kThreadsPerBlock), 0, context.stream,
                            positives, args.grad_rows, panel.row_begin, panel.row_end, cosine_gradients,
                            positive_sums));
          return launch_sum_pairs(positive_sums, panel.rows(), /*accumulate=*/true, args.logit_scale_grad,
                                  args.logit_bias_grad, context);
        });
  });
}

}  // namespace cyclip::cuda
