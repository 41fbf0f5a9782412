// The k most similar candidates of each query: a sorted list per row and region, then one merge per row.

#include "region_tiles.cuh"
#include "tower.cuh"

namespace cyclip::cuda {

namespace {

// A small number, so that the lists can be merged in registers.
inline constexpr int kMostLists = 8;

// The most similar candidates of each row in one region, sorted; the first of several equal
// candidates comes first. Equal positions of neighbouring rows are adjacent in memory, because
// neighbouring threads process these rows.
template <typename T>
struct Lists {
  T* values;  // [regions][capacity][rows]
  int* indices;
  int64_t rows, capacity;
  int64_t region_cols, cols;  // columns of a region and of the matrix

  // A list is never longer than its region is wide, so all lists of a row together take at most as
  // much memory as a row of the matrix, or 8 k entries if that is less.
  static Lists allocate(const Regions& regions, int64_t rows, int64_t cols, int64_t k, Workspace& workspace) {
    const int64_t capacity = std::min(k, regions.cols), places = regions.across * rows * capacity;
    return {workspace.take<T>(places), workspace.take<int>(places), rows, capacity, regions.cols, cols};
  }

  __device__ int64_t at(int64_t region, int64_t row, int64_t place = 0) const {
    return (region * capacity + place) * rows + row;
  }

  // The length of a region's list after the whole region was read; 0 or less if there is no such
  // region.
  __device__ int64_t length(int64_t region) const {
    const int64_t left = cols - region * region_cols;
    return left < capacity ? left : capacity;
  }
};

// Inserts a candidate that follows all others into the sorted entries before `place`, and moves the
// entries after it up. Entries are `pitch` apart.
template <typename T>
__device__ void insert(T value, int index, int64_t place, int64_t pitch, T* values, int* indices) {
  int64_t to = place * pitch;
  for (; to > 0 && value > values[to - pitch]; to -= pitch) {
    values[to] = values[to - pitch];
    indices[to] = indices[to - pitch];
  }
  values[to] = value;
  indices[to] = index;
}

// A tile by rows. Columns are swizzled to avoid bank conflicts, both for the stores of a warp's
// fragments (8 rows, every second of 8 columns) and for threads that each read a row.
template <typename Tile>
struct TileRows {
  using T = typename Tile::Accumulator;

  T cosines[Tile::kRows][Tile::kCols];

