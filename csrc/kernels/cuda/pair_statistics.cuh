// Softmax statistics of the negatives of one line, and the memory for those of parts of lines.

#pragma once

#include "cosines.cuh"
#include "host.h"

namespace cyclip::cuda {

// Statistics of some negatives of one line: sum 2^(z') = sum 2^shift, and the largest cosine with
// its index, the first of several equal ones.
template <typename T>
struct Statistics {
  int shift = kNoShift;
  double sum = 0;
  T hardest = kMasked<T>;
  int index = -1;

  // Adds other negatives of the line.
  __device__ void append(const Statistics& other) {
    const int common = shift > other.shift ? shift : other.shift;
    sum = sum * power_of_two(shift - common) + other.sum * power_of_two(other.shift - common);
    shift = common;
    if (other.hardest > hardest || (other.hardest == hardest && other.index < index)) {
      hardest = other.hardest;
      index = other.index;
    }
  }
};

// Partial statistics of one side of the matrix, [parts][size]. Without `hardest`, no memory is
// reserved for the hardest negatives.
template <typename T, bool kHardest>
struct Partials {
  int* shift;
  double* sum;
  T* hardest;
  int* index;
  int64_t size;

  static Partials allocate(int64_t parts, int64_t size, Workspace& workspace) {
    const int64_t hardest_count = kHardest ? parts * size : 0;
    return {workspace.take<int>(parts * size), workspace.take<double>(parts * size),
            workspace.take<T>(hardest_count), workspace.take<int>(hardest_count), size};
  }

  __device__ Statistics<T> load(int64_t part, int64_t line) const {
    const int64_t i = part * size + line;
    if constexpr (kHardest) return {shift[i], sum[i], hardest[i], index[i]};
    return {shift[i], sum[i]};
  }
  __device__ void store(int64_t part, int64_t line, const Statistics<T>& statistics) const {
    const int64_t i = part * size + line;
    shift[i] = statistics.shift;
    sum[i] = statistics.sum;
    if constexpr (kHardest) {
      hardest[i] = statistics.hardest;
      index[i] = statistics.index;
    }
  }
};

template <typename T>
struct Candidate {
  T value;
  int index;
};

// Returns the larger one, or the first of two equal ones. NaN is never larger.
struct Harder {
  template <typename T>
  __device__ Candidate<T> operator()(const Candidate<T>& a, const Candidate<T>& b) const {
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
  }
};

template <typename T>
__device__ inline Candidate<T> shuffle_xor(const Candidate<T>& candidate, int mask) {
  return {cuda::shuffle_xor(candidate.value, mask), cuda::shuffle_xor(candidate.index, mask)};
}

// Some values: the largest one, and the pair of neighbours that holds it.
template <typename T>
struct BestPair {
  T largest, first;  // of the values; of the pair
  int position;      // of the pair's first value
};

// The best of the values [begin, begin + kCount), the first of several equal ones. NaN is never the
// largest of values that are not all NaN.
template <int kCount, typename T, typename ValueAt, typename PositionOf>
__device__ inline BestPair<T> best_pair(int begin, const ValueAt& value_at, const PositionOf& position_of) {
  if constexpr (kCount == 2) {
    const T first = value_at(begin);
    return {Largest{}(first, value_at(begin + 1)), first, position_of(begin)};
  } else {
    const auto left = best_pair<kCount / 2, T>(begin, value_at, position_of);
    const auto right = best_pair<kCount / 2, T>(begin + kCount / 2, value_at, position_of);
    const T largest = Largest{}(left.largest, right.largest);
    const bool is_left = left.largest == largest;
    return {largest, is_left ? left.first : right.first, is_left ? left.position : right.position};
  }
}

// The largest value of a thread's part of a line. The position is arbitrary if all values are masked. It takes
// fewer instructions than to carry the position from value to value.
template <int kCount, typename T, typename ValueAt, typename PositionOf>
__device__ inline Candidate<T> hardest_of_part(const ValueAt& value_at, const PositionOf& position_of) {
  const auto best = best_pair<kCount, T>(0, value_at, position_of);
  const int step = best.first == best.largest ? 0 : position_of(1) - position_of(0);
  return {best.largest, best.position + step};
}

// Blocks are small, so that a matrix of a few thousand lines occupies all multiprocessors.
inline constexpr int kMergeThreads = 64;

template <typename T, bool kHardest>
struct MergeSide {
  Partials<T, kHardest> partials;
  int64_t parts;
  double* lse;
  double* hardest;
  int64_t* hardest_index;

  __host__ __device__ int64_t blocks() const { return ceil_div(partials.size, kMergeThreads); }
};

template <typename T, bool kHardest>
Error launch_merge_statistics(const MergeSide<T, kHardest>& rows, const MergeSide<T, kHardest>& cols,
                              const Context& context);

}  // namespace cyclip::cuda
