// The gradient through the softmax statistics of the negatives (docs/gradients.md).

#include <climits>

#include "labels.cuh"
#include "panel_kernel.cuh"

namespace cyclip::cuda {

namespace {

// Softmax weights g e^(z - lse) in base 2: the integer shift nearest to lse / ln 2, with the
// remainder folded into the weight.
template <typename T>
struct alignas(2 * sizeof(T)) Weight {
  T weight;
  int shift;
};

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

// The weights of a thread's lines for one common shift, so that one exponential serves the row and
// the column of an entry.
template <typename Tile>
struct CommonShift {
  using T = typename Tile::Accumulator;
  // An entry that is 2^-62 of a line's sum or smaller may become zero.
  static constexpr int kMostSpread = 64;
  static constexpr T kMostWeight = static_cast<T>(0x1p+60);

  int largest = INT_MIN, smallest = INT_MAX;
  T heaviest = 0;

  __device__ void include(const Weight<T>& line) {
    largest = line.shift > largest ? line.shift : largest;
    smallest = line.shift < smallest ? line.shift : smallest;
    heaviest = fmax(heaviest, fabs(line.weight));
  }
  // Whether no weight overflows and no entry that counts underflows.
  __device__ bool suffices() const {
    return int64_t{largest} - smallest <= kMostSpread && heaviest <= kMostWeight;
  }
  __device__ T weight(const Weight<T>& line) const {
    return line.weight * bit_cast<T>((largest - line.shift + 127) << 23);
  }
};

// dL/dz_ij = u_i e^(z_ij - r_i) + v_j e^(z_ij - c_j).
template <typename T, typename MaybeLabels>
struct Softmax {
  static constexpr bool kHasBias = false;

  const Weight<T>* rows;
  const Weight<T>* cols;
  const double* logit_scale;
  MaybeLabels labels;

  // Only in float does one exponential serve both sides if it can: in double, both versions
  // together need more registers than there are.
  template <typename Tile, typename Body>
  __device__ void with_slopes(const Place<Tile>& place, const Window& window, const Body& body) const {
    const auto base2 = masking_scale(base2_scale<T>(*logit_scale));
    Weight<T> of_row[Tile::kThreadRows], of_col[Tile::kThreadCols];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) of_row[a] = window.of_row(rows, place.row(a));
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) of_col[b] = window.of_col(cols, place.col(b));
    if constexpr (sizeof(T) == sizeof(float)) {
      CommonShift<Tile> common;
      for (const auto& line : of_row) common.include(line);
      for (const auto& line : of_col) common.include(line);
      if (common.suffices()) {
        for (auto& line : of_row) line.weight = common.weight(line);
        for (auto& line : of_col) line.weight = common.weight(line);
        const T shift = static_cast<T>(common.largest);
        body([&](int a, int b, T cosine) {
          return (of_row[a].weight + of_col[b].weight) * exp2_scaled(cosine, base2, shift);
        });
        return;
      }
    }
    body([&](int a, int b, T cosine) {
      return of_row[a].weight * exp2_scaled(cosine, base2, static_cast<T>(of_row[a].shift)) +
             of_col[b].weight * exp2_scaled(cosine, base2, static_cast<T>(of_col[b].shift));
    });
  }
};

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
