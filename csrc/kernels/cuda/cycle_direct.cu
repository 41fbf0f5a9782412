// The cycle terms by W = P M', all pairs (docs/cycle.md): W + W' = 2 (X^X^' - Y^Y^'), W' - W = 2 (S - S').

#include "cycle_factors.cuh"
#include "product.cuh"
#include "sum_pairs.cuh"

namespace cyclip::cuda {

namespace {

// Tiles of W and their mirror images across the diagonal. A block holds the entries (i, j) of one
// tile in registers and their mirror images (j, i) in shared memory, so that it reads and writes
// both by rows.
inline constexpr int kTileSize = 32;
inline constexpr int kTileWarps = kThreadsPerBlock / kWarpSize;
inline constexpr int kThreadEntries = kTileSize / kTileWarps;
static_assert(kTileSize == kWarpSize);

template <typename T>
struct MirrorTile {
  T entries[kTileSize][kTileSize + 1];  // one extra, so that columns lie in different banks as well
};

// W. Columns from n to the pitch, which is a multiple of a chunk, are counted as zero and written
// as zero.
template <typename T>
struct PairMatrix {
  T* entries;
  int64_t n, pitch;

  static PairMatrix allocate(int64_t n, Workspace& workspace) {
    const int64_t pitch = round_up(n, kChunk<T>);
    return {workspace.take<T>(n * pitch), n, pitch};
  }

  // Lines may be the rows or the columns of W.
  Operand<T> operand() const { return {entries, n, n, pitch}; }

  // Blocks above the diagonal have nothing to do: their pairs belong to the blocks below.
  dim3 blocks() const {
    const auto tiles = static_cast<unsigned>(ceil_div(n, kTileSize));
    return dim3(tiles, tiles);
  }
};

// The tile at (row_begin, col_begin), with this thread's entries (row(a), col()).
template <typename T>
struct PairTile {
  PairMatrix<T> w;
  int64_t row_begin, col_begin;
  int warp, lane;

  __device__ explicit PairTile(const PairMatrix<T>& matrix)
      : w(matrix),
        row_begin(int64_t{blockIdx.x} * kTileSize),
        col_begin(int64_t{blockIdx.y} * kTileSize),
        warp(threadIdx.x / kWarpSize),
        lane(threadIdx.x % kWarpSize) {}

  __device__ bool is_above_diagonal() const { return col_begin > row_begin; }
  __device__ bool is_on_diagonal() const { return col_begin == row_begin; }

  __device__ int local_row(int a) const { return warp + a * kTileWarps; }
  __device__ int64_t row(int a) const { return row_begin + local_row(a); }
  __device__ int64_t col() const { return col_begin + lane; }

  __device__ void load(T (&forth)[kThreadEntries], MirrorTile<T>& mirror) const {
    CYCLIP_UNROLL
    for (int a = 0; a < kThreadEntries; ++a) {
      const int64_t i = row(a), j = col_begin + local_row(a), k = row_begin + lane;
      forth[a] = i < w.n && col() < w.n ? w.entries[i * w.pitch + col()] : T{0};
      mirror.entries[local_row(a)][lane] = j < w.n && k < w.n ? w.entries[j * w.pitch + k] : T{0};
    }
  }
  // Valid after a barrier: entry (col(), row(a)).
  __device__ T& back(MirrorTile<T>& mirror, int a) const { return mirror.entries[lane][local_row(a)]; }

  __device__ void store(int64_t i, int64_t j, T value) const {
    if (i < w.n && j < w.pitch) w.entries[i * w.pitch + j] = value;
  }
};

// For each block, the sums of in-modal and cross-modal squares over its pairs.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock) cycle_pairs_forward_kernel(PairMatrix<T> w, SumPair* parts) {
  CYCLIP_SHARED(MirrorTile<T>, mirror);
  CYCLIP_SHARED(BlockSums<kThreadsPerBlock>, block_sums);
  const PairTile<T> tile(w);
  if (tile.is_above_diagonal()) return;
  T forth[kThreadEntries];
  tile.load(forth, mirror);
  block_barrier();

