// Softmax statistics of the negatives on compute capability 9.0a (pair_statistics_forward.cu, docs/gradients.md).

#include "hopper.h"
#include "hopper_cosines.cuh"
#include "hopper_labels.cuh"
#include "hopper_regions.cuh"
#include "pair_statistics.cuh"

namespace cyclip::cuda {

bool hopper_is_available() { return find_encode_tensor_map() != nullptr; }

namespace {

constexpr int kGroup = 8;  // columns of a thread that are reduced together, one for each lane that shares them

// One value for each column and each warp of a consumer. All have the same size, so that one address serves all.
template <bool kHardest>
struct ColumnScratch {
  static constexpr int kWarps = 4, kCols = 128;
  float sums[kWarps][kCols], shifts[kWarps][kCols];
  float hardest[kHardest ? kWarps : 1][kCols];
  int indices[kHardest ? kWarps : 1][kCols];
};

template <typename Tile, bool kHardest, typename MaybeLabels>
struct Storage {
  HopperStorage<Tile> engine;
  ColumnScratch<kHardest> scratch[Tile::kConsumers];
  ColumnNorms norms[Tile::kConsumers];
  ColumnLabels<MaybeLabels> labels[Tile::kConsumers];
};

template <bool kHardest, typename MaybeLabels>
struct Arguments {
  HopperMaps maps;
  HopperRegions regions;
  Pairing<float> pairing;
  int steps;
  const double* logit_scale;
  Partials<float, kHardest> row_parts;  // [across][n]
  Partials<float, kHardest> col_parts;  // [2 down][m], one part for each consumer
  double* positive;
  MaybeLabels labels;
};

// The statistics of one tile. A thread owns the row place.row(place.t), whose entries are all in its warp, and the
// column of its number.
template <typename Tile, bool kHardest>
class TileStatistics {
 public:
  __device__ TileStatistics(const HopperConsumer<Tile>& consumer, ColumnScratch<kHardest>& scratch,
                            double logit_scale)
      : consumer_(consumer), scratch_(scratch), scale_(base2_scale<float>(logit_scale)) {}

  __device__ int row() const { return place.row(place.t); }
  __device__ int col() const { return static_cast<int>(threadIdx.x) % Tile::kConsumerThreads; }

  // Calls mask_positives() between the sums and the hardest negatives.
  template <typename MaskPositives>
  __device__ void operator()(const Window& window, typename Tile::Fragment& cosines,
                             const MaskPositives& mask_positives, Statistics<float>& of_row,
                             Statistics<float>& of_col) {
    Base2Scale<float> scale = scale_;
    const bool is_negative = scale.hi < 0;
    if (is_negative) {  // then the easiest negative has the largest logit
      scale = {-scale.hi, -scale.lo};
      negate_cosines<Tile>(cosines);
    }
    scale = masking_scale(scale);
    put_sums<false>(cosines, scale, of_row);
    get_column(of_col);

    // One shift for a whole warp. A line whose entries are all far smaller than the largest one of the warps would
    // lose digits; then each line gets its own shift.
    constexpr double kLeast = 0x1p-90;  // a product with 2^-36 is still a normal number
    const bool row_is_small = window.row_begin + row() < window.rows && of_row.sum < kLeast;
    const bool col_is_small = window.col_begin + col() < window.cols && of_col.sum < kLeast;
    if (consumer_.any(row_is_small || col_is_small)) {
      put_sums<true>(cosines, scale, of_row);
      get_column(of_col);
      consumer_.barrier();  // all threads have read the scratch
    }
    if constexpr (kHardest) {
      if (is_negative) negate_cosines<Tile>(cosines);
      mask_positives();
      put_hardest(cosines, of_row);
      consumer_.barrier();
      get_hardest(of_col);
      of_row.index = of_row.hardest > kMasked<float> ? of_row.index + static_cast<int>(window.col_begin) : -1;
      of_col.index = of_col.hardest > kMasked<float> ? of_col.index + static_cast<int>(window.row_begin) : -1;
    }
  }

  const Place<Tile> place;

 private:
  __device__ void put_hardest(const typename Tile::Fragment& cosines, Statistics<float>& of_row) {
    // Without NaN: as the first of two, it would be the harder one.
    const auto of_part = [](const Candidate<float>& part, int first) {
      return Candidate<float>{Largest{}(part.value, kMasked<float>), part.index + first};
    };
    Candidate<float> rows[Tile::kThreadRows];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      rows[a] = of_part(
          hardest_of_part<Tile::kThreadCols, float>([&](int b) { return cosines[a][b]; }, &Place<Tile>::col_step),
          place.col(0));
    }
    reduce_by_halving<2, 1, Tile::kThreadRows>(rows, Harder{});
    of_row.hardest = rows[0].value;
    of_row.index = rows[0].index;
    CYCLIP_UNROLL
    for (int group = 0; group < Tile::kThreadCols; group += kGroup) {
      Candidate<float> cols[kGroup];
      CYCLIP_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        cols[i] = of_part(hardest_of_part<Tile::kThreadRows, float>([&](int a) { return cosines[a][group + i]; },
                                                                    &Place<Tile>::row_step),
                          place.row(0));
      }
      reduce_by_halving<16, 4, kGroup>(cols, Harder{});
      scratch_.hardest[place.warp][place.col(group + place.g)] = cols[0].value;
      scratch_.indices[place.warp][place.col(group + place.g)] = cols[0].index;
    }
  }

