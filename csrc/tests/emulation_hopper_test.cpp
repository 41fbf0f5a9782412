// The emulator executes kernels with mbarriers, bulk tensor copies and wgmma, and reports misuse. The kernel of
// the planted faults has the structure of kernels/cuda/hopper_engine.cuh: one producer, two consumers that take
// turns.

#include <cstdlib>
#include <random>

#include "emulation_check.h"
#include "kernels/cuda/hopper_primitives.cuh"

namespace cyclip::test {

namespace {

using namespace cyclip::cuda;

// ---------------------------------------------------------------- a product with planted faults

enum class Fault {  // with its number in README.md
  kNone,
  kProducerParity,        // 1: waits for the phase that consumers end
  kFewBytes,              // 2: expects one box of the two
  kManyBytes,             // 3
  kEarlyRelease,          // 4: releases a stage before wgmma.wait_group
  kNoFullWait,            // 5
  kReadBeforeWait,        // 6
  kNoRegisterFence,       // 7: after the accumulators were scaled
  kLongStep,              // 8: 64 bytes from one k16 to the next
  kMisalignedStage,       // 9: 512 bytes
  kShortStride,           // 10: 512 bytes between groups of 8 lines
  kMapWithoutSwizzle,     // 11
  kExchangedCoordinates,  // 12
  kSkipWithoutFlip,       // 13
  kNoFirstTurn,           // 14
  kTwoFirstTurns,         // 14
  kScratchWithoutFence,   // 15
  kManyRegisters,         // 16: 248
  kBlockBarrier,          // 17: after the roles split
  kAddsToLastTile,        // 18
  kOtherDescriptor,       // 19: in one warp
  kSharedScratch,         // 20
  kLateOverwrite,         // a generic write to an operand of a pending wgmma
  kNoInitFence,
  kInitFenceOfOther,  // by another thread than the initialization
  kFewArrivals,       // a stage is empty after one warp of four
  kSharedBarrier,     // both consumers use one barrier for their epilogues
};

constexpr int kTile = 128, kStep = 64, kStages = 3, kOperandBytes = kTile * kStep * 2;

struct Stage {
  alignas(1024) unsigned char left[kOperandBytes], right[kOperandBytes];
};
struct Storage {
  Stage stages[kStages];
  float scratch[2][4][kTile];
  Barrier full[kStages], empty[kStages];
};

struct Arguments {
  TensorMap left, right;
  float* products;  // [rows, cols], halved
  float* col_sums;  // [rows / 128, cols], of the halved products
  int rows, cols, depth;
  Fault fault;
  bool scratch_in_stage;
};

struct Ring {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void skip(int steps, bool flips = true) {
    const int end = stage + steps;
    if (flips) phase ^= end / kStages & 1;
    stage = end % kStages;
  }
};

__device__ uint64_t descriptor(const void* operand, uint64_t stride = 1024) {
  return uint64_t{1} << 62 | stride >> 4 << 32 | uint64_t{1} << 16 | (shared_address(operand) & 0x3FFFF) >> 4;
}

__global__ void __launch_bounds__(384, 1) product_kernel(const __grid_constant__ Arguments args) {
  const auto has = [&](Fault fault) { return args.fault == fault; };
  auto& shared = aligned_dynamic_shared<Storage>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared.full[i], 1, "full", i);
      barrier_init(shared.empty[i], has(Fault::kFewArrivals) ? 1 : 4, "empty", i);
    }
    if (!has(Fault::kNoInitFence) && !has(Fault::kInitFenceOfOther)) barrier_init_fence();
  }
  if (has(Fault::kInitFenceOfOther) && threadIdx.x == 1) barrier_init_fence();
  block_barrier();
  const int steps = args.depth / kStep, across = args.cols / kTile, tiles = args.rows / kTile * across;
  const auto operand = [&](int stage, bool is_left) {
    unsigned char* const at = is_left ? shared.stages[stage].left : shared.stages[stage].right;
    return at + (has(Fault::kMisalignedStage) ? 512 : 0);
  };
  const int group = warpgroup_index();

  if (group == 0) {
    release_registers<24>();
    if (has(Fault::kBlockBarrier)) block_barrier();
    if (threadIdx.x / kWarpSize != 0 || !is_elected()) return;
    Ring ring;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      for (int step = 0; step < steps; ++step, ring.skip(1)) {
        barrier_wait(shared.empty[ring.stage], has(Fault::kProducerParity) ? ring.phase : ring.phase ^ 1);
        const int boxes = has(Fault::kFewBytes) ? 1 : has(Fault::kManyBytes) ? 3 : 2;
        Barrier& full = shared.full[ring.stage];
        barrier_arrive_expect(full, boxes * kOperandBytes);
        const int row = tile / across * kTile, col = tile % across * kTile, depth = step * kStep;
        const bool exchanged = has(Fault::kExchangedCoordinates);
        copy_tensor_async(operand(ring.stage, true), args.left, exchanged ? row : depth, exchanged ? depth : row,
                          full);
        copy_tensor_async(operand(ring.stage, false), args.right, depth, col, full);
      }
    }
    return;
  }

  request_registers<240>();
  const int consumer = group - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int own_barrier = 3 + (has(Fault::kSharedBarrier) ? 0 : consumer);
  const bool scratch_in_stage = args.scratch_in_stage || has(Fault::kScratchWithoutFence);
  if (has(Fault::kManyRegisters)) request_registers<248>();
  if (has(Fault::kBlockBarrier)) block_barrier();
  Ring ring;
  float sums[4][32];
  undefine(sums);
  if (consumer == 1) {
    if (!has(Fault::kNoFirstTurn)) named_barrier_arrive(1, 256);
    if (has(Fault::kTwoFirstTurns)) named_barrier_arrive(1, 256);
    ring.skip(steps, !has(Fault::kSkipWithoutFlip));
  }
  for (int tile = blockIdx.x + consumer * gridDim.x; tile < tiles; tile += 2 * gridDim.x) {
    if (!has(Fault::kNoRegisterFence) || tile == static_cast<int>(blockIdx.x + consumer * gridDim.x))
      wgmma_fence(sums);
    named_barrier(1 + consumer, 256);
    int last = 0;
    for (int step = 0; step < steps; ++step, ring.skip(1)) {
      if (!has(Fault::kNoFullWait)) barrier_wait(shared.full[ring.stage], ring.phase);
      for (int k = 0; k < kStep / 16; ++k) {
        for (int i = 0; i < 2; ++i) {
          const auto stride = has(Fault::kShortStride) ? 512 : 1024;
          const uint64_t advance = k * (has(Fault::kLongStep) ? 64 : 32) >> 4;
          const bool other = has(Fault::kOtherDescriptor) && warp == 2;
          const bool accumulates = step > 0 || k > 0 || has(Fault::kAddsToLastTile);
          wgmma_bf16<false, false>(
              sums[2 * i], sums[2 * i + 1], descriptor(operand(ring.stage, true) + 8192 * i, stride) + advance,
              descriptor(operand(ring.stage, false), stride) + advance + (other ? 2 : 0), accumulates);
        }
      }
      wgmma_commit();
      if (has(Fault::kEarlyRelease) && is_elected()) barrier_arrive(shared.empty[ring.stage]);
      wgmma_wait<1>();
      if (step > 0 && !has(Fault::kEarlyRelease) && is_elected()) barrier_arrive(shared.empty[last]);
      last = ring.stage;
    }
    named_barrier_arrive(2 - consumer, 256);
    if (has(Fault::kLateOverwrite)) operand(last, true)[thread] = 1;
    if (!has(Fault::kReadBeforeWait)) wgmma_wait<0>();
    const auto release_last = [&] {
      if (!has(Fault::kEarlyRelease) && is_elected()) barrier_arrive(shared.empty[last]);
    };
    if (!scratch_in_stage && !has(Fault::kReadBeforeWait)) release_last();
    ring.skip(steps, !has(Fault::kSkipWithoutFlip));

    // The epilogue scales, stores and adds up the columns.
    float cols[32];
    for (int b = 0; b < 32; ++b) cols[b] = 0;
    const int row_begin = tile / across * kTile, col_begin = tile % across * kTile;
    for (int a = 0; a < 4; ++a) {
      const int row = row_begin + 64 * (a / 2) + 16 * warp + 8 * (a % 2) + lane / 4;
      for (int b = 0; b < 32; ++b) {
        sums[a][b] *= 0.5f;
        cols[b] += sums[a][b];
        args.products[row * args.cols + col_begin + 8 * (b / 2) + 2 * (lane % 4) + b % 2] = sums[a][b];
      }
    }
    if (has(Fault::kReadBeforeWait)) {
      wgmma_wait<0>();
      release_last();
    }
    if (scratch_in_stage) named_barrier(own_barrier, 128);  // all warps have read the stage
    auto& scratch = scratch_in_stage ? *reinterpret_cast<float (*)[4][kTile]>(operand(last, true))
                                     : shared.scratch[has(Fault::kSharedScratch) ? 0 : consumer];
    for (int b = 0; b < 32; ++b) {
      for (int mask = 4; mask < 32; mask *= 2) cols[b] += shuffle_xor(cols[b], mask);
      if (lane / 4 == 0) scratch[warp][8 * (b / 2) + 2 * lane + b % 2] = cols[b];
    }
    named_barrier(own_barrier, 128);
    float sum = 0;
    for (int w = 0; w < 4; ++w) sum += scratch[w][thread];
    args.col_sums[row_begin / kTile * args.cols + col_begin + thread] = sum;
    if (scratch_in_stage && !has(Fault::kScratchWithoutFence)) proxy_fence();
    named_barrier(own_barrier, 128);
    if (scratch_in_stage) release_last();
  }
}

