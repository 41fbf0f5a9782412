// Kernels that lack a barrier, each in another way. Some order of threads changes the result of most of them, and
// ThreadSanitizer reports all of them. The same kernels with all barriers give one result and no report.
//
// A report of ThreadSanitizer ends the program, so each kernel runs in a separate process.

#include <cstdlib>
#include <numeric>

#include "emulation_check.h"

namespace cyclip::test {

namespace {

using namespace cyclip::cuda;

constexpr int kThreads = 128, kBlocks = 3;

template <bool kWithBarrier>
__device__ void barrier_if() {
  if constexpr (kWithBarrier) block_barrier();
}

struct Exchange {
  float values[kThreads];
};

// Reads what another warp writes.
template <bool kCorrect>
__global__ void write_then_read_kernel(const float*, float* out) {
  CYCLIP_SHARED(Exchange, shared);
  shared.values[threadIdx.x] = static_cast<float>(threadIdx.x);
  barrier_if<kCorrect>();
  out[blockIdx.x * kThreads + threadIdx.x] = shared.values[(threadIdx.x + kWarpSize) % kThreads];
}

// Writes again before everybody has read.
template <bool kCorrect>
__global__ void read_then_write_kernel(const float*, float* out) {
  CYCLIP_SHARED(Exchange, shared);
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    shared.values[threadIdx.x] = static_cast<float>(threadIdx.x + 1000 * round);
    block_barrier();
    sum += shared.values[(threadIdx.x + kWarpSize) % kThreads];
    barrier_if<kCorrect>();
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// A shuffle makes lanes meet, but does not order what they do to memory.
template <bool kCorrect>
__global__ void shuffle_as_barrier_kernel(const float*, float* out) {
  CYCLIP_SHARED(Exchange, shared);
  shared.values[threadIdx.x] = static_cast<float>(threadIdx.x);
  const float sum = shuffle_xor(1.0f, 1);
  barrier_if<kCorrect>();
  out[blockIdx.x * kThreads + threadIdx.x] = sum + shared.values[threadIdx.x ^ 1];
}

struct Matrices {
  alignas(16) float rows[kThreads][4];
};

// The wait is for one's own copies only.
template <bool kCorrect>
__global__ void copy_then_load_kernel(const float* in, float* out) {
  CYCLIP_SHARED(Matrices, shared);
  copy_async_16(shared.rows[threadIdx.x], in + 4 * threadIdx.x, true);
  copy_async_commit();
  copy_async_wait<0>();
  barrier_if<kCorrect>();
  uint32_t fragment[4];
  load_matrices(fragment, shared.rows[(threadIdx.x + kWarpSize) % kThreads]);
  out[blockIdx.x * kThreads + threadIdx.x] = static_cast<float>(fragment[0] % 1024);
}

// Copies into what others still read.
template <bool kCorrect>
__global__ void load_then_copy_kernel(const float* in, float* out) {
  CYCLIP_SHARED(Matrices, shared);
  shared.rows[threadIdx.x][0] = -1;
  block_barrier();
  const float value = shared.rows[(threadIdx.x + kWarpSize) % kThreads][0];
  barrier_if<kCorrect>();
  copy_async_16(shared.rows[threadIdx.x], in, true);
  copy_async_commit();
  copy_async_wait<0>();
  out[blockIdx.x * kThreads + threadIdx.x] = value;
}

// Blocks write to the same place.
template <bool kCorrect>
__global__ void blocks_collide_kernel(const float*, float* out) {
  const int position = kCorrect ? blockIdx.x * kThreads + threadIdx.x : threadIdx.x;
  out[position] = static_cast<float>(blockIdx.x);
}

// A block reads what the next one has written, or not yet.
template <bool kCorrect>
__global__ void blocks_depend_kernel(const float*, float* out) {
  const int block = kCorrect ? blockIdx.x : (blockIdx.x + 1) % gridDim.x;
  float& own = out[blockIdx.x * kThreads + threadIdx.x];
  own = 1;
  block_barrier();
  own += out[block * kThreads + threadIdx.x];
}

using Kernel = void (*)(const float*, float*);

struct Case {
  std::string name;
  Kernel correct, racing;
  bool orders_show_it;
};

#define CYCLIP_CASE(name, orders_show_it) {#name, name##_kernel<true>, name##_kernel<false>, orders_show_it}

const Case kCases[] = {
    CYCLIP_CASE(write_then_read, true),     CYCLIP_CASE(read_then_write, true),
    CYCLIP_CASE(shuffle_as_barrier, false),  // the lanes do meet
    CYCLIP_CASE(copy_then_load, true),      CYCLIP_CASE(load_then_copy, true),
    CYCLIP_CASE(blocks_collide, true),      CYCLIP_CASE(blocks_depend, true),
};

std::vector<float> run(Kernel kernel) {
  alignas(16) static float in[4 * kThreads];
  std::iota(in, in + 4 * kThreads, 1.0f);
  std::vector<float> out(kBlocks * kThreads, 0);
  launch(kernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, in, out.data());
  return out;
}

bool same_in_all_orders(Kernel kernel) {
  const std::vector<std::vector<float>> results = in_all_orders([&] { return run(kernel); });
  for (const std::vector<float>& result : results) {
    if (result != results.front()) return false;  // also where it has NaN
  }
  return true;
}

constexpr int kReported = 66;

int exit_code_of(const std::string& program, const Case& test, const char* variant) {
  const std::string options = "TSAN_OPTIONS=exitcode=" + std::to_string(kReported) + ":halt_on_error=1 ";
  const int status = std::system((options + program + " " + test.name + " " + variant + " 2>/dev/null").c_str());
  return status / 256;  // of an exit
}

void test_case(const Case& test, const std::string& program) {
  check(same_in_all_orders(test.correct), test.name + ": the results of the correct kernel differ");
  if (emulation::kThreadSanitizer) {
    check(exit_code_of(program, test, "correct") == 0, test.name + ": the correct kernel was reported");
    check(exit_code_of(program, test, "racing") == kReported, test.name + ": the race was not reported");
  } else {
    check(same_in_all_orders(test.racing) == !test.orders_show_it,
          test.name + ": whether the orders show the race");
  }
}

}  // namespace

}  // namespace cyclip::test

// Without arguments all tests, otherwise one kernel: NAME correct|racing.
int main(int count, char** arguments) {
  using namespace cyclip::test;
  if (count == 3) {
    for (const Case& test : kCases) {
      if (test.name == arguments[1]) run(std::string(arguments[2]) == "racing" ? test.racing : test.correct);
    }
    return 0;
  }
  for (const Case& test : kCases) test_case(test, arguments[0]);
  return exit_code();
}
