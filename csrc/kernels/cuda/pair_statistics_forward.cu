// Softmax statistics of the negatives, per row and per column (docs/gradients.md).

#include "region_tiles.cuh"
#include "tower.cuh"

namespace cyclip::cuda {

namespace {

// Of some negatives of one line: sum 2^(z') = sum 2^shift, and the largest cosine with its index, the first
// of equal ones.
template <typename T>
struct Statistics {
  int shift = kNoShift;
  double sum = 0;
  T hardest = kMasked<T>;
  int index = -1;

  // Adds negatives that come after these in the line.
  __device__ void append(const Statistics& other) {
    const int common = shift > other.shift ? shift : other.shift;
    sum = ldexp(sum, shift - common) + ldexp(other.sum, other.shift - common);
    shift = common;
    if (other.hardest > hardest) {
      hardest = other.hardest;
      index = other.index;
    }
  }
};

// Partial statistics of one side of the matrix, [parts][size].
template <typename T>
struct Partials {
  int* shift;
  double* sum;
  T* hardest;
  int* index;
  int64_t size;

  static Partials allocate(int64_t parts, int64_t size, Workspace& workspace) {
    return {workspace.take<int>(parts * size), workspace.take<double>(parts * size),
            workspace.take<T>(parts * size), workspace.take<int>(parts * size), size};
  }

  __device__ Statistics<T> load(int64_t part, int64_t line) const {
    const int64_t i = part * size + line;
    return {shift[i], sum[i], hardest[i], index[i]};
  }
  // Adds what comes later in the line, or starts with it.
  __device__ void append(int64_t part, int64_t line, const Statistics<T>& later, bool is_first) const {
    Statistics<T> statistics;
    if (!is_first) statistics = load(part, line);
    statistics.append(later);
    const int64_t i = part * size + line;
    shift[i] = statistics.shift;
    sum[i] = statistics.sum;
    hardest[i] = statistics.hardest;
    index[i] = statistics.index;
  }
};

template <typename T>
struct Candidate {
  T value;
  int index;
};

// The larger one, of equal ones the first. NaN is never larger.
struct Harder {
  template <typename T>
  __device__ Candidate<T> operator()(const Candidate<T>& a, const Candidate<T>& b) const {
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
  }
};

template <typename T>
__device__ inline Candidate<T> shuffle_xor(const Candidate<T>& candidate, int mask) {
  return {cuda::shuffle_xor(candidate.value, mask), cuda::shuffle_xor(candidate.index, mask)};
}

template <typename Tile>
struct EpilogueStorage {
  using T = typename Tile::Accumulator;
  LineScratch<Tile, Candidate<T>> candidates;
  LineScratch<Tile, T> sums;
  T shifts[Tile::kRows + Tile::kCols];
};

// The largest entry of the line of this thread, with its index in the matrix, -1 if all are masked.
template <typename Tile>
__device__ Candidate<typename Tile::Accumulator> largest_of_line(EpilogueStorage<Tile>& shared,
                                                                 const Place<Tile>& place, const Window& window,
                                                                 const typename Tile::Fragment& values) {
  using T = typename Tile::Accumulator;
  const auto consider = [](Candidate<T>& best, T value, int index) {
    if (value > best.value) best = {value, index};  // indices rise
  };
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    Candidate<T> best = {kMasked<T>, -1};
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) consider(best, values[a][b], place.col(b));
    shared.candidates.put_row(place, a, best, Harder{});
  }
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) {
    Candidate<T> best = {kMasked<T>, -1};
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) consider(best, values[a][b], place.row(a));
    shared.candidates.put_col(place, b, best, Harder{});
  }
  block_barrier();
  Candidate<T> best = shared.candidates.get(Harder{});
  if (best.index >= 0)
    best.index += static_cast<int>(Window::owns_row<Tile>() ? window.col_begin : window.row_begin);
  return best;
}

// The statistics that this tile contributes to the line of this thread.
template <typename Tile>
__device__ Statistics<typename Tile::Accumulator> line_statistics(EpilogueStorage<Tile>& shared,
                                                                  const Place<Tile>& place, const Window& window,
                                                                  typename Tile::Fragment& cosines,
                                                                  Base2Scale<typename Tile::Accumulator> scale) {
  using T = typename Tile::Accumulator;
  const Candidate<T> hardest = largest_of_line(shared, place, window, cosines);
  T largest = hardest.value;
  if (scale.hi < 0) {  // then the easiest negative has the largest logit
    scale = {-scale.hi, -scale.lo};
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) {
      CYCLIP_UNROLL
      for (int b = 0; b < Tile::kThreadCols; ++b) {
        if (cosines[a][b] != kMasked<T>) cosines[a][b] = -cosines[a][b];
      }
    }
    block_barrier();  // the scratch has been read
    largest = largest_of_line(shared, place, window, cosines).value;
  }
  scale = masking_scale(scale);
  const int shift = shift_of(largest * scale.hi);  // of a masked line kNoShift
  shared.shifts[threadIdx.x] = static_cast<T>(shift);
  block_barrier();

  T col_sums[Tile::kThreadCols], col_shifts[Tile::kThreadCols];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) {
    col_sums[b] = 0;
    col_shifts[b] = shared.shifts[Tile::kRows + place.col(b)];
  }
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    T row_sum = 0;
    const T row_shift = shared.shifts[place.row(a)];
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) {
      row_sum += exp2_scaled(cosines[a][b], scale, row_shift);
      col_sums[b] += exp2_scaled(cosines[a][b], scale, col_shifts[b]);
    }
    shared.sums.put_row(place, a, row_sum, Sum{});
  }
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) shared.sums.put_col(place, b, col_sums[b], Sum{});
  block_barrier();
  return {shift, static_cast<double>(shared.sums.get(Sum{})), hardest.value, hardest.index};
}

