// A model of the tile registers of AMX in plain C++, for processors without them: the same
// interface and the same arithmetic as the registers in kernels/cpu/isa/amx.cpp. It stops the
// program when the processor would raise an exception. product_test compares both if the
// processor has AMX.

#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/amx.h"

namespace cyclip::test {

class AmxTwin {
 public:
  // Loading a configuration clears all registers.
  void configure(const cpu::TileConfig& config) {
    config_ = config;
    std::memset(tiles_, 0, sizeof(tiles_));
    for (int tile = 0; tile < 8; ++tile) {
      require(config.rows[tile] <= 16 && config.row_bytes[tile] <= 64 && config.row_bytes[tile] % 4 == 0);
    }
  }

  template <int kTile>
  void zero() {
    require(config_.rows[kTile] > 0);
    std::memset(tiles_[kTile], 0, sizeof(tiles_[kTile]));
  }

  template <int kTile>
  void load(const void* from, int64_t stride) {
    require(config_.rows[kTile] > 0);
    std::memset(tiles_[kTile], 0, sizeof(tiles_[kTile]));
    for (int row = 0; row < config_.rows[kTile]; ++row) {
      std::memcpy(tiles_[kTile][row], static_cast<const char*>(from) + row * stride, config_.row_bytes[kTile]);
    }
  }

  template <int kTile>
  void store(void* to, int64_t stride) const {
    require(config_.rows[kTile] > 0);
    for (int row = 0; row < config_.rows[kTile]; ++row) {
      std::memcpy(static_cast<char*>(to) + row * stride, tiles_[kTile][row], config_.row_bytes[kTile]);
    }
  }

  // tdpbf16ps: the two halves of the words are summed separately with fused multiply-adds; both
  // sums are added up and then added to the tile.
  template <int kSums, int kLeft, int kRight>
  void multiply_add() {
    const int rows = config_.rows[kSums], cols = config_.row_bytes[kSums] / 4, depth = config_.rows[kRight];
    require(rows > 0 && cols > 0 && depth > 0 && config_.rows[kLeft] == rows);
    require(config_.row_bytes[kLeft] == 4 * depth && config_.row_bytes[kRight] == 4 * cols);
    for (int row = 0; row < rows; ++row) {
      for (int col = 0; col < cols; ++col) {
        float low = 0, high = 0;
        for (int k = 0; k < depth; ++k) {
          const uint32_t a = tiles_[kLeft][row][k], b = tiles_[kRight][k][col];
          low = flushed(std::fma(number(a << 16), number(b << 16), low));
          high = flushed(std::fma(number(a & 0xffff0000u), number(b & 0xffff0000u), high));
        }
        const float sum = flushed(number(tiles_[kSums][row][col]) + flushed(low + high));
        std::memcpy(&tiles_[kSums][row][col], &sum, sizeof(sum));
      }
    }
  }

 private:
  static void require(bool condition) {
    if (!condition) std::abort();
  }
  // Denormal operands and results are treated as zero.
  static float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
  static float number(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return flushed(x);
  }

  cpu::TileConfig config_;
  uint32_t tiles_[8][16][16];
};

}  // namespace cyclip::test
