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