template <typename Tile>
struct ForwardArguments {
  using T = typename Tile::Accumulator;
  RegionTiles<Tile> tiles;
  const double* logit_scale;
  Partials<T> row_parts;  // [across][n]
  Partials<T> col_parts;  // [down][m]
  double* positive;
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    pair_statistics_forward_kernel(ForwardArguments<Tile> args) {
  using T = typename Tile::Accumulator;
  auto& shared = dynamic_shared<RegionStorage<Tile, EpilogueStorage<Tile>>>();
  const Place<Tile> place;
  const Base2Scale<T> scale = base2_scale<T>(*args.logit_scale);
  args.tiles.for_each(
      shared, place, [&](int64_t row, T cosine) { args.positive[row] = static_cast<double>(cosine); },
      [&](const Window& window, typename Tile::Fragment& cosines) {
        const auto of_tile = line_statistics(shared.epilogue, place, window, cosines, scale);
        if (!window.has_line<Tile>()) return;
        const Regions& regions = args.tiles.regions;
        if (Window::owns_row<Tile>()) {
          args.row_parts.append(blockIdx.x, window.line<Tile>(), of_tile, window.col_begin == regions.col_begin());
        } else {
          args.col_parts.append(blockIdx.y, window.line<Tile>(), of_tile, window.row_begin == regions.row_begin());
        }
      },
      [](const Window&) {});
}

template <typename T>
struct MergeArguments {
  Partials<T> partials;
  int64_t parts;
  double* lse;
  double* hardest;
  int64_t* hardest_index;
};

// Merges the parts of each line, in order. Parts come in order of index, so of equal hardest negatives the
// first wins.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock) merge_statistics_forward_kernel(MergeArguments<T> args) {
  const int64_t line = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (line >= args.partials.size) return;
  Statistics<T> total;
  for (int64_t part = 0; part < args.parts; ++part) total.append(args.partials.load(part, line));
  args.lse[line] = total.sum == 0 ? -INFINITY : kLn2 * (total.shift + log2(total.sum));
  const double hardest = total.index < 0 ? -INFINITY : static_cast<double>(total.hardest);
  args.hardest[line] = isnan(total.sum) ? total.sum : hardest;  // comparisons pass over NaN, the sum does not
  args.hardest_index[line] = total.index;
}

// For rows whose positive lies outside the matrix; the tiles write those that lie in it.
__global__ void __launch_bounds__(kThreadsPerBlock) clear_positives_forward_kernel(double* positive, int64_t n) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row < n) positive[row] = 0;
}

template <typename Tile>
Error launch_tiles(const PairStatisticsForward& args, const Tower<typename Tile::Math>& image,
                   const Tower<typename Tile::Math>& text, const Context& context) {
  using T = typename Tile::Accumulator;
  const int64_t n = image.rows, m = text.rows;
  const Regions regions = Regions::of<Tile>(n, m);
  const auto row_parts = Partials<T>::allocate(regions.across, n, context.workspace);
  const auto col_parts = Partials<T>::allocate(regions.down, m, context.workspace);
  const RegionTiles<Tile> tiles = {
      image.by_rows(), text.by_rows(), {image.inv_norms, text.inv_norms, args.offset}, regions};
  CYCLIP_TRY(launch(pair_statistics_forward_kernel<Tile>, regions.blocks(), dim3(Tile::kThreads),
                    sizeof(RegionStorage<Tile, EpilogueStorage<Tile>>), context.stream,
                    ForwardArguments<Tile>{tiles, args.logit_scale, row_parts, col_parts, args.positive}));
  CYCLIP_TRY(launch(
      merge_statistics_forward_kernel<T>, blocks_for(n), dim3(kThreadsPerBlock), 0, context.stream,
      MergeArguments<T>{row_parts, regions.across, args.row_lse, args.row_hardest, args.row_hardest_index}));
  return launch(
      merge_statistics_forward_kernel<T>, blocks_for(m), dim3(kThreadsPerBlock), 0, context.stream,
      MergeArguments<T>{col_parts, regions.down, args.col_lse, args.col_hardest, args.col_hardest_index});
}

}  // namespace

Error launch_pair_statistics_forward(const PairStatisticsForward& args, const Context& context) {
  return with_math(args.image.type, context, [&](auto math) -> Error {
    using Math = decltype(math);
    Tower<Math> image, text;
    CYCLIP_TRY(prepare_tower(args.image, context, &image));
    CYCLIP_TRY(prepare_tower(args.text, context, &text));
    CYCLIP_TRY(launch(clear_positives_forward_kernel, blocks_for(image.rows), dim3(kThreadsPerBlock), 0,
                      context.stream, args.positive, image.rows));
    return with_tile<Math>(image.rows, text.rows, context,
                           [&](auto tile) { return launch_tiles<decltype(tile)>(args, image, text, context); });
  });
}

}  // namespace cyclip::cuda
