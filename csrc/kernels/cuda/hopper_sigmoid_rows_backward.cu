// The gradient of the sigmoid loss on compute capability 9.0a (sigmoid_rows_backward.cu).

#include "hopper_panel.cuh"
#include "sigmoid_slopes.cuh"

namespace cyclip::cuda {

namespace {

__device__ const Labels& labels_of(const SameLabels& same) { return same.labels; }
__device__ const NoLabels& labels_of(const NoLabels& none) { return none; }

}  // namespace

template <typename MaybeLabels>
struct HopperSlopes<Sigmoid<float, MaybeLabels>> {
  static constexpr bool kHasLabels = std::is_same_v<MaybeLabels, SameLabels>;
  using LabelsOrNone = std::conditional_t<kHasLabels, Labels, NoLabels>;

  struct Lines {
    ColumnLabels<LabelsOrNone> labels;
  };

  __device__ HopperSlopes(const Sigmoid<float, MaybeLabels>& loss, Lines& lines) : loss_(loss), lines_(lines) {}

  template <typename Tile>
  __device__ void load(const HopperConsumer<Tile>& consumer, const Window& window) {
    consumer.barrier();
    lines_.labels.load(window, labels_of(loss_.labels));
  }

  template <typename Tile, typename Body>
  __device__ void with_slopes(const Place<Tile>& place, const Window& window, float masked,
                              const Body& body) const {
    const Logits<float> logit(loss_.logit_scale, loss_.logit_bias);
    const SameEntries<Tile, LabelsOrNone> same(place, window, labels_of(loss_.labels), lines_.labels);
    float gradients[Tile::kThreadRows];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a)
      gradients[a] = static_cast<float>(window.of_row(loss_.grad_rows, place.row(a)));
    body([&](int b) {
      const auto is_same = same.of_column(b);
      return [&, is_same](int a, float& cosine) {
        bool is_positive = false;
        if constexpr (kHasLabels) {
          if (is_same(a) && !loss_.labels.are_positives) cosine = masked;
          is_positive = is_same(a) && fabs(cosine) != -kMasked<float>;
        }
        const float of_cosine = logit(cosine), z = is_positive ? -of_cosine : of_cosine, u = decay(z);
        const float gradient = is_positive ? -gradients[a] : gradients[a];
        return gradient * (z > 0 ? 1.0f : u) * one_over_one_plus(u);
      };
    });
  }

 private:
  const Sigmoid<float, MaybeLabels>& loss_;
  Lines& lines_;
};

#define CYCLIP_INSTANTIATE(Math, MaybeLabels)                                                                 \
  template Error launch_hopper_fill_panel<Math>(const Panel<PanelMath<Math>>&, const Operand<Math::Element>&, \
                                                const Operand<Math::Element>&, const Pairing<float>&,         \
                                                const Sigmoid<float, MaybeLabels>&, const Context&, int64_t*);
CYCLIP_INSTANTIATE(Bf16, NoLabels)
CYCLIP_INSTANTIATE(Bf16, SameLabels)
CYCLIP_INSTANTIATE(F16, NoLabels)
CYCLIP_INSTANTIATE(F16, SameLabels)

}  // namespace cyclip::cuda