  __device__ T& at(int row, int col) { return cosines[row][col ^ swizzle(row)]; }
  // The bits of row % 32 in another order: those of a fragment's row, 0 to 7, do not use the bits 1
  // and 2.
  __device__ static int swizzle(int row) { return (row & 1) | (row & 6) << 2 | (row & 24) >> 2; }
};

// Processes one row of a tile on one thread, in order. `seen` is the number of earlier candidates
// of the region.
template <typename Tile, typename T>
__device__ void scan_row(TileRows<Tile>& tile, int row, int64_t count, int64_t col_begin, int64_t seen,
                         const Lists<T>& lists, int64_t list) {
  T* values = lists.values + list;
  int* indices = lists.indices + list;
  const int64_t capacity = lists.capacity, last = (capacity - 1) * lists.rows;
  T least = seen >= capacity ? values[last] : T{0};
  for (int col = 0; col < count; ++col) {
    const int64_t listed = seen + col;
    const T value = tile.at(row, col);
    if (listed >= capacity && value <= least) continue;  // true for most candidates
    insert(value, static_cast<int>(col_begin + col), listed < capacity ? listed : capacity - 1, lists.rows, values,
           indices);
    if (listed + 1 >= capacity) least = values[last];
  }
}

template <typename Tile>
struct TopKArguments {
  RegionTiles<Tile> tiles;
  Lists<typename Tile::Accumulator> lists;
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    similarity_top_k_forward_kernel(TopKArguments<Tile> args) {
  auto& shared = dynamic_shared<RegionStorage<Tile, TileRows<Tile>>>();
  const Place<Tile> place;
  const auto& lists = args.lists;
  args.tiles.for_each(
      shared, place, IgnorePositives{},
      [&](const Window& window, const typename Tile::Fragment& cosines) {
        CYCLIP_UNROLL
        for (int a = 0; a < Tile::kThreadRows; ++a) {
          CYCLIP_UNROLL
          for (int b = 0; b < Tile::kThreadCols; ++b) {
            shared.epilogue.at(place.row(a), place.col(b)) = comparable(cosines[a][b]);
          }
        }
        block_barrier();
        if (!Window::owns_row<Tile>() || !window.has_line<Tile>()) return;
        const int64_t left = window.cols - window.col_begin,
                      seen = window.col_begin - args.tiles.regions.col_begin();
        scan_row(shared.epilogue, threadIdx.x, left < Tile::kCols ? left : int64_t{Tile::kCols}, window.col_begin,
                 seen, lists, lists.at(blockIdx.x, window.line<Tile>()));
      },
      [](const Window&) {});
}

// If heads are equal, the first list's is taken, because its candidates come first.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    merge_lists_forward_kernel(Lists<T> lists, int64_t k, double* values, int64_t* indices) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= lists.rows) return;
  T heads[kMostLists];  // the next candidate of each list
  int64_t taken[kMostLists];
  CYCLIP_UNROLL
  for (int list = 0; list < kMostLists; ++list) {
    taken[list] = 0;
    heads[list] = lists.length(list) > 0 ? lists.values[lists.at(list, row)] : T{0};
  }
  for (int64_t place = 0; place < k; ++place) {
    int best = -1;
    T largest = 0;
    CYCLIP_UNROLL
    for (int list = 0; list < kMostLists; ++list) {
      if (taken[list] < lists.length(list) && (best < 0 || heads[list] > largest)) {
        best = list;
        largest = heads[list];
      }
    }
    values[row * k + place] = static_cast<double>(largest);
    CYCLIP_UNROLL
    for (int list = 0; list < kMostLists; ++list) {  // unrolled: registers cannot be indexed
      if (list != best) continue;
      indices[row * k + place] = lists.indices[lists.at(list, row, taken[list]++)];
      if (taken[list] < lists.length(list)) heads[list] = lists.values[lists.at(list, row, taken[list])];
    }
  }
}

}  // namespace

// Only small tiles: the scan by rows takes most of the time, and small tiles give it more threads.
Error launch_similarity_top_k_forward(const SimilarityTopKForward& args, const Context& context) {
  return with_math(args.query.type, context, [&](auto math) -> Error {
    using Math = decltype(math);
    using T = typename Math::Accumulator;
    using Tile = SmallTile<Math>;
    Tower<Math> query, candidate;
    CYCLIP_TRY(prepare_tower(args.query, context, &query));
    CYCLIP_TRY(prepare_tower(args.candidate, context, &candidate));
    const int64_t n = query.rows, m = candidate.rows;
    const Regions regions = Regions::of<Tile>(n, m, kMostLists);
    const auto lists = Lists<T>::allocate(regions, n, m, args.k, context.workspace);
    const RegionTiles<Tile> tiles = {
        query.by_rows(), candidate.by_rows(), {query.inv_norms, candidate.inv_norms, kNoPositives}, regions};
    CYCLIP_TRY(launch(similarity_top_k_forward_kernel<Tile>, regions.blocks(), dim3(Tile::kThreads),
                      sizeof(RegionStorage<Tile, TileRows<Tile>>), context.stream,
                      TopKArguments<Tile>{tiles, lists}));
    return launch(merge_lists_forward_kernel<T>, blocks_for(n), dim3(kThreadsPerBlock), 0, context.stream, lists,
                  args.k, args.values, args.indices);
  });
}

}  // namespace cyclip::cuda
