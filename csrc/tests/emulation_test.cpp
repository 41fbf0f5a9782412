// The emulator executes kernels as a GPU does, and reports undefined behaviour.

#include <numeric>
#include <random>

#include "emulation_check.h"

namespace cyclip::test {

namespace {

using namespace cyclip::cuda;

// ---------------------------------------------------------------- grids and shared memory

__global__ void indices_kernel(int* out) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1 + block * 1000 + thread;
}

void test_every_thread_runs_once() {
  const dim3 blocks(3, 2, 2), threads(5, 3, 2);
  for (const std::vector<int>& out : in_all_orders([&] {
         std::vector<int> out(12 * 30);
         launch(indices_kernel, blocks, threads, 0, nullptr, out.data());
         return out;
       })) {
    for (int i = 0; i < 12 * 30; ++i)
      check(out[i] == 1 + i / 30 * 1000 + i % 30, "indices of thread " + std::to_string(i));
  }
}

struct Eight {
  float values[8];
};

__device__ float* other_variable() {
  CYCLIP_SHARED(Eight, shared);
  return shared.values;
}

// Each block finds shared memory unwritten, although the one before it wrote there.
__global__ void shared_memory_kernel(int* found) {
  CYCLIP_SHARED(Eight, shared);
  auto& dynamic = dynamic_shared<Eight>();
  bool ok = std::isnan(shared.values[threadIdx.x]) && std::isnan(dynamic.values[threadIdx.x]);
  ok = ok && &shared.values[0] != other_variable() && &shared.values[0] != &dynamic.values[0];
  ok = ok && shared_address(&dynamic.values[1]) == shared_address(&dynamic.values[0]) + 4;
  block_barrier();
  shared.values[threadIdx.x] = dynamic.values[threadIdx.x] = static_cast<float>(threadIdx.x);
  block_barrier();
  ok = ok && shared.values[7 - threadIdx.x] == static_cast<float>(7 - threadIdx.x);
  found[blockIdx.x * 8 + threadIdx.x] = ok ? 1 : 0;
}

void test_shared_memory() {
  std::vector<int> found(24);
  launch(shared_memory_kernel, dim3(3), dim3(8), sizeof(Eight), nullptr, found.data());
  check(std::accumulate(found.begin(), found.end(), 0) == 24, "shared memory is per block and unwritten");
}

// ---------------------------------------------------------------- shuffles

// Thread `voter` votes in every third of six votes, which follow one another without another barrier.
__global__ void vote_kernel(int* found, unsigned voter) {
  bool ok = true;
  for (int vote = 0; vote < 6; ++vote)
    ok = ok && block_any(vote % 3 == 1 && threadIdx.x == voter) == (vote % 3 == 1);
  found[threadIdx.x] = ok ? 1 : 0;
}

void test_votes() {
  for (const unsigned voter : {0u, 40u, 69u}) {
    for (const std::vector<int>& found : in_all_orders([&] {
           std::vector<int> found(70);
           launch(vote_kernel, dim3(1), dim3(70), 0, nullptr, found.data(), voter);
           return found;
         })) {
      check(std::accumulate(found.begin(), found.end(), 0) == 70, "votes of thread " + std::to_string(voter));
    }
  }
}

template <typename T>
__global__ void shuffle_kernel(T* out, int mask) {
  out[threadIdx.x] = shuffle_xor(static_cast<T>(threadIdx.x + 0.25), mask);
}

template <typename T>
void test_shuffle() {
  for (int mask = 0; mask < 32; ++mask) {
    std::vector<T> out(96);
    launch(shuffle_kernel<T>, dim3(1), dim3(96), 0, nullptr, out.data(), mask);
    for (int i = 0; i < 96; ++i)
      check(out[i] == static_cast<T>((i ^ mask) + 0.25), "shuffle by " + std::to_string(mask));
  }
}

// ---------------------------------------------------------------- asynchronous copies

struct alignas(16) Chunks {
  float values[3][4];
};

// out: before any wait, after the wait for all groups but one, after the wait for all.
__global__ void async_copy_kernel(const float* in, float* out) {
  CYCLIP_SHARED(Chunks, chunks);
  const auto report = [&](int when) {
    for (int i = 0; i < 12; ++i) out[12 * when + i] = chunks.values[i / 4][i % 4];
  };
  copy_async_16(chunks.values[0], in, true);
  copy_async_commit();
  copy_async_16(chunks.values[1], in + 4, true);
  copy_async_commit();
  copy_async_16(chunks.values[2], in + 8, false);  // in no group yet
  report(0);
  copy_async_wait<1>();
  report(1);
  copy_async_commit();
  copy_async_wait<0>();
  report(2);
}

void test_async_copies() {
  alignas(16) float in[12];
  std::iota(in, in + 12, 1.0f);
  std::vector<float> out(36);
  launch(async_copy_kernel, dim3(1), dim3(1), 0, nullptr, in, out.data());
  for (int when = 0; when < 3; ++when) {
    const int finished = when == 0 ? 0 : when == 1 ? 1 : 3;
    for (int i = 0; i < 12; ++i) {
      const float value = out[12 * when + i], expected = i < 8 ? in[i] : 0;  // the last copy is of zeros
      check(i / 4 < finished ? value == expected : std::isnan(value),
            "asynchronous copy, entry " + std::to_string(i) + " at time " + std::to_string(when));
    }
  }
}

// ---------------------------------------------------------------- a whole kernel

constexpr int kTile = 64, kStep = 16, kStages = 3;

struct Stage {
  alignas(16) uint16_t left[kTile][kStep + 8], right[kTile][kStep + 8];  // 8: no two rows at one alignment
};
struct Stages {
  Stage stages[kStages];
};

// c = a b' in tiles of 64 x 64 by 4 warps; sizes are multiples of the tile.
__global__ void __launch_bounds__(128)
    gemm_kernel(const uint16_t* a, const uint16_t* b, float* c, int cols, int depth) {
  auto& stages = dynamic_shared<Stages>().stages;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t row = int64_t{blockIdx.y} * kTile, col = int64_t{blockIdx.x} * kTile;
  float sums[8][4] = {};

  const auto start_copies = [&](int step) {
    if (step * kStep < depth) {
      const int line = threadIdx.x / 2, half = threadIdx.x % 2 * 8;
      Stage& stage = stages[step % kStages];
      copy_async_16(&stage.left[line][half], a + (row + line) * depth + step * kStep + half, true);
      copy_async_16(&stage.right[line][half], b + (col + line) * depth + step * kStep + half, true);
    }
    copy_async_commit();
  };
  for (int step = 0; step < kStages - 1; ++step) start_copies(step);
  for (int step = 0; step * kStep < depth; ++step) {
    copy_async_wait<kStages - 2>();
    block_barrier();
    start_copies(step + kStages - 1);
    const Stage& stage = stages[step % kStages];
    uint32_t left[4];
    load_matrices(left, &stage.left[16 * warp + lane % 16][lane / 16 * 8]);
    CYCLIP_UNROLL
    for (int j = 0; j < 8; j += 2) {
      uint32_t right[4];
      load_matrices(right, &stage.right[8 * j + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
      mma_bf16(sums[j], left, {right[0], right[1]});
      mma_bf16(sums[j + 1], left, {right[2], right[3]});
    }
  }
  for (int j = 0; j < 8; ++j) {
    for (int i = 0; i < 4; ++i) {
      c[(row + 16 * warp + lane / 4 + i / 2 * 8) * cols + col + 8 * j + 2 * (lane % 4) + i % 2] = sums[j][i];
    }
  }
  copy_async_wait<0>();
}

std::vector<uint16_t> integers(int64_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> bits(size);
  for (uint16_t& entry : bits) entry = float_to_bf16_bits(static_cast<float>(random() % 9) - 4);
  return bits;
}

void test_gemm() {
  const int rows = 128, cols = 192, depth = 80;
  const std::vector<uint16_t> a = integers(int64_t{rows} * depth, 1), b = integers(int64_t{cols} * depth, 2);
  std::vector<float> expected(int64_t{rows} * cols);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      for (int k = 0; k < depth; ++k) {
        expected[i * cols + j] +=
            emulation::bf16_to_float(a[i * depth + k]) * emulation::bf16_to_float(b[j * depth + k]);
      }
    }
  }
  for (const std::vector<float>& c : in_all_orders([&] {
         std::vector<float> c(expected.size(), NAN);
         launch(gemm_kernel, dim3(cols / kTile, rows / kTile), dim3(128), sizeof(Stages), nullptr, a.data(),
                b.data(), c.data(), cols, depth);
         return c;
       })) {
    check(c == expected, "the product is exact in every order");
  }
}

// ---------------------------------------------------------------- misuse

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32) {
    block_barrier();
  } else {
    block_barrier();
  }
}