struct Problem {
  int rows, cols, depth;
  int blocks;
  std::vector<uint16_t> left, right;
  std::vector<float> products, col_sums;

  Problem(int rows, int cols, int depth, int blocks)
      : rows(rows),
        cols(cols),
        depth(depth),
        blocks(blocks),
        left(integers(rows, 1)),
        right(integers(cols, 2)),
        products(rows * cols),
        col_sums(rows / kTile * cols) {
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < cols; ++j) {
        float sum = 0;
        for (int k = 0; k < depth; ++k) {
          sum += emulation::bf16_to_float(left[i * depth + k]) * emulation::bf16_to_float(right[j * depth + k]);
        }
        products[i * cols + j] = sum / 2;
        col_sums[i / kTile * cols + j] += sum / 2;
      }
    }
  }

  std::vector<uint16_t> integers(int lines, unsigned seed) const {
    std::mt19937 random(seed);
    std::vector<uint16_t> bits(static_cast<size_t>(lines) * depth + 8);
    for (uint16_t& entry : bits) entry = float_to_bf16_bits(static_cast<float>(random() % 9) - 4);
    return bits;
  }
};

TensorMap map_of(const std::vector<uint16_t>& matrix, int lines, int depth, bool has_swizzle = true) {
  TensorMap map;
  const uint64_t extents[] = {static_cast<uint64_t>(depth), static_cast<uint64_t>(lines)};
  const uint64_t strides[] = {static_cast<uint64_t>(depth) * 2};
  const uint32_t box[] = {kStep, kTile}, ones[] = {1, 1};
  const auto result = cuTensorMapEncodeTiled(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<uint16_t*>(matrix.data()), extents, strides, box, ones,
      CU_TENSOR_MAP_INTERLEAVE_NONE, has_swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "a tensor map is encoded");
  return map;
}

