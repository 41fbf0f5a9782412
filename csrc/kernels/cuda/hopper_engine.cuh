// The tile engine of compute capability 9.0a. A block has one producer, which copies operands into a ring of
// stages, and two consumers, warpgroups that each own a whole tile. The pairs of tiles that a block processes are
// the same for the producer and both consumers; the consumers' tiles lie one below the other.
//
// Consumers of a HopperTile (128 x 128 entries) take turns: while one multiplies, the epilogue of the other runs.
// All tiles of a pair have the same number of steps, so each role knows where its next stage is in the ring.
//
// Consumers of a SharedHopperTile (64 x 256 entries) multiply the same stages at the same time, which takes fewer
// copies and fewer reads of shared memory per product. No products run during their epilogues, so this is for deep
// products.

#pragma once

#include "engine.cuh"
#include "hopper_primitives.cuh"
#include "host.h"

namespace cyclip::cuda {

template <typename Math_, Layout kLeft_ = Layout::kAlongDepth, Layout kRight_ = Layout::kAlongDepth>
struct HopperTile {
  using Math = Math_;
  using Element = typename Math::Element;
  using Accumulator = float;
  static constexpr Layout kLeft = kLeft_, kRight = kRight_;

  static constexpr int kRows = 128, kCols = 128;
  static constexpr int kConsumers = 2, kConsumerThreads = 128, kThreads = (1 + kConsumers) * kConsumerThreads;
  static constexpr int kWarps = kConsumerThreads / kWarpSize;
  static constexpr int kStages = 6, kStep = kStepBytes / static_cast<int>(sizeof(Element));
  static constexpr int kThreadRows = 4, kThreadCols = 32;
  // The accumulators of two products of 64 x 128 entries.
  using Fragment = float[kThreadRows][kThreadCols];
  static constexpr bool kTakesTurns = true;
};

template <typename Math, Layout kLeft = Layout::kAlongDepth, Layout kRight = Layout::kAlongDepth>
struct SharedHopperTile : HopperTile<Math, kLeft, kRight> {
  static constexpr int kRows = 64, kCols = 256;
  static constexpr int kStages = 4;
  static constexpr int kThreadRows = 2, kThreadCols = 64;
  using Fragment = float[kThreadRows][kThreadCols];
  static constexpr bool kTakesTurns = false;
};

// The pairs of tiles of both consumers, as one tile.
template <typename Tile>
struct HopperPair {
  static constexpr int kRows = Tile::kConsumers * Tile::kRows, kCols = Tile::kCols;
  static constexpr int kAcross = 1;
};

// The position of a thread of a consumer in its tile: that of the accumulators of wgmma.
template <typename Math, Layout kLeft, Layout kRight>
struct Place<HopperTile<Math, kLeft, kRight>> {
  int warp, g, t;

  __device__ Place() {
    const int lane = threadIdx.x % kWarpSize;
    warp = threadIdx.x / kWarpSize % 4;
    g = lane / 4;
    t = lane % 4;
  }

  __device__ int row(int a) const { return 16 * warp + g + row_step(a); }
  __device__ int col(int b) const { return 2 * t + col_step(b); }

  __device__ static constexpr int row_step(int a) { return 64 * (a / 2) + 8 * (a % 2); }
  __device__ static constexpr int col_step(int b) { return 8 * (b / 2) + b % 2; }
};
template <typename Math, Layout kLeft, Layout kRight>
struct Place<SharedHopperTile<Math, kLeft, kRight>> : Place<HopperTile<Math, kLeft, kRight>> {};

// ---------------------------------------------------------------- operands in shared memory

// One stage of one operand, 64 in depth, in the layouts of wgmma with a swizzle of 128 bytes (PTX ISA, "Shared
// Memory Matrix Layout"): along the depth, rows of 128 bytes, one for each line; across it, blocks of 64 lines
// with one row for each depth.
template <Layout kLayout, int kLines_>
struct HopperOperand {
  static constexpr int kLines = kLines_, kStep = 64, kBlockLines = 64, kBlockBytes = kBlockLines * kStep * 2;
  static constexpr bool kAlong = kLayout == Layout::kAlongDepth;

  alignas(1024) unsigned char bytes[kLines / kBlockLines * kBlockBytes];

  // Lines and depths outside of the tensor become zero. Across the depth, that may be the whole second box.
  __device__ void copy(const TensorMap& map, int line, int depth, Barrier& full) {
    if constexpr (kAlong) {
      copy_tensor_async(bytes, map, depth, line, full);
    } else {
      CYCLIP_UNROLL
      for (int block = 0; block < kLines / kBlockLines; ++block)
        copy_tensor_async(bytes + block * kBlockBytes, map, line + block * kBlockLines, depth, full);
    }
  }

