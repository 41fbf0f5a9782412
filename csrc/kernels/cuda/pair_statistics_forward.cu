// Softmax statistics of the negatives, per row and per column (docs/gradients.md).

#include "hopper.h"
#include "labels.cuh"
#include "pair_statistics.cuh"
#include "region_tiles.cuh"

namespace cyclip::cuda {

namespace {

// The hardest entries of all threads' parts of each line. The owner of a line compares 16 of them, which takes
// fewer instructions than to exchange them between lanes.
template <typename Tile>
struct Candidates {
  using T = typename Tile::Accumulator;
  static constexpr int kRowParts = 4 * Tile::kWarpsAcross, kColParts = 8 * Tile::kWarpsDown;
  static constexpr int kGap = 4;  // lanes of neighbouring lines write to different banks

  Candidate<T> rows[Tile::kRows][kRowParts + kGap];
  Candidate<T> cols[Tile::kCols][kColParts + kGap];

  __device__ Candidate<T>& of_row(const Place<Tile>& place, int a) {
    return rows[place.row(a)][4 * place.warp_col + place.t];
  }
  __device__ Candidate<T>& of_col(const Place<Tile>& place, int b) {
    return cols[place.col(b)][8 * place.warp_row + place.g];
  }

  // The hardest one of this thread's line. Call it after a barrier.
  __device__ Candidate<T> get() const {
    const int line = threadIdx.x;
    return line < Tile::kRows ? hardest(rows[line], kRowParts) : hardest(cols[line - Tile::kRows], kColParts);
  }

 private:
  __device__ static Candidate<T> hardest(const Candidate<T>* parts, int count) {
    Candidate<T> best = {kMasked<T>, INT_MAX};
    CYCLIP_UNROLL
    for (int i = 0; i < count; ++i) best.value = Largest{}(best.value, parts[i].value);
    CYCLIP_UNROLL
    for (int i = 0; i < count; ++i) {
      if (parts[i].value == best.value && parts[i].index < best.index) best.index = parts[i].index;
    }
    return best;
  }
};

template <typename Tile>
struct EpilogueStorage {
  using T = typename Tile::Accumulator;
  union {
    Candidates<Tile> candidates;
    LineScratch<Tile, T> lines;
  };
  T of_line[Tile::kRows + Tile::kCols];
  T of_warp[Tile::kThreads / kWarpSize];
};

// The largest entry of this thread's line, with its index in the matrix, or -1 if all are masked or positives.
template <typename Tile>
__device__ Candidate<typename Tile::Accumulator> hardest_of_line(EpilogueStorage<Tile>& shared,
                                                                 const Place<Tile>& place, const Window& window,
                                                                 const typename Tile::Fragment& cosines,
                                                                 uint64_t positives) {
  using T = typename Tile::Accumulator;
  const auto value_at = [&](int a, int b) { return test<Tile>(positives, a, b) ? kMasked<T> : cosines[a][b]; };
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    auto best =
        hardest_of_part<Tile::kThreadCols, T>([&](int b) { return value_at(a, b); }, &Place<Tile>::col_step);
    best.index += place.col(0);
    shared.candidates.of_row(place, a) = best;
  }
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) {
    auto best =
        hardest_of_part<Tile::kThreadRows, T>([&](int a) { return value_at(a, b); }, &Place<Tile>::row_step);
    best.index += place.row(0);
    shared.candidates.of_col(place, b) = best;
  }
  block_barrier();
  Candidate<T> best = shared.candidates.get();
  const int64_t begin = Window::owns_row<Tile>() ? window.col_begin : window.row_begin;
  best.index = best.value > kMasked<T> ? best.index + static_cast<int>(begin) : -1;
  block_barrier();  // all threads have read the scratch
  return best;
}

template <typename Tile>
__device__ typename Tile::Accumulator largest_of_thread(const typename Tile::Fragment& cosines) {
  auto largest = kMasked<typename Tile::Accumulator>;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) largest = Largest{}(largest, cosines[a][b]);
  }
  return largest;
}

// The largest of the values of all threads. Contains a barrier.
template <typename Tile, typename T>
__device__ T largest_of_tile(EpilogueStorage<Tile>& shared, T largest) {
  for (int mask = 1; mask < kWarpSize; mask *= 2) largest = Largest{}(largest, cuda::shuffle_xor(largest, mask));
  if (threadIdx.x % kWarpSize == 0) shared.of_warp[threadIdx.x / kWarpSize] = largest;
  block_barrier();
  CYCLIP_UNROLL
  for (int warp = 0; warp < Tile::kThreads / kWarpSize; ++warp) largest = Largest{}(largest, shared.of_warp[warp]);
  return largest;
}