__global__ void missed_barrier_kernel() {
  if (threadIdx.x != 5) block_barrier();
}

__global__ void partial_shuffle_kernel(float* out) {
  if (threadIdx.x != 3) out[threadIdx.x] = shuffle_xor(1.0f, 1);
}

__global__ void divergent_shuffle_kernel(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = shuffle_xor(1.0f, 1);
  } else {
    out[threadIdx.x] = shuffle_xor(2.0f, 1);
  }
}

__global__ void shuffle_at_barrier_kernel(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = shuffle_xor(1.0f, 1);
  } else {
    block_barrier();
  }
}

enum class Address { kMisalignedShared, kBehindShared, kLastBytes, kNotShared, kMisalignedGlobal, kSharedSource };

__global__ void copy_address_kernel(Address address, const unsigned char* global) {
  unsigned char* const shared = dynamic_shared<unsigned char[64]>();
  unsigned char local[32];
  switch (address) {
    case Address::kMisalignedShared:
      return copy_async_16(shared + 8, global, true);
    case Address::kBehindShared:
      return copy_async_16(shared + 64, global, false);
    case Address::kLastBytes:
      return copy_async_16(shared + 56, global, true);
    case Address::kNotShared:
      return copy_async_16(local, global, true);
    case Address::kMisalignedGlobal:
      return copy_async_16(shared, global + 4, true);
    case Address::kSharedSource:
      return copy_async_16(shared, shared + 16, true);
  }
}