  // The matrix descriptor: bits 0-13 address / 16, 16-29 the distance of blocks of 64 lines / 16 (unused along the
  // depth), 32-45 that of groups of 8 rows / 16, 62-63 the swizzle. The other functions return the change of the
  // descriptor from one block or one instruction to the next.
  __device__ uint64_t descriptor() const {
    constexpr uint64_t kGroupBytes = 1024, kBlocks = kAlong ? 1 : kBlockBytes / 16;
    return uint64_t{1} << 62 | (kGroupBytes / 16) << 32 | kBlocks << 16 | (shared_address(bytes) & 0x3FFFF) / 16;
  }
  __device__ static constexpr uint64_t next_block() { return kBlockBytes / 16; }
  __device__ static constexpr uint64_t next_depth() { return (kAlong ? 32 : 2048) / 16; }
};

template <typename Tile>
using LeftOperand = HopperOperand<Tile::kLeft, Tile::kTakesTurns ? Tile::kRows : HopperPair<Tile>::kRows>;
template <typename Tile>
using RightOperand = HopperOperand<Tile::kRight, Tile::kCols>;

template <typename Tile>
struct HopperStorage {
  struct Stage {
    LeftOperand<Tile> left;
    RightOperand<Tile> right;
  };
  Stage stages[Tile::kStages];
  Barrier full[Tile::kStages], empty[Tile::kStages];
};

// ---------------------------------------------------------------- the roles

template <typename Tile>
struct HopperRing {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void skip(int steps) {
    const int end = stage + steps;
    phase ^= (end / Tile::kStages) & 1;
    stage = end % Tile::kStages;
  }
  __device__ void next() {
    if (++stage == Tile::kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// The maps of both operands, in a __grid_constant__ parameter.
struct HopperMaps {
  TensorMap left, right;
};

inline constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

// Numbers of named barriers: those of both consumers' turns, and one for each consumer's threads.
inline constexpr int kTurnBarrier = 1, kConsumerBarrier = 3;

// Called by all threads first. Returns -1 in the producer and the number of the consumer in the others.
template <typename Tile>
__device__ inline int begin_hopper_roles(HopperStorage<Tile>& shared) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      barrier_init(shared.full[i], 1, "full", i);
      barrier_init(shared.empty[i], (Tile::kTakesTurns ? 1 : Tile::kConsumers) * Tile::kWarps, "empty", i);
    }
    barrier_init_fence();
  }
  block_barrier();
  return warpgroup_index() - 1;
}

// Copies the operands of one tile after another.
template <typename Tile>
class HopperProducer {
 public:
  __device__ HopperProducer(HopperStorage<Tile>& shared, const HopperMaps& maps)
      : shared_(shared), maps_(maps), is_active_(threadIdx.x < kWarpSize && is_elected()) {
    release_registers<kProducerRegisters>();
    if (!is_active_) return;
    prefetch_tensor_map(maps.left);
    prefetch_tensor_map(maps.right);
  }

  // Both consumers' tiles. If they take turns, the second one begins at row + 128. If that lies outside of the
  // matrix, the copies read the first one again, and the consumer does not use it.
  __device__ void copy_pair(int row, int64_t rows, int col, int depth, int steps) {
    if (!is_active_) return;
    constexpr int kTimes = Tile::kTakesTurns ? Tile::kConsumers : 1;
    CYCLIP_NO_UNROLL
    for (int i = 0; i < kTimes; ++i) {
      copy(row, col, depth, steps);
      if (row + Tile::kRows < rows) row += Tile::kRows;
    }
  }

 private:
  __device__ void copy(int row, int col, int depth, int steps) {
    CYCLIP_NO_UNROLL
    for (int step = 0; step < steps; ++step, ring_.next()) {
      auto& stage = shared_.stages[ring_.stage];
      Barrier& full = shared_.full[ring_.stage];
      barrier_wait(shared_.empty[ring_.stage], ring_.phase ^ 1);  // passes at once in the first round
      barrier_arrive_expect(full, sizeof(stage));
      stage.left.copy(maps_.left, row, depth + step * Tile::kStep, full);
      stage.right.copy(maps_.right, col, depth + step * Tile::kStep, full);
    }
  }

  HopperStorage<Tile>& shared_;
  const HopperMaps& maps_;
  HopperRing<Tile> ring_;
  bool is_active_;
};

template <bool kLeftAcross, bool kRightAcross, int kCols>
__device__ inline void wgmma(Bf16, float (&upper)[kCols], float (&lower)[kCols], uint64_t left, uint64_t right,
                             bool accumulates) {
  wgmma_bf16<kLeftAcross, kRightAcross>(upper, lower, left, right, accumulates);
}
template <bool kLeftAcross, bool kRightAcross>
__device__ inline void wgmma(F16, float (&upper)[32], float (&lower)[32], uint64_t left, uint64_t right,
                             bool accumulates) {
  wgmma_f16<kLeftAcross, kRightAcross>(upper, lower, left, right, accumulates);
}

// Multiplies one tile of each pair.
template <typename Tile>
class HopperConsumer {
 public:
  __device__ HopperConsumer(HopperStorage<Tile>& shared, int number) : shared_(shared), number_(number) {
    request_registers<kConsumerRegisters>();
    // The first turn is that of consumer 0.
    if (Tile::kTakesTurns && number_ == 1) named_barrier_arrive(kTurnBarrier, kBothConsumers);
  }