// Sums f(a, b, exponential of the row, of the column) over the line of this thread. Contains a
// barrier.
template <typename Tile, typename Exponentials>
__device__ typename Tile::Accumulator sum_of_line(EpilogueStorage<Tile>& shared, const Place<Tile>& place,
                                                  const Exponentials& exponentials) {
  using T = typename Tile::Accumulator;
  T row_sums[Tile::kThreadRows], col_sums[Tile::kThreadCols];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) col_sums[b] = 0;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    row_sums[a] = 0;
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      const auto [of_row, of_col] = exponentials(a, b);
      row_sums[a] += of_row;
      col_sums[b] += of_col;
    }
  }
  shared.lines.put_rows(place, row_sums, Sum{});
  shared.lines.put_cols(place, col_sums, Sum{});
  block_barrier();
  return shared.lines.get(Sum{});
}

template <typename T>
struct Exponentials {
  T of_row, of_col;
};

template <typename T>
struct ShiftedSum {
  int shift;
  T sum;
};

// sum 2^(z' - shift) over the line of this thread with its own shift: two exponentials per entry.
template <typename Tile>
__device__ ShiftedSum<typename Tile::Accumulator> sum_by_line(EpilogueStorage<Tile>& shared,
                                                              const Place<Tile>& place,
                                                              const typename Tile::Fragment& cosines,
                                                              Base2Scale<typename Tile::Accumulator> scale) {
  using T = typename Tile::Accumulator;
  T rows[Tile::kThreadRows], cols[Tile::kThreadCols];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) cols[b] = kMasked<T>;
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    rows[a] = kMasked<T>;
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      rows[a] = Largest{}(rows[a], cosines[a][b]);
      cols[b] = Largest{}(cols[b], cosines[a][b]);
    }
  }
  shared.lines.put_rows(place, rows, Largest{});
  shared.lines.put_cols(place, cols, Largest{});
  block_barrier();
  const int shift = shift_of(shared.lines.get(Largest{}) * scale.hi);  // kNoShift for a masked line
  shared.of_line[threadIdx.x] = static_cast<T>(shift);
  block_barrier();
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) rows[a] = shared.of_line[place.row(a)];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) cols[b] = shared.of_line[Tile::kRows + place.col(b)];
  return {shift, sum_of_line(shared, place, [&](int a, int b) -> Exponentials<T> {
            return {exp2_scaled(cosines[a][b], scale, rows[a]), exp2_scaled(cosines[a][b], scale, cols[b])};
          })};
}

// The same with one shift for the whole tile, so that one exponential serves both sides. A line
// whose entries are all far smaller than the tile's largest would lose digits; then each line gets
// its own shift. `largest` is a value of this thread; that of all threads is the largest cosine. Only for float:
// in double, both versions together need more registers than there are.
template <typename Tile>
__device__ ShiftedSum<typename Tile::Accumulator> sum_of_tile(EpilogueStorage<Tile>& shared,
                                                              const Place<Tile>& place, const Window& window,
                                                              const typename Tile::Fragment& cosines,
                                                              Base2Scale<typename Tile::Accumulator> scale,
                                                              typename Tile::Accumulator largest) {
  using T = typename Tile::Accumulator;
  constexpr T kLeast = static_cast<T>(0x1p-90);  // a product with 2^-36 is still a normal number
  const int shift = shift_of(largest_of_tile(shared, largest) * scale.hi);
  const T of_tile = static_cast<T>(shift);
  const T sum = sum_of_line(shared, place, [&](int a, int b) -> Exponentials<T> {
    const T exponential = exp2_scaled(cosines[a][b], scale, of_tile);
    return {exponential, exponential};
  });
  const bool is_too_small = window.has_line<Tile>() && sum < kLeast;
  if (block_any(is_too_small)) return sum_by_line(shared, place, cosines, scale);
  return {shift, sum};
}

