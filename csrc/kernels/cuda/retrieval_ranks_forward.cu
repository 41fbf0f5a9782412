// Retrieval ranks in both directions, in two passes over the tiles: the first finds the best own
// entry of each line, the second counts the foreign entries that reach it. Both passes compute
// bit-identical cosines, so ties are exact.

#include "labels.cuh"
#include "region_tiles.cuh"
#include "tower.cuh"

namespace cyclip::cuda {

namespace {

// The first pass. NaN is the maximum of no entries.
template <typename T>
struct OwnBest {
  using Result = T;
  struct Line {};

  static constexpr Result kNothing = static_cast<T>(NAN);

  __device__ Line row(const Window&, int) const { return {}; }
  __device__ Line col(const Window&, int) const { return {}; }
  __device__ uint64_t entries(uint64_t own) const { return own; }
  __device__ Result value(T cosine, const Line&) const { return cosine; }
  __device__ Result operator()(Result a, Result b) const { return fmax(a, b); }  // fmax(NaN, b) is b
};

// The second pass. No entry reaches a best entry that is NaN.
template <typename T>
struct ForeignCount {
  using Result = int;
  using Line = T;  // the best own entry of the line

  const T* row_best;
  const T* col_best;

  static constexpr Result kNothing = 0;

  __device__ Line row(const Window& window, int row) const { return window.of_row(row_best, row); }
  __device__ Line col(const Window& window, int col) const { return window.of_col(col_best, col); }
  __device__ uint64_t entries(uint64_t own) const { return ~own; }
  __device__ Result value(T cosine, const Line& best) const { return cosine >= best; }
  __device__ Result operator()(Result a, Result b) const { return a + b; }
};

// The result of this thread's line over these entries of the tile.
template <typename Tile, typename Pass>
__device__ typename Pass::Result line_result(LineScratch<Tile, typename Pass::Result>& scratch,
                                             const Place<Tile>& place, const Window& window,
                                             const typename Tile::Fragment& cosines, uint64_t entries,
                                             const Pass& pass) {
  const auto value = [&](int a, int b, const typename Pass::Line& line) {
    const auto cosine = comparable(cosines[a][b]);
    const bool counts = test<Tile>(entries, a, b) && cosine != kMasked<typename Tile::Accumulator>;
    return counts ? pass.value(cosine, line) : Pass::kNothing;
  };
  // Rows first, then columns: both together would need more registers than there are.
  typename Pass::Result rows[Tile::kThreadRows];
  CYCLIP_UNROLL
  for (int a = 0; a < Tile::kThreadRows; ++a) {
    rows[a] = Pass::kNothing;
    const auto row = pass.row(window, place.row(a));
    CYCLIP_UNROLL
    for (int b = 0; b < Tile::kThreadCols; ++b) rows[a] = pass(rows[a], value(a, b, row));
  }
  scratch.put_rows(place, rows, pass);
  typename Pass::Result cols[Tile::kThreadCols];
  CYCLIP_UNROLL
  for (int b = 0; b < Tile::kThreadCols; ++b) {
    cols[b] = Pass::kNothing;
    const auto col = pass.col(window, place.col(b));
    CYCLIP_UNROLL
    for (int a = 0; a < Tile::kThreadRows; ++a) cols[b] = pass(cols[b], value(a, b, col));
  }
  scratch.put_cols(place, cols, pass);
  block_barrier();
  return scratch.get(pass);
}

template <typename Tile, typename Pass>
struct PassArguments {
  using Result = typename Pass::Result;
  RegionTiles<Tile> tiles;
  Labels labels;
  Pass pass;
  Result* row_parts;  // [across][n]
  Result* col_parts;  // [down][m]
};

template <typename Tile, typename Pass>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    retrieval_ranks_forward_kernel(PassArguments<Tile, Pass> args) {
  using Result = typename Pass::Result;
  auto& shared = dynamic_shared<RegionStorage<Tile, LineScratch<Tile, Result>>>();
  const Place<Tile> place;
  const Pass& pass = args.pass;
  Result of_row = Pass::kNothing;  // the row that this thread owns, if any
  args.tiles.for_each(
      shared, place, IgnorePositives{},
      [&](const Window& window, const typename Tile::Fragment& cosines) {
        const uint64_t entries = pass.entries(same_entries(place, window, args.labels));
        const Result of_tile = line_result(shared.epilogue, place, window, cosines, entries, pass);
        if (Window::owns_row<Tile>()) {
          of_row = pass(of_row, of_tile);
        } else if (window.has_line<Tile>()) {
          Result& of_col = args.col_parts[blockIdx.y * window.cols + window.line<Tile>()];
          const bool is_first = window.row_begin == args.tiles.regions.row_begin();
          of_col = is_first ? of_tile : pass(of_col, of_tile);
        }
      },
      [&](const Window& strip) {
        if (Window::owns_row<Tile>() && strip.has_line<Tile>()) {
          args.row_parts[blockIdx.x * strip.rows + strip.line<Tile>()] = of_row;
        }
        of_row = Pass::kNothing;
      });
}

// Merges the parts of each line.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    merge_own_best_forward_kernel(const T* partial, int64_t parts, int64_t size, T* best) {
  const int64_t line = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (line >= size) return;
  T total = OwnBest<T>::kNothing;
  for (int64_t part = 0; part < parts; ++part) total = fmax(total, partial[part * size + line]);
  best[line] = total;
}

template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    merge_ranks_forward_kernel(const int* counts, int64_t parts, int64_t size, const T* best, int64_t* rank) {
  const int64_t line = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (line >= size) return;
  int64_t total = 0;
  for (int64_t part = 0; part < parts; ++part) total += counts[part * size + line];
  rank[line] = isnan(best[line]) ? -1 : total;
}

template <typename Tile>
Error launch_passes(const RetrievalRanksForward& args, const Tower<typename Tile::Math>& image,
                    const Tower<typename Tile::Math>& text, const Context& context) {
  using T = typename Tile::Accumulator;
  const int64_t n = image.rows, m = text.rows;
  const Regions regions = Regions::of<Tile>(n, m);
  const RegionTiles<Tile> tiles = {
      image.by_rows(), text.by_rows(), {image.inv_norms, text.inv_norms, kNoPositives}, regions};
  const auto run_pass = [&](const auto& pass, auto* row_parts, auto* col_parts) {
    using Pass = std::decay_t<decltype(pass)>;
    return launch(
        retrieval_ranks_forward_kernel<Tile, Pass>, regions.blocks(), dim3(Tile::kThreads),
        sizeof(RegionStorage<Tile, LineScratch<Tile, typename Pass::Result>>), context.stream,
        PassArguments<Tile, Pass>{tiles, {args.image_labels, args.text_labels}, pass, row_parts, col_parts});
  };
  const auto merge = [&](auto* kernel, int64_t size, const auto&... arguments) {
    return launch(kernel, blocks_for(size), dim3(kThreadsPerBlock), 0, context.stream, arguments...);
  };
  Workspace& workspace = context.workspace;

  T* row_best_parts = workspace.take<T>(regions.across * n);
  T* col_best_parts = workspace.take<T>(regions.down * m);
  CYCLIP_TRY(run_pass(OwnBest<T>{}, row_best_parts, col_best_parts));
  T* row_best = workspace.take<T>(n);
  T* col_best = workspace.take<T>(m);
  CYCLIP_TRY(merge(merge_own_best_forward_kernel<T>, n, row_best_parts, regions.across, n, row_best));
  CYCLIP_TRY(merge(merge_own_best_forward_kernel<T>, m, col_best_parts, regions.down, m, col_best));

  int* row_counts = workspace.take<int>(regions.across * n);
  int* col_counts = workspace.take<int>(regions.down * m);
  CYCLIP_TRY(run_pass(ForeignCount<T>{row_best, col_best}, row_counts, col_counts));
  CYCLIP_TRY(merge(merge_ranks_forward_kernel<T>, n, row_counts, regions.across, n, row_best, args.row_rank));
  return merge(merge_ranks_forward_kernel<T>, m, col_counts, regions.down, m, col_best, args.col_rank);
}

}  // namespace

Error launch_retrieval_ranks_forward(const RetrievalRanksForward& args, const Context& context) {
  return with_math(args.image.type, context, [&](auto math) -> Error {
    using Math = decltype(math);
    Tower<Math> image, text;
    CYCLIP_TRY(prepare_tower(args.image, context, &image));
    CYCLIP_TRY(prepare_tower(args.text, context, &text));
    return with_tile<Math>(image.rows, text.rows, context,
                           [&](auto shape) { return launch_passes<decltype(shape)>(args, image, text, context); });
  });
}

}  // namespace cyclip::cuda
