// Helpers of the emulator's tests.

#pragma once

#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/cuda/primitives.cuh"

namespace cyclip::test {

inline void check(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("%s\n", what.c_str());
  ++failures;
}

// The work must fail with a message that contains all the parts.
inline void check_throws(const std::function<void()>& work, const std::vector<std::string>& parts,
                         const std::string& what) {
  try {
    work();
  } catch (const std::runtime_error& error) {
    for (const std::string& part : parts) {
      check(std::strstr(error.what(), part.c_str()) != nullptr,
            what + ": expected '" + part + "' in '" + error.what() + "'");
    }
    return;
  }
  check(false, what + ": no error");
}

struct NamedOrder {
  emulation::Order order;
  uint64_t seed;
  std::string name;
};

inline std::vector<NamedOrder> orders() {
  using emulation::Order;
  std::vector<NamedOrder> all = {{Order::kAscending, 0, "ascending"}, {Order::kDescending, 0, "descending"}};
  for (uint64_t seed = 1; seed <= 4; ++seed)
    all.push_back({Order::kRandom, seed, "random " + std::to_string(seed)});
  return all;
}

// The results of the work, one per order.
template <typename Work>
auto in_orders(const std::vector<NamedOrder>& orders, const Work& work) {
  std::vector<decltype(work())> results;
  for (const NamedOrder& order : orders) {
    emulation::set_order(order.order, order.seed);
    results.push_back(work());
  }
  emulation::set_order(emulation::Order::kAscending);
  return results;
}

template <typename Work>
auto in_all_orders(const Work& work) {
  return in_orders(orders(), work);
}

}  // namespace cyclip::test
