// The gradient of the sigmoid loss on compute capability 9.0a (sigmoid_rows_backward.cu).

#include "hopper_panel.cuh"
#include "sigmoid_slopes.cuh"

namespace cyclip::cuda {

template <typename MaybeLabels>
struct HopperSlopes<Sigmoid<float, MaybeLabels>> {
  struct Lines {
    ColumnLabels<MaybeLabels> labels;
  };

  __device__ HopperSlopes(const Sigmoid<float, MaybeLabels>& loss, Lines& lines) : loss_(loss), lines_(lines) {}

  template <typename Tile>
  __device__ void load(const HopperConsumer<Tile>& consumer, const Window& window) {
    consumer.barrier();
    lines_.labels.load(window, loss_.labels);
  }

  template <typename Tile, typename Body>
  __device__ void with_slopes(const Place<Tile>& place, const Window& window, float masked,
                              const Body& body) const {
    const Logits<float> logit(loss_.logit_scale, loss_.logit_bias);
    const SameEntries<Tile, MaybeLabels> same(place, window, loss_.labels, lines_.labels);
    float gradients[Tile::kThreadRows];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a)
      gradients[a] = static_cast<float>(window.of_row(loss_.grad_rows, place.row(a)));
    with_meaning(loss_.labels, [&](auto meaning) {
      body([&](int b) {
        const auto is_same = same.of_column(b);
        return [&, is_same](int a, float& cosine) {
          const bool is_positive = apply_labels(decltype(meaning){}, is_same(a), cosine, masked);
          const float of_cosine = logit(cosine), z = is_positive ? -of_cosine : of_cosine, u = decay(z);
          const float gradient = is_positive ? -gradients[a] : gradients[a];
          return gradient * (z > 0 ? 1.0f : u) * one_over_one_plus(u);
        };
      });
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