// The statistics that this tile contributes to the line of this thread.
template <bool kHardest, typename Tile, typename MaybeLabels>
__device__ Statistics<typename Tile::Accumulator> line_statistics(EpilogueStorage<Tile>& shared,
                                                                  const Place<Tile>& place, const Window& window,
                                                                  typename Tile::Fragment& cosines,
                                                                  Base2Scale<typename Tile::Accumulator> scale,
                                                                  const MaybeLabels& labels) {
  using T = typename Tile::Accumulator;
  Candidate<T> hardest = {kMasked<T>, -1};
  if constexpr (kHardest) {
    hardest = hardest_of_line(shared, place, window, cosines, more_positives<Tile>(place, window, labels));
  }
  const bool is_negative = scale.hi < 0;
  if (is_negative) {  // then the easiest negative has the largest logit
    scale = {-scale.hi, -scale.lo};
    negate_cosines<Tile>(cosines);
  }
  scale = masking_scale(scale);
  ShiftedSum<T> sum;
  if constexpr (sizeof(T) == sizeof(float)) {
    constexpr bool kMorePositives = std::is_same_v<MaybeLabels, SameLabels>;
    T largest = hardest.value;  // of the line
    if (!kHardest || kMorePositives || is_negative) largest = largest_of_thread<Tile>(cosines);
    sum = sum_of_tile(shared, place, window, cosines, scale, largest);
  } else {
    sum = sum_by_line(shared, place, cosines, scale);
  }
  return {sum.shift, static_cast<double>(sum.sum), hardest.value, hardest.index};
}

template <typename Tile, bool kHardest, typename MaybeLabels>
struct ForwardArguments {
  using T = typename Tile::Accumulator;
  RegionTiles<Tile> tiles;
  const double* logit_scale;
  Partials<T, kHardest> row_parts;  // [across][n]
  Partials<T, kHardest> col_parts;  // [down][m]
  double* positive;
  MaybeLabels labels;
};

template <typename Tile, bool kHardest, typename MaybeLabels>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    pair_statistics_forward_kernel(ForwardArguments<Tile, kHardest, MaybeLabels> args) {
  using T = typename Tile::Accumulator;
  auto& shared = dynamic_shared<RegionStorage<Tile, EpilogueStorage<Tile>>>();
  const Place<Tile> place;
  const Base2Scale<T> scale = base2_scale<T>(*args.logit_scale);
  Statistics<T> of_row;  // the row that this thread owns, if any
  args.tiles.for_each(
      shared, place, [&](int64_t row, T cosine) { args.positive[row] = static_cast<double>(cosine); },
      [&](const Window& window, typename Tile::Fragment& cosines) {
        mask_same<Tile>(cosines, place, window, args.labels, kMasked<T>);
        const auto of_tile =
            line_statistics<kHardest>(shared.epilogue, place, window, cosines, scale, args.labels);
        if (Window::owns_row<Tile>()) {
          of_row.append(of_tile);
        } else if (window.has_line<Tile>()) {
          const int64_t col = window.line<Tile>();
          Statistics<T> of_col;
          if (window.row_begin > args.tiles.regions.row_begin()) of_col = args.col_parts.load(blockIdx.y, col);
          of_col.append(of_tile);
          args.col_parts.store(blockIdx.y, col, of_col);
        }
      },
      [&](const Window& strip) {
        if (Window::owns_row<Tile>() && strip.has_line<Tile>()) {
          args.row_parts.store(blockIdx.x, strip.line<Tile>(), of_row);
        }
        of_row = {};
      });
}

// Merges the parts of each line, in order.
template <typename T, bool kHardest>
__global__ void __launch_bounds__(kMergeThreads)
    merge_statistics_forward_kernel(MergeSide<T, kHardest> rows, MergeSide<T, kHardest> cols) {
  const bool is_row = blockIdx.x < rows.blocks();
  const MergeSide<T, kHardest> side = is_row ? rows : cols;
  const int64_t line = (blockIdx.x - (is_row ? 0 : rows.blocks())) * kMergeThreads + threadIdx.x;
  if (line >= side.partials.size) return;
  constexpr int kAtOnce = 4;  // independent loads
  Statistics<T> total;
  for (int64_t first = 0; first < side.parts; first += kAtOnce) {
    Statistics<T> parts[kAtOnce];
    CYCLIP_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < side.parts) parts[i] = side.partials.load(first + i, line);
    }
    CYCLIP_UNROLL
    for (int i = 0; i < kAtOnce; ++i) total.append(parts[i]);
  }
  side.lse[line] = total.sum == 0 ? -INFINITY : kLn2 * (total.shift + log2(total.sum));
  const double hardest = total.index < 0 ? -INFINITY : static_cast<double>(total.hardest);
  const bool is_nan = kHardest && isnan(total.sum);  // comparisons ignore NaN, the sum does not
  side.hardest[line] = is_nan ? total.sum : hardest;
  side.hardest_index[line] = total.index;
}