  // sums = left right'. If consumers take turns, the tiles of each are `steps` stages apart in the ring.
  __device__ void multiply(typename Tile::Fragment& sums, int steps) {
    if (Tile::kTakesTurns && number_ == 1) ring_.skip(steps);
    undefine(sums);
    wgmma_fence(sums);
    if constexpr (Tile::kTakesTurns) named_barrier(kTurnBarrier + number_, kBothConsumers);
    // Not in the loop, so that the compiler sees the accumulators as empty before it.
    multiply_stage<false>(sums);
    CYCLIP_NO_UNROLL
    for (int step = 1; step < steps; ++step) {
      const int previous = ring_.stage;
      ring_.next();
      multiply_stage<true>(sums);
      wgmma_wait<1>();  // for the previous stage
      release(previous);
    }
    if constexpr (Tile::kTakesTurns) named_barrier_arrive(kTurnBarrier + 1 - number_, kBothConsumers);
    wgmma_wait<0>();
    keep_in_registers(sums);
    release(ring_.stage);
    ring_.next();
    if (Tile::kTakesTurns && number_ == 0) ring_.skip(steps);
  }

  // A barrier of this consumer's threads.
  __device__ void barrier() const { named_barrier(kConsumerBarrier + number_, Tile::kConsumerThreads); }
  __device__ bool any(bool value) const {
    return named_barrier_any(kConsumerBarrier + number_, Tile::kConsumerThreads, value);
  }

 private:
  static constexpr int kBothConsumers = Tile::kConsumers * Tile::kConsumerThreads;

  // Starts the products of the current stage once its copies have arrived.
  template <bool kAccumulates>
  __device__ void multiply_stage(typename Tile::Fragment& sums) {
    using Left = LeftOperand<Tile>;
    using Right = RightOperand<Tile>;
    constexpr int kBlocks = Tile::kRows / Left::kBlockLines;
    const auto& stage = shared_.stages[ring_.stage];
    barrier_wait(shared_.full[ring_.stage], ring_.phase);
    wgmma_fence();
    const int first_block = Tile::kTakesTurns ? 0 : number_ * kBlocks;
    const uint64_t left = stage.left.descriptor() + first_block * Left::next_block(),
                   right = stage.right.descriptor();
    CYCLIP_UNROLL
    for (int k = 0; k < Tile::kStep / Tile::Math::kDepth; ++k) {
      CYCLIP_UNROLL
      for (int i = 0; i < kBlocks; ++i) {
        wgmma<!Left::kAlong, !Right::kAlong>(typename Tile::Math{}, sums[2 * i], sums[2 * i + 1],
                                             left + k * Left::next_depth() + i * Left::next_block(),
                                             right + k * Right::next_depth(), kAccumulates || k > 0);
      }
    }
    wgmma_commit();
  }

  // By one lane of each warp: all its products of this stage are complete.
  __device__ void release(int stage) {
    if (is_elected()) barrier_arrive(shared_.empty[stage]);
  }

  HopperStorage<Tile>& shared_;
  const int number_;
  HopperRing<Tile> ring_;
};

// ---------------------------------------------------------------- launchers

template <typename Element>
constexpr CUtensorMapDataType tensor_map_type() {
  return std::is_same_v<Element, f16> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

template <typename Stage, typename Element>
Error make_tensor_map(TensorMap* map, const Operand<Element>& operand) {
  constexpr bool along = Stage::kAlong;
  const auto lines = static_cast<uint64_t>(operand.lines), depth = static_cast<uint64_t>(operand.depth);
  const uint64_t extents[] = {along ? depth : lines, along ? lines : depth};
  const uint64_t strides[] = {static_cast<uint64_t>(operand.pitch) * sizeof(Element)};
  const uint32_t box[] = {Stage::kStep, static_cast<uint32_t>(along ? Stage::kLines : Stage::kStep)},
                 ones[] = {1, 1};
  static const EncodeTensorMap encode = find_encode_tensor_map();
  const bool is_encoded =
      encode != nullptr &&
      encode(map, tensor_map_type<Element>(), 2, const_cast<Element*>(operand.data), extents, strides, box, ones,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  return is_encoded ? kSuccess : kInvalidValue;
}

template <typename Tile>
Error make_tensor_maps(HopperMaps* maps, const Operand<typename Tile::Element>& left,
                       const Operand<typename Tile::Element>& right) {
  CYCLIP_TRY(make_tensor_map<LeftOperand<Tile>>(&maps->left, left));
  return make_tensor_map<RightOperand<Tile>>(&maps->right, right);
}

inline dim3 hopper_blocks(int64_t work, const Context& context) {
  return dim3(static_cast<unsigned>(std::min<int64_t>(work, context.hopper_blocks)));
}

}  // namespace cyclip::cuda