  // The largest value of the lanes that share a row (masks 1 and 2) or a column (4 to 16), or of all.
  template <int kFirstMask, int kLastMask>
  __device__ static float largest_of_lanes(float largest) {
    CYCLIP_UNROLL
    for (int mask = kFirstMask; mask <= kLastMask; mask *= 2)
      largest = Largest{}(largest, shuffle_xor(largest, mask));
    return largest;
  }

  template <bool kByLine>
  __device__ void put_sums(const typename Tile::Fragment& cosines, Base2Scale<float> scale,
                           Statistics<float>& of_row) {
    float shifts[Tile::kThreadRows], sums[Tile::kThreadRows];
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      sums[a] = 0;
      shifts[a] = kMasked<float>;
      CYCLIP_UNROLL
      for (int b = 0; b < Tile::kThreadCols; ++b) shifts[a] = Largest{}(shifts[a], cosines[a][b]);
    }
    if constexpr (kByLine) {
      CYCLIP_UNROLL
      for (int a = 0; a < Tile::kThreadRows; ++a) shifts[a] = shift(largest_of_lanes<1, 2>(shifts[a]), scale);
    } else {
      const float largest = Largest{}(Largest{}(shifts[0], shifts[1]), Largest{}(shifts[2], shifts[3]));
      shifts[0] = shift(largest_of_lanes<1, 16>(largest), scale);
      CYCLIP_UNROLL
      for (int a = 1; a < Tile::kThreadRows; ++a) shifts[a] = shifts[0];
    }
    CYCLIP_UNROLL
    for (int group = 0; group < Tile::kThreadCols; group += kGroup) {
      float cols[kGroup];
      CYCLIP_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        float col_shift = shifts[0];
        if constexpr (kByLine) {
          col_shift = kMasked<float>;
          CYCLIP_UNROLL
          for (int a = 0; a < Tile::kThreadRows; ++a) col_shift = Largest{}(col_shift, cosines[a][group + i]);
          col_shift = shift(largest_of_lanes<4, 16>(col_shift), scale);
        }
        if (place.g == i) scratch_.shifts[place.warp][place.col(group + i)] = col_shift;
        cols[i] = 0;
        CYCLIP_UNROLL
        for (int a = 0; a < Tile::kThreadRows; ++a) {
          const float exponential = exp2_scaled(cosines[a][group + i], scale, shifts[a]);
          sums[a] += exponential;
          cols[i] += kByLine ? exp2_scaled(cosines[a][group + i], scale, col_shift) : exponential;
        }
      }
      reduce_by_halving<16, 4, kGroup>(cols, Sum{});
      scratch_.sums[place.warp][place.col(group + place.g)] = cols[0];
    }
    reduce_by_halving<2, 1, Tile::kThreadRows>(sums, Sum{});
    of_row.sum = static_cast<double>(sums[0]);
    if constexpr (kByLine)
      reduce_by_halving<2, 1, Tile::kThreadRows>(shifts, Largest{});  // all lanes have the same
    of_row.shift = static_cast<int>(shifts[0]);
  }

  __device__ static float shift(float largest, Base2Scale<float> scale) {
    return static_cast<float>(shift_of(largest * scale.hi));
  }

  // Adds up the parts of this thread's column, warp by warp.
  __device__ void get_column(Statistics<float>& of_col) const {
    consumer_.barrier();
    of_col = {};
    CYCLIP_UNROLL
    for (int warp = 0; warp < Tile::kWarps; ++warp) {
      of_col.append(
          {static_cast<int>(scratch_.shifts[warp][col()]), static_cast<double>(scratch_.sums[warp][col()])});
    }
  }

  // The hardest entry of this thread's column.
  __device__ void get_hardest(Statistics<float>& of_col) const {
    Candidate<float> best = {kMasked<float>, -1};
    CYCLIP_UNROLL
    for (int warp = 0; warp < Tile::kWarps; ++warp) {
      best = Harder{}(best, Candidate<float>{scratch_.hardest[warp][col()], scratch_.indices[warp][col()]});
    }
    of_col.hardest = best.value;
    of_col.index = best.index;
  }

  const HopperConsumer<Tile>& consumer_;
  ColumnScratch<kHardest>& scratch_;
  const Base2Scale<float> scale_;
};

