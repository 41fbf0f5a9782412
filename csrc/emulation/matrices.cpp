#include "matrices.h"

#include <cmath>
#include <cstring>

#include "numbers.h"

namespace cyclip::emulation {

namespace {

template <typename Operands>
const Operands& operands(void* const (&lanes)[kLanes], int lane) {
  return *static_cast<const Operands*>(lanes[lane]);
}

// ---------------------------------------------------------------- ldmatrix

struct Matrices {
  uint16_t entries[4][8][8];

  CYCLIP_UNSEEN explicit Matrices(void* const (&lanes)[kLanes]) {
    for (int lane = 0; lane < kLanes; ++lane) {
      std::memcpy(entries[lane / 8][lane % 8], operands<LoadMatrices>(lanes, lane).row, sizeof(entries[0][0]));
    }
  }
};

uint32_t pair(uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; }

// ---------------------------------------------------------------- mma

template <int kDepth>
struct Factors {
  float a[16][kDepth], b[kDepth][8];
};

template <float (*kWiden)(uint16_t)>
CYCLIP_UNSEEN Factors<16> factors_16(void* const (&lanes)[kLanes]) {
  Factors<16> factors;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& in = operands<Mma>(lanes, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      float* const to = &factors.a[g + i % 2 * 8][2 * t + i / 2 * 8];
      to[0] = kWiden(static_cast<uint16_t>(in.a[i]));
      to[1] = kWiden(static_cast<uint16_t>(in.a[i] >> 16));
    }
    for (int i = 0; i < 2; ++i) {
      factors.b[2 * t + 8 * i][g] = kWiden(static_cast<uint16_t>(in.b[i]));
      factors.b[2 * t + 8 * i + 1][g] = kWiden(static_cast<uint16_t>(in.b[i] >> 16));
    }
  }
  return factors;
}

CYCLIP_UNSEEN Factors<8> factors_tf32(void* const (&lanes)[kLanes]) {
  Factors<8> factors;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& in = operands<Mma>(lanes, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) factors.a[g + i % 2 * 8][t + i / 2 * 4] = truncate_to_tf32(in.a[i]);
    for (int i = 0; i < 2; ++i) factors.b[t + 4 * i][g] = truncate_to_tf32(in.b[i]);
  }
  return factors;
}

template <int kDepth>
CYCLIP_UNSEEN void multiply_accumulate(const Factors<kDepth>& factors, void* const (&lanes)[kLanes]) {
  float sums[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const float* const c = operands<Mma>(lanes, lane).c;
    for (int i = 0; i < 4; ++i) sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2] = c[i];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int col = 0; col < 8; ++col) sums[row][col] += factors.a[row][k] * factors.b[k][col];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* const c = operands<Mma>(lanes, lane).c;
    for (int i = 0; i < 4; ++i) c[i] = sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}

}  // namespace

CYCLIP_UNSEEN void load_matrices(void* const (&lanes)[kLanes]) {
  const Matrices matrices(lanes);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int m = 0; m < 4; ++m) {
      const uint16_t* const row = matrices.entries[m][lane / 4];
      operands<LoadMatrices>(lanes, lane).out[m] = pair(row[2 * (lane % 4)], row[2 * (lane % 4) + 1]);
    }
  }
}

CYCLIP_UNSEEN void load_matrices_transposed(void* const (&lanes)[kLanes]) {
  const Matrices matrices(lanes);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int m = 0; m < 4; ++m) {
      const auto& rows = matrices.entries[m];
      operands<LoadMatrices>(lanes, lane).out[m] =
          pair(rows[2 * (lane % 4)][lane / 4], rows[2 * (lane % 4) + 1][lane / 4]);
    }
  }
}

void mma_bf16(void* const (&lanes)[kLanes]) { multiply_accumulate(factors_16<bf16_to_float>(lanes), lanes); }
void mma_f16(void* const (&lanes)[kLanes]) { multiply_accumulate(factors_16<f16_to_float>(lanes), lanes); }
void mma_tf32(void* const (&lanes)[kLanes]) { multiply_accumulate(factors_tf32(lanes), lanes); }

CYCLIP_UNSEEN void mma_f64(void* const (&lanes)[kLanes]) {
  double a[8][4], b[4][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& in = operands<MmaF64>(lanes, lane);
    a[lane / 4][lane % 4] = in.a;
    b[lane % 4][lane / 4] = in.b;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    double* const c = operands<MmaF64>(lanes, lane).c;
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 4; ++k) c[i] = std::fma(a[lane / 4][k], b[k][2 * (lane % 4) + i], c[i]);
    }
  }
}

}  // namespace cyclip::emulation
