// The gradient through the softmax statistics on compute capability 9.0a (pair_statistics_backward.cu).

#include "hopper_panel.cuh"
#include "softmax_slopes.cuh"

namespace cyclip::cuda {

template <typename MaybeLabels>
struct HopperSlopes<Softmax<float, MaybeLabels>> {
  // The common shift of a warp's lines. A shared variable has no initial values.
  struct OfWarp {
    int largest, smallest;
    float heaviest;
  };
  // The weights of all lines, for one common shift or, if it does not suffice, for their own shifts.
  struct Lines {
    OfWarp of_warp[4];
    float row_weights[128], col_weights[128];
    int row_shifts[128], col_shifts[128];
    ColumnLabels<MaybeLabels> labels;
  };

  __device__ HopperSlopes(const Softmax<float, MaybeLabels>& loss, Lines& lines) : loss_(loss), lines_(lines) {}

  template <typename Tile>
  __device__ void load(const HopperConsumer<Tile>& consumer, const Window& window) {
    // A thread loads one row and one column. Lines outside the matrix repeat another one.
    const int line = static_cast<int>(threadIdx.x) % Tile::kConsumerThreads;
    const Weight<float> row = window.of_row(loss_.rows, line), col = window.of_col(loss_.cols, line);
    CommonShift<Tile> common;
    common.include(row);
    common.include(col);
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      common.include(CommonShift<Tile>{shuffle_xor(common.largest, mask), shuffle_xor(common.smallest, mask),
                                       shuffle_xor(common.heaviest, mask)});
    }
    if (line % kWarpSize == 0)
      lines_.of_warp[line / kWarpSize] = {common.largest, common.smallest, common.heaviest};
    consumer.barrier();
    for (const OfWarp& warp : lines_.of_warp)
      common.include(CommonShift<Tile>{warp.largest, warp.smallest, warp.heaviest});
    has_common_shift_ = common.suffices();
    shift_ = static_cast<float>(common.largest);
    lines_.row_weights[line] = has_common_shift_ ? common.weight(row) : row.weight;
    lines_.col_weights[line] = has_common_shift_ ? common.weight(col) : col.weight;
    lines_.row_shifts[line] = row.shift;
    lines_.col_shifts[line] = col.shift;
    lines_.labels.load(window, loss_.labels);
  }

  template <typename Tile, typename Body>
  __device__ void with_slopes(const Place<Tile>& place, const Window& window, float masked,
                              const Body& body) const {
    const auto base2 = masking_scale(base2_scale<float>(*loss_.logit_scale));
    const SameEntries<Tile, MaybeLabels> same(place, window, loss_.labels, lines_.labels);
    float row_weights[Tile::kThreadRows];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) row_weights[a] = lines_.row_weights[place.row(a)];
    if (has_common_shift_) {
      body([&](int b) {
        const float col_weight = lines_.col_weights[place.col(b)];
        const auto is_same = same.of_column(b);
        return [&, col_weight, is_same](int a, float& cosine) {
          if (is_same(a)) cosine = masked;
          return (row_weights[a] + col_weight) * exp2_scaled(cosine, base2, shift_);
        };
      });
      return;
    }
    float row_shifts[Tile::kThreadRows];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a)
      row_shifts[a] = static_cast<float>(lines_.row_shifts[place.row(a)]);
    body([&](int b) {
      const float col_weight = lines_.col_weights[place.col(b)],
                  col_shift = static_cast<float>(lines_.col_shifts[place.col(b)]);
      const auto is_same = same.of_column(b);
      return [&, col_weight, col_shift, is_same](int a, float& cosine) {
        if (is_same(a)) cosine = masked;
        return row_weights[a] * exp2_scaled(cosine, base2, row_shifts[a]) +
               col_weight * exp2_scaled(cosine, base2, col_shift);
      };
    });
  }

 private:
  const Softmax<float, MaybeLabels>& loss_;
  Lines& lines_;
  bool has_common_shift_;
  float shift_;
};

#define CYCLIP_INSTANTIATE(Math, MaybeLabels)                                                                 \
  template Error launch_hopper_fill_panel<Math>(const Panel<PanelMath<Math>>&, const Operand<Math::Element>&, \
                                                const Operand<Math::Element>&, const Pairing<float>&,         \
                                                const Softmax<float, MaybeLabels>&, const Context&, int64_t*);
CYCLIP_INSTANTIATE(Bf16, NoLabels)
CYCLIP_INSTANTIATE(Bf16, Labels)
CYCLIP_INSTANTIATE(F16, NoLabels)
CYCLIP_INSTANTIATE(F16, Labels)

}  // namespace cyclip::cuda
