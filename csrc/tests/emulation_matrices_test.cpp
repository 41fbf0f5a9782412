// Matrix instructions against plain loops, with the positions of all entries according to the
// tables of the PTX ISA ("Matrix Fragments for mma.m16n8k16 with floating point type" and similar
// ones). Entries are small integers, so that products are exact in every order of addition.

#include <bit>
#include <cmath>
#include <random>

#include "emulation_check.h"

namespace cyclip::test {

namespace {

using namespace cyclip::cuda;

struct Position {
  int row, col;
};

// The entry number i of a lane's fragment. In the tables, groupID is lane >> 2 and threadID_in_group
// is lane % 4.
using Table = Position (*)(int lane, int i);

Position a_16(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {(0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8, thread * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
Position b_16(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {thread * 2 + (i & 1) + (i >= 2 ? 8 : 0), group};
}
Position c_16x8(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {i < 2 ? group : group + 8, thread * 2 + (i & 1)};
}
Position a_tf32(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {i == 0 || i == 2 ? group : group + 8, i == 0 || i == 1 ? thread : thread + 4};
}
Position b_tf32(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {i == 0 ? thread : thread + 4, group};
}
Position a_f64(int lane, int) { return {lane >> 2, lane % 4}; }
Position b_f64(int lane, int) { return {lane % 4, lane >> 2}; }
Position c_f64(int lane, int i) { return {lane >> 2, (lane % 4) * 2 + (i & 1)}; }

// One warp's instruction, from and to memory: the data of lane l are at [l].
template <typename C, typename Register>
struct Fragments {
  C c[32][4];
  Register a[32][4], b[32][2];
};

template <void (*kMma)(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2], emulation::Where)>
__global__ void mma_kernel(Fragments<float, uint32_t>* fragments) {
  const int lane = threadIdx.x;
  kMma(fragments->c[lane], fragments->a[lane], fragments->b[lane], emulation::Where::here());
}

__global__ void mma_f64_kernel(Fragments<double, double>* fragments) {
  const int lane = threadIdx.x;
  double c[2] = {fragments->c[lane][0], fragments->c[lane][1]};
  mma_f64(c, fragments->a[lane][0], fragments->b[lane][0]);
  for (int i = 0; i < 2; ++i) fragments->c[lane][i] = c[i];
}

template <typename C, typename Register>
struct Instruction {
  const char* name;
  int rows, depth;
  int a_entries, b_entries, c_entries;  // of a lane
  int entries_per_register;
  Table a, b, c;
  void (*kernel)(Fragments<C, Register>*);
  Register (*encode)(double);
};

template <typename C, typename Register>
void test_mma(const Instruction<C, Register>& mma) {
  constexpr int kCols = 8;
  std::mt19937 random(1);
  const auto number = [&] { return static_cast<double>(random() % 17) - 8; };
  double a[16][16], b[16][kCols], sums[16][kCols];
  for (auto& row : a) {
    for (double& entry : row) entry = number();
  }
  for (auto& row : b) {
    for (double& entry : row) entry = number();
  }
  for (auto& row : sums) {
    for (double& entry : row) entry = number();
  }

  Fragments<C, Register> fragments{};
  const auto put = [&](Register* registers, int i, double value) {
    const int shift = 32 / mma.entries_per_register * (i % mma.entries_per_register);
    if constexpr (std::is_integral_v<Register>) {
      registers[i / mma.entries_per_register] |= mma.encode(value) << shift;
    } else {
      registers[i] = mma.encode(value);
    }
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < mma.a_entries; ++i) {
      const auto [row, col] = mma.a(lane, i);
      put(fragments.a[lane], i, a[row][col]);
    }
    for (int i = 0; i < mma.b_entries; ++i) {
      const auto [row, col] = mma.b(lane, i);
      put(fragments.b[lane], i, b[row][col]);
    }
    for (int i = 0; i < mma.c_entries; ++i) {
      const auto [row, col] = mma.c(lane, i);
      fragments.c[lane][i] = static_cast<C>(sums[row][col]);
    }
  }
  launch(mma.kernel, dim3(1), dim3(32), 0, nullptr, &fragments);

  for (int row = 0; row < mma.rows; ++row) {
    for (int col = 0; col < kCols; ++col) {
      for (int k = 0; k < mma.depth; ++k) sums[row][col] += a[row][k] * b[k][col];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < mma.c_entries; ++i) {
      const auto [row, col] = mma.c(lane, i);
      check_close(fragments.c[lane][i], sums[row][col], 0,
                  std::string(mma.name) + " row " + std::to_string(row) + " column " + std::to_string(col));
    }
  }
}

// Hardware reads 19 bits of a register.
void test_tf32_reads_ten_bits_of_mantissa() {
  Fragments<float, uint32_t> fragments{};
  fragments.a[0][0] = std::bit_cast<uint32_t>(1.0f) | 0x1FFF;
  fragments.b[0][0] = std::bit_cast<uint32_t>(1.0f) | 0x3FFF;
  launch(mma_kernel<&mma_tf32>, dim3(1), dim3(32), 0, nullptr, &fragments);
  check_close(fragments.c[0][0], 1.0 + 1.0 / 1024, 0, "tf32 product of numbers with more bits");
}

// ---------------------------------------------------------------- ldmatrix

struct Tile {
  uint16_t entries[32][8];  // four matrices of 8 rows each, rows in a scrambled order
};

__device__ int scrambled(int row) { return row * 5 % 32; }

template <bool kTransposed>
__global__ void load_matrices_kernel(const uint16_t* matrices, uint32_t* out) {
  CYCLIP_SHARED(Tile, tile);
  const int lane = threadIdx.x;
  for (int k = 0; k < 8; ++k) tile.entries[scrambled(lane)][k] = matrices[lane * 8 + k];
  block_barrier();
  uint32_t fragment[4];
  const void* const row = tile.entries[scrambled(lane)];
  if constexpr (kTransposed) {
    load_matrices_transposed(fragment, row);
  } else {
    load_matrices(fragment, row);
  }
  for (int m = 0; m < 4; ++m) out[4 * lane + m] = fragment[m];
}

template <bool kTransposed>
void test_load_matrices() {
  std::vector<uint16_t> matrices(4 * 64);
  for (size_t i = 0; i < matrices.size(); ++i) matrices[i] = static_cast<uint16_t>(1000 + i);
  std::vector<uint32_t> out(4 * 32);
  launch(load_matrices_kernel<kTransposed>, dim3(1), dim3(32), 0, nullptr, matrices.data(), out.data());
  // Table: thread T holds entries 2 (T % 4) and 2 (T % 4) + 1 of row T / 4, the first one in the
  // lower half.
  for (int m = 0; m < 4; ++m) {
    for (int row = 0; row < 8; ++row) {
      for (int col = 0; col < 8; ++col) {
        const int lane = row * 4 + col / 2;
        const auto actual = static_cast<uint16_t>(out[4 * lane + m] >> (16 * (col % 2)));
        check(actual == matrices[m * 64 + (kTransposed ? col * 8 + row : row * 8 + col)],
              "load_matrices of matrix " + std::to_string(m) + " row " + std::to_string(row) + " column " +
                  std::to_string(col));
      }
    }
  }
}

}  // namespace

}  // namespace cyclip::test

int main() {
  using namespace cyclip::test;
  using Float = Instruction<float, uint32_t>;
  const auto bf16 = [](double x) -> uint32_t { return float_to_bf16_bits(static_cast<float>(x)); };
  const auto f16 = [](double x) -> uint32_t { return float_to_f16_bits(static_cast<float>(x)); };
  const auto tf32 = [](double x) { return std::bit_cast<uint32_t>(static_cast<float>(x)); };
  const auto f64 = [](double x) { return x; };
  test_mma(Float{"bf16", 16, 16, 8, 4, 4, 2, a_16, b_16, c_16x8, mma_kernel<&mma_bf16>, bf16});
  test_mma(Float{"f16", 16, 16, 8, 4, 4, 2, a_16, b_16, c_16x8, mma_kernel<&mma_f16>, f16});
  test_mma(Float{"tf32", 16, 8, 4, 2, 4, 1, a_tf32, b_tf32, c_16x8, mma_kernel<&mma_tf32>, tf32});
  test_mma(Instruction<double, double>{"f64", 8, 4, 1, 1, 2, 1, a_f64, b_f64, c_f64, mma_f64_kernel, f64});
  test_tf32_reads_ten_bits_of_mantissa();
  test_load_matrices<false>();
  test_load_matrices<true>();
  return exit_code();
}