template <typename Tile, bool kHardest, typename MaybeLabels>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    pair_statistics_hopper_forward_kernel(const __grid_constant__ Arguments<kHardest, MaybeLabels> args) {
  auto& shared = aligned_dynamic_shared<Storage<Tile, kHardest, MaybeLabels>>();
  const int number = begin_hopper_roles<Tile>(shared.engine);
  const HopperRegions& regions = args.regions;
  if (number < 0) {
    regions.copy<Tile>(shared.engine, args.maps, args.steps);
    return;
  }
  HopperConsumer<Tile> consumer(shared.engine, number);
  TileStatistics<Tile, kHardest> statistics(consumer, shared.scratch[number], *args.logit_scale);
  Statistics<float> of_row;  // the row that this thread owns
  regions.for_each<Tile>(
      [&](const HopperRegions::Strip& strip, int col_begin) {
        const Window window = {regions.rows, regions.cols, int64_t{strip.row} + number * Tile::kRows, col_begin};
        typename Tile::Fragment values;
        shared.norms[number].load(window, args.pairing);
        shared.labels[number].load(window, args.labels);
        consumer.multiply(values, args.steps);
        Statistics<float> of_tile_row, of_tile_col;
        const bool has_rows = window.row_begin < window.rows;
        if (has_rows) {
          to_hopper_cosines(values, statistics.place, window, args.pairing, shared.norms[number], kMasked<float>,
                            [&](int64_t row, float cosine) { args.positive[row] = static_cast<double>(cosine); });
          // Reads the labels again for the second call: their registers are not free during the sums.
          const auto mask_same = [&] {
            const SameEntries<Tile, MaybeLabels> same(statistics.place, window, args.labels,
                                                      shared.labels[number]);
            same.mask(values);
          };
          const bool are_positives = cuda::are_positives(args.labels);
          if (!are_positives) mask_same();
          statistics(
              window, values,
              [&] {
                if (are_positives) mask_same();
              },
              of_tile_row, of_tile_col);
          of_row.append(of_tile_row);
        }
        const int64_t col = int64_t{col_begin} + statistics.col(),
                      part = int64_t{Tile::kConsumers} * strip.down + number;
        if (col < window.cols && (has_rows || strip.is_first)) {
          Statistics<float> of_col;
          if (!strip.is_first) of_col = args.col_parts.load(part, col);
          of_col.append(of_tile_col);
          args.col_parts.store(part, col, of_col);
        }
      },
      [&](const HopperRegions::Strip& strip) {
        const int64_t row = int64_t{strip.row} + number * Tile::kRows + statistics.row();
        if (row < regions.rows) args.row_parts.store(strip.across, row, of_row);
        of_row = {};
      });
}

}  // namespace

template <bool kHardest, typename Math, typename MaybeLabels>
Error launch_hopper_pair_statistics(const PairStatisticsForward& args, const MaybeLabels& labels,
                                    const Tower<Math>& image, const Tower<Math>& text, const Context& context) {
  using Tile = HopperTile<Math>;
  using Parts = Partials<float, kHardest>;
  const auto tiles = HopperRegions::of<Tile>(image.rows, text.rows);
  const Regions& regions = tiles.regions;
  const int64_t col_parts = Tile::kConsumers * regions.down;
  Arguments<kHardest, MaybeLabels> arguments = {{},
                                                tiles,
                                                {image.inv_norms, text.inv_norms, args.offset},
                                                static_cast<int>(ceil_div(image.d, Tile::kStep)),
                                                args.logit_scale,
                                                Parts::allocate(regions.across, image.rows, context.workspace),
                                                Parts::allocate(col_parts, text.rows, context.workspace),
                                                args.positive,
                                                labels};
  CYCLIP_TRY(make_tensor_maps<Tile>(&arguments.maps, image.by_rows(), text.by_rows()));
  CYCLIP_TRY(launch_hopper(pair_statistics_hopper_forward_kernel<Tile, kHardest, MaybeLabels>,
                           hopper_blocks(tiles.count(), context), dim3(Tile::kThreads),
                           sizeof(Storage<Tile, kHardest, MaybeLabels>), context.stream, arguments));
  return launch_merge_statistics<float, kHardest>(
      {arguments.row_parts, regions.across, args.row_lse, args.row_hardest, args.row_hardest_index},
      {arguments.col_parts, col_parts, args.col_lse, args.col_hardest, args.col_hardest_index}, context);
}

#define CYCLIP_INSTANTIATE(kHardest, Math, MaybeLabels)                                                    \
  template Error launch_hopper_pair_statistics<kHardest>(const PairStatisticsForward&, const MaybeLabels&, \
                                                         const Tower<Math>&, const Tower<Math>&, const Context&);
CYCLIP_INSTANTIATE(false, Bf16, NoLabels)
CYCLIP_INSTANTIATE(true, Bf16, NoLabels)
CYCLIP_INSTANTIATE(false, Bf16, Labels)
CYCLIP_INSTANTIATE(true, Bf16, SameLabels)
CYCLIP_INSTANTIATE(false, F16, NoLabels)
CYCLIP_INSTANTIATE(true, F16, NoLabels)
CYCLIP_INSTANTIATE(false, F16, Labels)
CYCLIP_INSTANTIATE(true, F16, SameLabels)

}  // namespace cyclip::cuda