// Runs the kernel; true if its results are right.
bool run(const Problem& problem, Fault fault, bool scratch_in_stage = false) {
  std::vector<float> products(problem.products.size(), NAN), col_sums(problem.col_sums.size(), NAN);
  Arguments args{map_of(problem.left, problem.rows, problem.depth, fault != Fault::kMapWithoutSwizzle),
                 map_of(problem.right, problem.cols, problem.depth),
                 products.data(),
                 col_sums.data(),
                 problem.rows,
                 problem.cols,
                 problem.depth,
                 fault,
                 scratch_in_stage};
  launch_hopper(product_kernel, dim3(problem.blocks), dim3(384), sizeof(Storage), nullptr, args);
  return products == problem.products && col_sums == problem.col_sums;
}

void test_product() {
  // One tile for each consumer; several; only one consumer has a tile; steps beyond the ring.
  for (const Problem& problem : {Problem(128, 256, 256, 1), Problem(384, 128, 320, 2), Problem(128, 128, 64, 1)}) {
    for (const bool scratch_in_stage : {false, true}) {
      for (const bool is_right : in_all_orders([&] { return run(problem, Fault::kNone, scratch_in_stage); }))
        check(is_right, "the product is exact in every order");
    }
  }
}

// In at least one order the fault must end the launch with a message that contains `part`, or, if that is
// kWrongResults, must change the results.
constexpr const char* kWrongResults = "wrong results";