  double in_modal = 0, cross_modal = 0, diagonal = 0;
  CYCLIP_UNROLL
  for (int a = 0; a < kThreadEntries; ++a) {
    const double there = forth[a], back = tile.back(mirror, a);
    const double sum = there + back, difference = there - back;
    if (tile.row(a) > tile.col()) {
      in_modal += sum * sum;
      cross_modal += difference * difference;
    } else if (tile.row(a) == tile.col()) {
      diagonal += there * there;
    }
  }
  const SumPair sums = block_sum({diagonal + in_modal / 2, cross_modal / 2}, block_sums);
  if (threadIdx.x == 0) parts[int64_t{blockIdx.x} * (blockIdx.x + 1) / 2 + blockIdx.y] = sums;
}

// W becomes dL/dW.
template <typename T>
__global__ void __launch_bounds__(kThreadsPerBlock)
    cycle_pairs_backward_kernel(PairMatrix<T> w, const double* grad_in_modal_sum,
                                const double* grad_cross_modal_sum) {
  CYCLIP_SHARED(MirrorTile<T>, mirror);
  const PairTile<T> tile(w);
  if (tile.is_above_diagonal()) return;
  T forth[kThreadEntries];
  tile.load(forth, mirror);
  block_barrier();

  const double grad_in = *grad_in_modal_sum, grad_cross = *grad_cross_modal_sum;
  CYCLIP_UNROLL
  for (int a = 0; a < kThreadEntries; ++a) {
    const double there = forth[a], back = tile.back(mirror, a);
    const double sum = grad_in * (there + back), difference = grad_cross * (there - back);
    tile.store(tile.row(a), tile.col(), static_cast<T>(sum + difference));
    tile.back(mirror, a) = static_cast<T>(sum - difference);
  }
  if (tile.is_on_diagonal()) return;  // the tile is its own mirror image and is already written
  block_barrier();
  CYCLIP_UNROLL
  for (int a = 0; a < kThreadEntries; ++a) {
    tile.store(tile.col_begin + tile.local_row(a), tile.row_begin + tile.lane,
               mirror.entries[tile.local_row(a)][tile.lane]);
  }
}

// At least float, and never rounded to TF32: M is the small difference of the towers.
template <typename F>
Error with_pair_math(ElementType type, const F& f) {
  return type == ElementType::kFloat64 ? f(F64{}) : f(F32{});
}

// P and M of all rows, and W.
template <typename Math>
Error prepare_pairs(const CycleFeatures& features, const Context& context,
                    CycleFactors<typename Math::Element>* factors, PairMatrix<typename Math::Element>* w) {
  using T = typename Math::Element;
  const int64_t n = features.image.rows, d = features.image.d;
  *factors = CycleFactors<T>::allocate(n, d, context.workspace);
  *w = PairMatrix<T>::allocate(n, context.workspace);
  CYCLIP_TRY(launch_cycle_factors_forward(features, 0, *factors, context));
  return launch_product<Math, Layout::kAlongDepth, Layout::kAlongDepth>(
      {factors->plus_by_rows(), factors->minus_by_rows(), w->entries, w->pitch}, context);
}

}  // namespace

Error launch_cycle_direct_forward(const CycleDirectForward& args, const Context& context) {
  return with_pair_math(args.image.type, [&](auto math) -> Error {
    using Math = decltype(math);
    using T = typename Math::Element;
    const auto features = CycleFeatures::of(args.image, args.text, context.workspace);
    CycleFactors<T> factors;
    PairMatrix<T> w;
    CYCLIP_TRY(prepare_pairs<Math>(features, context, &factors, &w));
    const dim3 blocks = w.blocks();
    const int64_t count = int64_t{blocks.x} * (blocks.x + 1) / 2;
    SumPair* parts = context.workspace.template take<SumPair>(count);
    CYCLIP_TRY(launch(cycle_pairs_forward_kernel<T>, blocks, dim3(kThreadsPerBlock), 0, context.stream, w, parts));
    return launch_sum_pairs(parts, count, /*accumulate=*/false, args.in_modal_sum, args.cross_modal_sum, context);
  });
}

// dL/dW = g_in (W + W') + g_cross (W - W'), then dL/dP = dL/dW M and dL/dM = (dL/dW)' P.
Error launch_cycle_direct_backward(const CycleDirectBackward& args, const Context& context) {
  return with_pair_math(args.image.type, [&](auto math) -> Error {
    using Math = decltype(math);
    using T = typename Math::Element;
    const auto features = CycleFeatures::of(args.image, args.text, context.workspace);
    CycleFactors<T> factors;
    PairMatrix<T> w;
    CYCLIP_TRY(prepare_pairs<Math>(features, context, &factors, &w));
    CYCLIP_TRY(launch(cycle_pairs_backward_kernel<T>, w.blocks(), dim3(kThreadsPerBlock), 0, context.stream, w,
                      args.grad_in_modal_sum, args.grad_cross_modal_sum));
    const auto gradients = CycleFactors<T>::allocate(factors.rows, factors.d, context.workspace);
    CYCLIP_TRY((launch_product<Math, Layout::kAlongDepth, Layout::kAcrossDepth>(
        {w.operand(), factors.minus_by_columns(), gradients.plus, gradients.pitch}, context)));
    CYCLIP_TRY((launch_product<Math, Layout::kAcrossDepth, Layout::kAcrossDepth>(
        {w.operand(), factors.plus_by_columns(), gradients.minus, gradients.pitch}, context)));
    return launch_cycle_factors_backward(features, 0, gradients, args.image_grad, args.text_grad, context);
  });
}

}  // namespace cyclip::cuda
