// One stage of the product: fragments are read from shared memory, and multiplied and added.

#pragma once

#include "operand_tile.cuh"

namespace cyclip::cuda {

// ---------------------------------------------------------------- tensor cores, 16 bits and TF32

__device__ inline void multiply_accumulate(Bf16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_bf16(c, a, b);
}
__device__ inline void multiply_accumulate(F16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_f16(c, a, b);
}
__device__ inline void multiply_accumulate(Tf32, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_tf32(c, a, b);
}

// Four quarters of a fragment, each 8 lines by half an instruction's depth. If `lines_first`,
// quarter 1 is the next 8 lines (left factor), otherwise the next half of the depth (right factor).
template <bool kLinesFirst, typename Tile, Layout kLayout, int kLines>
__device__ inline void load_fragment(uint32_t (&out)[4], const OperandTile<Tile, kLayout, kLines>& tile, int line,
                                     int depth) {
  using Element = typename Tile::Element;
  constexpr int kHalf = Tile::Math::kDepth / 2;
  const int lane = threadIdx.x % kWarpSize;
  if constexpr (kLayout == Layout::kAcrossDepth && sizeof(Element) == 4) {
    const int g = lane / 4, t = lane % 4;
    CYCLIP_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int lines = kLinesFirst ? q % 2 : q / 2, half = kLinesFirst ? q / 2 : q % 2;
      out[q] = bit_cast<uint32_t>(tile.at(line + 8 * lines + g, depth + kHalf * half + t));
    }
  } else {
    const int q = lane / 8, r = lane % 8;  // this lane's address: row r of matrix q
    const int lines = kLinesFirst ? q % 2 : q / 2, half = kLinesFirst ? q / 2 : q % 2;
    if constexpr (kLayout == Layout::kAlongDepth) {
      load_matrices(out, &tile.at(line + 8 * lines + r, depth + kHalf * half));
    } else {
      load_matrices_transposed(out, &tile.at(line + 8 * lines, depth + kHalf * half + r));
    }
  }
}

template <typename Tile, typename Left, typename Right, typename Math>
__device__ inline void multiply_stage(Math math, typename Tile::Fragment (&sums)[Tile::kAcross],
                                      const Place<Tile>& place, const Left& left,
                                      const Right (&right)[Tile::kAcross]) {
  constexpr int kDown = Tile::kThreadRows / 2, kAcross = Tile::kThreadCols / 2;  // instructions
  CYCLIP_UNROLL
  for (int depth = 0; depth < Tile::kStep; depth += Math::kDepth) {
    uint32_t a[kDown][4];
    CYCLIP_UNROLL
    for (int i = 0; i < kDown; ++i) {
      load_fragment<true>(a[i], left, place.warp_row * Tile::kWarpRows + 16 * i, depth);
    }
    CYCLIP_UNROLL
    for (int tile = 0; tile < Tile::kAcross; ++tile) {
      auto& of_tile = sums[tile];
      uint32_t b[kAcross / 2][4];
      CYCLIP_UNROLL
      for (int j = 0; j < kAcross / 2; ++j) {
        load_fragment<false>(b[j], right[tile], place.warp_col * Tile::kWarpCols + 16 * j, depth);
      }
      CYCLIP_UNROLL
      for (int i = 0; i < kDown; ++i) {
        CYCLIP_UNROLL
        for (int j = 0; j < kAcross; ++j) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          float c[4] = {of_tile[2 * i][2 * j], of_tile[2 * i][2 * j + 1], of_tile[2 * i + 1][2 * j],
                        of_tile[2 * i + 1][2 * j + 1]};
          multiply_accumulate(math, c, a[i], column);
          of_tile[2 * i][2 * j] = c[0];
          of_tile[2 * i][2 * j + 1] = c[1];
          of_tile[2 * i + 1][2 * j] = c[2];
          of_tile[2 * i + 1][2 * j + 1] = c[3];
        }
      }
    }
  }
}