void expect_fault(Fault fault, const std::string& name, const std::string& part) {
  static const Problem problem(256, 256, 320, 1);  // 5 steps, more than stages and not a multiple of them
  std::string seen;
  bool is_reported = false;
  for (const NamedOrder& order : orders()) {
    emulation::set_order(order.order, order.seed);
    std::string outcome = "right results";
    try {
      if (!run(problem, fault)) outcome = kWrongResults;
    } catch (const std::runtime_error& error) {
      outcome = error.what();
    }
    seen += "\n  " + outcome;
    is_reported = std::strstr(outcome.c_str(), part.c_str()) != nullptr;
    if (is_reported) break;
  }
  emulation::set_order(emulation::Order::kAscending);
  check(is_reported, name + ": expected '" + part + "', got" + seen);
}

void test_planted_faults() {
  expect_fault(Fault::kProducerParity, "producer parity", "mbarrier empty[0]: phase 0, 4 of 4 arrivals");
  expect_fault(Fault::kFewBytes, "few bytes", "is read before its copy has arrived");
  expect_fault(Fault::kManyBytes, "many bytes", "mbarrier full[0]: phase 0, 0 of 1 arrivals and 16384 bytes");
  expect_fault(Fault::kEarlyRelease, "early release", "an operand of a wgmma that is not complete");
  expect_fault(Fault::kNoFullWait, "no full wait", "is read before its copy has arrived");
  expect_fault(Fault::kReadBeforeWait, "accumulators before the wait", kWrongResults);
  expect_fault(Fault::kNoRegisterFence, "no wgmma.fence", "changed after the last wgmma.fence");
  expect_fault(Fault::kLongStep, "k16 steps of 64 bytes", "with base offset 0");
  expect_fault(Fault::kMisalignedStage, "stage on 512 bytes", "with base offset 0");
  expect_fault(Fault::kShortStride, "stride of 512", "must be multiples of the swizzle pattern");
  expect_fault(Fault::kMapWithoutSwizzle, "map without swizzle", "of the tensor; expected");
  expect_fault(Fault::kExchangedCoordinates, "coordinates exchanged", "of the right one");
  expect_fault(Fault::kSkipWithoutFlip, "skip without flip", "is read before its copy has arrived");
  expect_fault(Fault::kNoFirstTurn, "no first turn", "named barrier 1: 128 of 256 threads");
  expect_fault(Fault::kTwoFirstTurns, "two first turns", "arrives twice at the named barrier 1");
  expect_fault(Fault::kScratchWithoutFence, "scratch without proxy fence", "accessed without a fence.proxy.async");
  expect_fault(Fault::kManyRegisters, "248 registers", "wait for setmaxnreg to 240 registers; 16 are free");
  expect_fault(Fault::kBlockBarrier, "barrier of the block", "barrier, while other threads of the block wait");
  expect_fault(Fault::kAddsToLastTile, "scale-d of the first step", kWrongResults);
  expect_fault(Fault::kOtherDescriptor, "descriptor of one warp", "differs from that of another warp");
  expect_fault(Fault::kSharedScratch, "shared scratch", kWrongResults);
  expect_fault(Fault::kLateOverwrite, "overwritten operand", "an operand changed before this wgmma was complete");
  expect_fault(Fault::kNoInitFence, "no fence of initialization", "no fence.mbarrier_init");
  expect_fault(Fault::kInitFenceOfOther, "fence of another thread", "no fence.mbarrier_init by the thread");
  expect_fault(Fault::kFewArrivals, "few arrivals", "an operand of a wgmma that is not complete");
  expect_fault(Fault::kSharedBarrier, "shared barrier", kWrongResults);
}

