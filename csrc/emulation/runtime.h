// The emulator's interface to host code: the types of a launcher's signature, and the order in which threads
// run.

#pragma once

#include <cstdint>

namespace cyclip::cuda {

// Work is complete when a launch returns, so streams have nothing to order.
using Stream = void*;

// Misuse throws std::runtime_error from the launch.
enum Error : int { kSuccess = 0, kInvalidValue = 1 };

}  // namespace cyclip::cuda

namespace cyclip::emulation {

// The order of blocks, and of the threads of a block that can run. A warp runs until it waits for
// others, in every order: alternating evenly would hide most missing barriers.
enum class Order {
  kAscending,
  kDescending,
  kRandom,  // by the seed; the warps of a block get a new order at each barrier
};

// Applies to all later launches. Must not be called during a launch. The initial order is
// ascending.
void set_order(Order order, uint64_t seed = 0);

// The number of launches of kernels for compute capability 9.0a so far.
int64_t hopper_launches();

}  // namespace cyclip::emulation
