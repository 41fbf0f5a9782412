// The emulator's interface to host code: the types of a launcher's signature, and the order in which threads
// run.

#pragma once

#include <cstdint>

namespace cyclip::cuda {

// Work is done when a launch returns, so there is nothing that a stream has to order.
using Stream = void*;

// Misuse throws std::runtime_error from the launch, so this is the only value.
enum Error : int { kSuccess = 0 };

}  // namespace cyclip::cuda

namespace cyclip::emulation {

// Which block, and of a block's threads that can go on, which one runs next. All of them give a warp the
// precedence until it waits for others: even turns would hide most missing barriers.
enum class Order {
  kAscending,
  kDescending,
  kRandom,  // precedence drawn from the seed, for the warps of a block anew at each barrier
};

// Sets the order of all later launches. Do not call it during a launch. The initial order is ascending.
void set_order(Order order, uint64_t seed = 0);

}  // namespace cyclip::emulation