// ---------------------------------------------------------------- one product of each layout

struct SmallStorage {
  alignas(1024) unsigned char left[64 * kStep * 2], right[kOperandBytes];
  Barrier full;
};

struct SmallArguments {
  TensorMap left, right;
  float* products;   // [64, 128]
  uint32_t leading;  // bytes between blocks of 64 lines across the depth
};

// Lines along the depth are [line][depth] in memory, others [depth][line] in blocks of 64 lines.
__device__ uint64_t descriptor_of(const void* operand, bool is_transposed, int k16, uint32_t leading) {
  const uint64_t advance = (is_transposed ? 2048 : 32) * k16 >> 4;
  return descriptor(operand) - (uint64_t{1} << 16) + (uint64_t{is_transposed ? leading >> 4 : 1} << 16) + advance;
}

template <bool kLeftTransposed, bool kRightTransposed, bool kF16>
__global__ void small_product_kernel(const __grid_constant__ SmallArguments args) {
  auto& shared = aligned_dynamic_shared<SmallStorage>();
  if (threadIdx.x == 0) {
    barrier_init(shared.full, 1, "full", 0);
    barrier_init_fence();
    barrier_arrive_expect(shared.full, 64 * kStep * 2 + kOperandBytes);
    copy_tensor_async(shared.left, args.left, 0, 0, shared.full);
    for (int block = 0; block < (kRightTransposed ? 2 : 1); ++block)
      copy_tensor_async(shared.right + 8192 * block, args.right, 64 * block, 0, shared.full);
  }
  block_barrier();
  barrier_wait(shared.full, 0);
  float sums[2][32];
  undefine(sums);
  wgmma_fence(sums);
  for (int k = 0; k < kStep / 16; ++k) {
    const uint64_t left = descriptor_of(shared.left, kLeftTransposed, k, args.leading),
                   right = descriptor_of(shared.right, kRightTransposed, k, args.leading);
    if constexpr (kF16) {
      wgmma_f16<kLeftTransposed, kRightTransposed>(sums[0], sums[1], left, right, k > 0);
    } else {
      wgmma_bf16<kLeftTransposed, kRightTransposed>(sums[0], sums[1], left, right, k > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int a = 0; a < 2; ++a) {
    for (int b = 0; b < 32; ++b) {
      args.products[(16 * warp + 8 * a + lane / 4) * 128 + 8 * (b / 2) + 2 * (lane % 4) + b % 2] = sums[a][b];
    }
  }
}

// A matrix with sizes that are not multiples of the box, and NaN behind its rows.
struct Matrix {
  int lines, depth, pitch;
  bool is_transposed;
  std::vector<float> values;  // [lines][depth]
  std::vector<uint16_t> bits;
  TensorMap map;

  Matrix(int lines, int depth, bool is_transposed, bool is_f16, int box_lines, unsigned seed)
      : lines(lines), depth(depth), is_transposed(is_transposed), values(lines * depth) {
    const int inner = is_transposed ? lines : depth, outer = is_transposed ? depth : lines;
    pitch = (inner + 15) / 8 * 8;
    bits.assign(outer * pitch, 0x7FFF);
    std::mt19937 random(seed);
    for (int line = 0; line < lines; ++line) {
      for (int k = 0; k < depth; ++k) {
        const float value = values[line * depth + k] = static_cast<float>(random() % 9) - 4;
        bits[is_transposed ? k * pitch + line : line * pitch + k] =
            is_f16 ? float_to_f16_bits(value) : float_to_bf16_bits(value);
      }
    }
    const uint64_t extents[] = {static_cast<uint64_t>(inner), static_cast<uint64_t>(outer)};
    const uint64_t strides[] = {static_cast<uint64_t>(pitch) * 2};
    const uint32_t box[] = {64, static_cast<uint32_t>(is_transposed ? 64 : box_lines)}, ones[] = {1, 1};
    check(cuTensorMapEncodeTiled(&map, is_f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                 2, bits.data(), extents, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS,
          "a tensor map is encoded");
  }
};

template <bool kLeftTransposed, bool kRightTransposed, bool kF16>
void test_layout() {
  const Matrix left(61, 51, kLeftTransposed, kF16, 64, 1), right(117, 51, kRightTransposed, kF16, 128, 2);
  std::vector<float> expected(64 * 128);
  for (int i = 0; i < left.lines; ++i) {
    for (int j = 0; j < right.lines; ++j) {
      for (int k = 0; k < left.depth; ++k)
        expected[i * 128 + j] += left.values[i * left.depth + k] * right.values[j * right.depth + k];
    }
  }
  const auto run_with = [&](uint32_t leading) {
    std::vector<float> products(64 * 128, NAN);
    launch_hopper(small_product_kernel<kLeftTransposed, kRightTransposed, kF16>, dim3(1), dim3(128),
                  sizeof(SmallStorage), nullptr, SmallArguments{left.map, right.map, products.data(), leading});
    return products;
  };
  for (const std::vector<float>& products : in_all_orders([&] { return run_with(8192); })) {
    check(products == expected, std::string("the product of operands ") +
                                    (kLeftTransposed ? "across, " : "along, ") +
                                    (kRightTransposed ? "across" : "along") + (kF16 ? " in float16" : ""));
  }
  if (kRightTransposed) {
    check_throws([&] { run_with(4096); }, {"descriptor of the right operand", "of the tensor; expected"},
                 "wrong offset between blocks of lines");
  }
}

// ---------------------------------------------------------------- misuse of single instructions

enum class Misuse {
  kTwoInits,
  kOverwritten,
  kManyArrivals,
  kNotInitialized,
  kPhase,
  kTwoCounts,
  kUnusedCopy,
  kPartOfGroup
};

struct MisuseArguments {
  TensorMap left;
  Misuse misuse;
};

__global__ void misuse_kernel(const __grid_constant__ MisuseArguments args) {
  const Misuse misuse = args.misuse;
  auto& shared = aligned_dynamic_shared<SmallStorage>();
  const bool is_first = threadIdx.x == 0;
  if (is_first) {
    if (misuse != Misuse::kNotInitialized) barrier_init(shared.full, 1, "full", 0);
    if (misuse == Misuse::kTwoInits) barrier_init(shared.full, 1, "full", 0);
    barrier_init_fence();
    if (misuse == Misuse::kOverwritten) shared.full.state = 1;
  }
  block_barrier();
  if (is_first && misuse == Misuse::kManyArrivals) {
    barrier_arrive_expect(shared.full, 16);
    barrier_arrive(shared.full);
  }
  if (misuse == Misuse::kPhase) barrier_wait(shared.full, 0);
  if (is_first && misuse != Misuse::kUnusedCopy) barrier_arrive(shared.full);
  if (is_first && misuse == Misuse::kUnusedCopy) copy_tensor_async(shared.left, args.left, 0, 0, shared.full);
  const int warp = threadIdx.x / 32;
  if (misuse == Misuse::kTwoCounts) named_barrier(1, warp < 2 ? 128 : 96);
  if (misuse == Misuse::kPartOfGroup && warp == 0) release_registers<24>();
}

void expect_misuse(Misuse misuse, const std::string& part) {
  const Matrix left(64, 64, false, false, 64, 1);
  const auto run = [&] {
    launch_hopper(misuse_kernel, dim3(1), dim3(128), sizeof(SmallStorage), nullptr,
                  MisuseArguments{left.map, misuse});
  };
  in_all_orders([&] {
    check_throws(run, {part}, part);
    return 0;
  });
}

void test_misuse() {
  expect_misuse(Misuse::kTwoInits, "full[0] is initialized again");
  expect_misuse(Misuse::kOverwritten, "full[0] was overwritten");
  expect_misuse(Misuse::kManyArrivals, "more than 1 arrivals in phase 0");
  expect_misuse(Misuse::kNotInitialized, "the mbarrier is not initialized");
  expect_misuse(Misuse::kPhase, "mbarrier full[0]: phase 0, 1 of 1 arrivals");
  expect_misuse(Misuse::kTwoCounts, "while others wait there for");
  expect_misuse(Misuse::kUnusedCopy, "ended with a bulk tensor copy under way");
  expect_misuse(Misuse::kPartOfGroup, "setmaxnreg by some warps of a warpgroup");

  TensorMap map;
  alignas(16) uint16_t memory[1024];
  const auto encode = [&](uint64_t pitch, uint32_t box, int offset) {
    const uint64_t extents[] = {60, 4}, strides[] = {pitch};
    const uint32_t boxes[] = {box, 4}, ones[] = {1, 1};
    return cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, memory + offset, extents, strides,
                                  boxes, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  check(encode(128, 64, 0) == CUDA_SUCCESS, "a correct map");
  check(encode(120, 64, 0) == CUDA_ERROR_INVALID_VALUE, "a pitch that is not a multiple of 16 bytes");
  check(encode(128, 128, 0) == CUDA_ERROR_INVALID_VALUE, "rows of a box that exceed the swizzle");
  check(encode(128, 64, 4) == CUDA_ERROR_INVALID_VALUE, "an address that is not a multiple of 16 bytes");
}

// ThreadSanitizer reports these races even if no order shows them. A report ends the program, so each runs in a
// process of its own.
void test_races(const std::string& program) {
  constexpr int kReported = 66;
  const std::string options = "TSAN_OPTIONS=exitcode=" + std::to_string(kReported) + ":halt_on_error=1 ";
  for (const Fault fault : {Fault::kNoFullWait, Fault::kSharedScratch}) {
    const std::string number = std::to_string(static_cast<int>(fault));
    const int status = std::system((options + program + " " + number + " 2>/dev/null").c_str());
    check(status / 256 == kReported, "fault " + number + ": the race was not reported");
  }
}

}  // namespace

}  // namespace cyclip::test

// Without arguments all tests, otherwise the fault of this number in all orders.
int main(int count, char** arguments) {
  using namespace cyclip::test;
  if (count == 2) {
    const auto fault = static_cast<Fault>(std::atoi(arguments[1]));
    in_all_orders([&] {
      try {
        return run(Problem(256, 256, 320, 1), fault);
      } catch (const std::runtime_error&) {
        return false;
      }
    });
    return 0;
  }
  test_product();
  test_layout<false, false, true>();
  test_layout<false, true, false>();
  test_layout<true, true, false>();
  test_layout<true, false, false>();
  test_misuse();
  if (cyclip::emulation::kThreadSanitizer) {
    test_races(arguments[0]);
  } else {
    test_planted_faults();
  }
  return exit_code();
}