__global__ void load_address_kernel(int offset) {
  unsigned char* const shared = dynamic_shared<unsigned char[64]>();
  uint32_t out[4];
  load_matrices(out, shared + offset);
}

__global__ void unfinished_copy_kernel(const unsigned char* global) {
  copy_async_16(dynamic_shared<unsigned char[64]>(), global, true);
  copy_async_commit();
}

__global__ void empty_groups_kernel() {
  copy_async_commit();
  copy_async_commit();
}

__global__ void dynamic_shared_kernel() { dynamic_shared<unsigned char[64]>(); }

__global__ void overflow_kernel(int byte) { dynamic_shared<unsigned char[64]>()[byte] = 0; }

__global__ void shuffle_mask_kernel() { shuffle_xor(1.0f, 32); }

__global__ void throwing_kernel() {
  block_barrier();
  if (threadIdx.x == 40) throw std::runtime_error("thrown by the kernel");
  block_barrier();
}

void test_misuse() {
  std::vector<float> out(128);
  alignas(16) unsigned char global[64] = {};
  const auto in = [&](int threads, auto kernel, auto... arguments) {
    return [=] { launch(kernel, dim3(2), dim3(threads), 64, nullptr, arguments...); };
  };
  in_all_orders([&] {
    check_throws(in(64, divergent_barrier_kernel),
                 {"emulation_test.cpp:", "divergent_barrier_kernel", "another one"}, "divergent barrier");
    check_throws(in(64, missed_barrier_kernel), {"missed_barrier_kernel", "barrier", "end"}, "missed barrier");
    check_throws(in(32, partial_shuffle_kernel, out.data()), {"partial_shuffle_kernel", "shuffle_xor", "ended"},
                 "partial shuffle");
    check_throws(in(32, divergent_shuffle_kernel, out.data()), {"shuffle_xor, while lane"}, "divergent shuffle");
    check_throws(in(32, shuffle_at_barrier_kernel, out.data()), {"shuffle_xor", "barrier"},
                 "shuffle beside barrier");
    check_throws(in(48, shuffle_kernel<float>, out.data(), 1), {"shuffle_kernel", "16 threads"}, "ragged warp");
    check_throws(in(32, shuffle_mask_kernel), {"mask 32"}, "shuffle mask");
    check_throws(in(64, throwing_kernel), {"thrown by the kernel"}, "exception of a kernel");
    return 0;
  });
  check_throws(in(1, copy_address_kernel, Address::kMisalignedShared, global), {"destination", "aligned to 16"},
               "misaligned destination");
  check_throws(in(1, copy_address_kernel, Address::kBehindShared, global), {"destination", "must lie in"},
               "destination behind the end");
  check_throws(in(1, copy_address_kernel, Address::kLastBytes, global), {"destination", "must lie in"},
               "destination across the end");
  check_throws(in(1, copy_address_kernel, Address::kNotShared, global), {"destination", "must lie in"},
               "destination elsewhere");
  check_throws(in(1, copy_address_kernel, Address::kMisalignedGlobal, global), {"source", "aligned to 16"},
               "misaligned source");
  check_throws(in(1, copy_address_kernel, Address::kSharedSource, global), {"source", "global"}, "shared source");
  check_throws(in(32, load_address_kernel, 8), {"load_address_kernel", "aligned to 16"}, "misaligned row");
  check_throws(in(32, load_address_kernel, 64), {"must lie in"}, "row behind the end");
  check_throws(in(1, unfinished_copy_kernel, global), {"unfinished_copy_kernel", "under way"}, "unfinished copy");
  launch(empty_groups_kernel, dim3(1), dim3(1), 0, nullptr);

  check_throws([] { launch(dynamic_shared_kernel, dim3(1), dim3(1), 63, nullptr); },
               {"dynamic_shared_kernel", "64 bytes", "gave 63"}, "too little dynamic shared memory");
  check_throws([] { launch(empty_groups_kernel, dim3(1), dim3(1), 100 * 1024, nullptr); },
               {"emulation_test.cpp", "102400 bytes"}, "too much dynamic shared memory");
  check_throws([] { launch(empty_groups_kernel, dim3(0), dim3(1), 0, nullptr); }, {"(0, 1, 1) blocks"},
               "no blocks");
  check_throws([] { launch(empty_groups_kernel, dim3(1), dim3(1025), 0, nullptr); }, {"1025"}, "too many threads");
  if (!emulation::kAddressSanitizer) {  // which ends the program
    check_throws(in(1, overflow_kernel, 64), {"wrote 0 bytes behind the end of 64 bytes"}, "overflow");
    check_throws(in(1, overflow_kernel, -1), {"before the start"}, "underflow");
  }
  test_gemm();  // nothing of all this is left
}

}  // namespace

}  // namespace cyclip::test

int main() {
  using namespace cyclip::test;
  test_every_thread_runs_once();
  test_shared_memory();
  test_votes();
  test_shuffle<float>();
  test_shuffle<int>();
  test_shuffle<double>();
  test_shuffle<int64_t>();
  test_async_copies();
  test_gemm();
  test_misuse();
  return exit_code();
}