// ---------------------------------------------------------------- tensor cores, float64

template <typename Tile, typename Left, typename Right>
__device__ inline void multiply_stage(F64, typename Tile::Fragment (&sums)[1], const Place<Tile>& place,
                                      const Left& left, const Right (&right)[1]) {
  CYCLIP_UNROLL
  for (int depth = 0; depth < Tile::kStep; depth += F64::kDepth) {
    double a[Tile::kThreadRows], b[Tile::kThreadCols / 2];
    CYCLIP_UNROLL
    for (int i = 0; i < Tile::kThreadRows; ++i) a[i] = left.at(place.row(i), depth + place.t);
    CYCLIP_UNROLL
    for (int j = 0; j < Tile::kThreadCols / 2; ++j) {
      b[j] = right[0].at(place.warp_col * Tile::kWarpCols + 8 * j + place.g, depth + place.t);
    }
    CYCLIP_UNROLL
    for (int i = 0; i < Tile::kThreadRows; ++i) {
      CYCLIP_UNROLL
      for (int j = 0; j < Tile::kThreadCols / 2; ++j) {
        double c[2] = {sums[0][i][2 * j], sums[0][i][2 * j + 1]};
        mma_f64(c, a[i], b[j]);
        sums[0][i][2 * j] = c[0];
        sums[0][i][2 * j + 1] = c[1];
      }
    }
  }
}

// ---------------------------------------------------------------- float32 multiply-adds

// Loads the entries of F32::kDepth steps in depth, starting at a multiple of it, for the lines
// first + step_to(i).
template <int kLinesOfThread, typename Tile, Layout kLayout, int kLines, typename StepTo>
__device__ inline void load_lines(float (&out)[kLinesOfThread][F32::kDepth],
                                  const OperandTile<Tile, kLayout, kLines>& tile, int first, int depth,
                                  const StepTo& step_to) {
  struct alignas(16) Pack {
    float items[F32::kDepth];
  };
  CYCLIP_UNROLL
  for (int i = 0; i < kLinesOfThread; ++i) {
    if constexpr (kLayout == Layout::kAlongDepth) {
      const auto pack = *reinterpret_cast<const Pack*>(&tile.at(first + step_to(i), depth));
      CYCLIP_UNROLL
      for (int k = 0; k < F32::kDepth; ++k) out[i][k] = pack.items[k];
    } else {
      CYCLIP_UNROLL
      for (int k = 0; k < F32::kDepth; ++k) {
        // The swizzle of row depth + k exchanges groups of 8 lines, whose numbers are constants
        // here, so all entries lie at constant distances from one address.
        static_assert(Tile::kWarpRows % 32 == 0 && Tile::kWarpCols % 32 == 0);
        const int swizzled = 8 * (step_to(i) / 8 ^ k) + step_to(i) % 8;
        out[i][k] = tile.data[depth * kLines + first + k * kLines + swizzled];
      }
    }
  }
}

template <typename Tile, typename Left, typename Right>
__device__ inline void multiply_stage(F32, typename Tile::Fragment (&sums)[1], const Place<Tile>& place,
                                      const Left& left, const Right (&right)[1]) {
  for (int depth = 0; depth < Tile::kStep; depth += F32::kDepth) {
    float a[Tile::kThreadRows][F32::kDepth], b[Tile::kThreadCols][F32::kDepth];
    load_lines(a, left, place.row(0), depth, &Place<Tile>::row_step);
    load_lines(b, right[0], place.col(0), depth, &Place<Tile>::col_step);
    CYCLIP_UNROLL
    for (int k = 0; k < F32::kDepth; ++k) {
      CYCLIP_UNROLL
      for (int i = 0; i < Tile::kThreadRows; ++i) {
        CYCLIP_UNROLL
        for (int j = 0; j < Tile::kThreadCols; ++j) sums[0][i][j] = fmaf(a[i][k], b[j][k], sums[0][i][j]);
      }
    }
  }
}

}  // namespace cyclip::cuda