// For rows whose positive lies outside the matrix. The tiles write the positives inside it.
__global__ void __launch_bounds__(kThreadsPerBlock) clear_positives_forward_kernel(double* positive, int64_t n) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row < n) positive[row] = 0;
}

template <bool kHardest, typename Tile, typename MaybeLabels>
Error launch_tiles(const PairStatisticsForward& args, const MaybeLabels& labels,
                   const Tower<typename Tile::Math>& image, const Tower<typename Tile::Math>& text,
                   const Context& context) {
  using T = typename Tile::Accumulator;
  const int64_t n = image.rows, m = text.rows;
  const Regions regions = Regions::of<Tile>(n, m);
  const auto row_parts = Partials<T, kHardest>::allocate(regions.across, n, context.workspace);
  const auto col_parts = Partials<T, kHardest>::allocate(regions.down, m, context.workspace);
  const RegionTiles<Tile> tiles = {
      image.by_rows(), text.by_rows(), {image.inv_norms, text.inv_norms, args.offset}, regions};
  const ForwardArguments<Tile, kHardest, MaybeLabels> arguments = {tiles,     args.logit_scale, row_parts,
                                                                   col_parts, args.positive,    labels};
  CYCLIP_TRY(launch(pair_statistics_forward_kernel<Tile, kHardest, MaybeLabels>, regions.blocks(),
                    dim3(Tile::kThreads), sizeof(RegionStorage<Tile, EpilogueStorage<Tile>>), context.stream,
                    arguments));
  return launch_merge_statistics<T, kHardest>(
      {row_parts, regions.across, args.row_lse, args.row_hardest, args.row_hardest_index},
      {col_parts, regions.down, args.col_lse, args.col_hardest, args.col_hardest_index}, context);
}

}  // namespace

template <typename T, bool kHardest>
Error launch_merge_statistics(const MergeSide<T, kHardest>& rows, const MergeSide<T, kHardest>& cols,
                              const Context& context) {
  return launch(merge_statistics_forward_kernel<T, kHardest>,
                dim3(static_cast<unsigned>(rows.blocks() + cols.blocks())), dim3(kMergeThreads), 0, context.stream,
                rows, cols);
}
template Error launch_merge_statistics(const MergeSide<float, false>&, const MergeSide<float, false>&,
                                       const Context&);
template Error launch_merge_statistics(const MergeSide<float, true>&, const MergeSide<float, true>&,
                                       const Context&);

Error launch_pair_statistics_forward(const PairStatisticsForward& args, const Context& context) {
  return with_math(args.image.type, context, [&](auto math) -> Error {
    using Math = decltype(math);
    Tower<Math> image, text;
    CYCLIP_TRY(prepare_tower(args.image, context, &image));
    CYCLIP_TRY(prepare_tower(args.text, context, &text));
    CYCLIP_TRY(launch(clear_positives_forward_kernel, blocks_for(image.rows), dim3(kThreadsPerBlock), 0,
                      context.stream, args.positive, image.rows));
    const Labels labels = {args.row_labels, args.col_labels};
    // Without the hardest negatives, further positives are entries like all others.
    const bool needs_labels = labels.rows && (args.needs_hardest || !args.same_are_positives);
    const SameLabels same = {labels, args.same_are_positives};
    if constexpr (sizeof(typename Math::Element) == 2) {
      if (uses_hopper(image.by_rows(), text.by_rows(), context)) {
        if (needs_labels) {
          return args.needs_hardest ? launch_hopper_pair_statistics<true>(args, same, image, text, context)
                                    : launch_hopper_pair_statistics<false>(args, labels, image, text, context);
        }
        return args.needs_hardest ? launch_hopper_pair_statistics<true>(args, NoLabels{}, image, text, context)
                                  : launch_hopper_pair_statistics<false>(args, NoLabels{}, image, text, context);
      }
    }
    return with_tile_or_pair<Math>(image.rows, text.rows, needs_labels, context, [&](auto shape) {
      using Tile = decltype(shape);
      if constexpr (Tile::kAcross == 1) {
        if (needs_labels) {
          return args.needs_hardest ? launch_tiles<true, Tile>(args, same, image, text, context)
                                    : launch_tiles<false, Tile>(args, labels, image, text, context);
        }
      }
      return args.needs_hardest ? launch_tiles<true, Tile>(args, NoLabels{}, image, text, context)
                                : launch_tiles<false, Tile>(args, NoLabels{}, image, text, context);
    });
  });
}

}  // namespace cyclip::cuda
