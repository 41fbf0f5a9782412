// The operators of torch.ops.cyclip_ext on the GPU, without torch: they take raw device pointers
// and sizes and launch a sequence of kernels. docs/losses.md, docs/gradients.md and docs/cycle.md
// describe the formulas. csrc/ops/cuda and the emulator's Python module include only this header.
//
// Nothing here waits for the device, reads from it, or allocates except through the Workspace, so a
// call can be captured in a CUDA graph. Sizes may be odd. The caller has checked the arguments:
// rows and d are at least 1, rows below 2^31, offsets within +-2^31. All pointers are device
// pointers, aligned to their type. Every element of an output is written.

#pragma once

#include <cstdint>

#ifdef CYCLIP_EMULATE
#include "../../emulation/runtime.h"
#else
#include <cuda_runtime_api.h>
namespace cyclip::cuda {
using Stream = cudaStream_t;
using Error = cudaError_t;
}  // namespace cyclip::cuda
#endif

namespace cyclip::cuda {

enum class ElementType { kBFloat16, kFloat16, kFloat32, kFloat64 };

// One tower's features: rows of d elements, with `pitch` elements from one row to the next.
struct Features {
  const void* data;
  ElementType type;
  int64_t rows, d, pitch;
};

// Scratch memory on the device: 256-byte aligned, uninitialized, and valid until the work that is
// enqueued on the stream is done. It comes from torch's caching allocator, or is plain memory under
// emulation.
class Workspace {
 public:
  virtual ~Workspace() = default;
  virtual void* allocate(int64_t bytes) = 0;

  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T))));
  }
};

struct Context {
  Workspace& workspace;
  Stream stream;
  bool allow_tf32 = false;  // round float32 features to TF32 in products
  // The most bytes that a panel of gradients may take. Smaller panels mean more launches.
  int64_t panel_bytes = int64_t{256} << 20;
  // The number of 128 x 128 tiles from which on a product is divided into these and not into 64 x
  // 64 tiles.
  int64_t large_tiles = 128;
  // The number of pairs of 128 x 128 tiles from which on 16-bit similarities are computed in pairs. They are
  // coarser, so each multiprocessor should get several.
  int64_t tile_pairs = 512;
  // Whether the device has no tensor cores for float64. Then the Gram route of the cycle terms multiplies in
  // float32, unless the features are float64.
  bool float64_is_slow = false;
  // The number of blocks of the engine for compute capability 9.0a, or 0 to use the portable engine only.
  int64_t hopper_blocks = 0;
};

// Whether the driver can encode the tensor maps that the engine for compute capability 9.0a needs.
bool hopper_is_available();

// norms[i] = max(|x_i|, 1e-12), in double for float64 features and in float for all others.
Error launch_row_norms_forward(const Features& features, void* norms, const Context& context);

// The positive of row i is column i + offset. Other pairs of equal labels are not negatives, if labels are given.
struct PairStatisticsForward {
  Features image, text;  // [n, d], [m, d]
  const double* logit_scale;
  int64_t offset;
  double* row_lse;             // [n]
  double* col_lse;             // [m]
  double* positive;            // [n], 0 if it lies outside the matrix
  double* row_hardest;         // [n]
  double* col_hardest;         // [m]
  int64_t* row_hardest_index;  // [n], -1 without negatives
  int64_t* col_hardest_index;  // [m]
  // If false, the hardest negatives are not computed: -inf and -1, as without negatives.
  bool needs_hardest = true;
  const int64_t* row_labels = nullptr;  // [n], null: no labels
  const int64_t* col_labels = nullptr;  // [m]
  // Pairs of equal labels are in the sums, but never the hardest negative. Otherwise they do not count.
  bool same_are_positives = false;
};
Error launch_pair_statistics_forward(const PairStatisticsForward& args, const Context& context);

struct PairStatisticsBackward {
  Features image, text;
  const double* logit_scale;
  int64_t offset;
  const double* row_lse;             // [n]; this and the next three are results of the forward operator
  const double* col_lse;             // [m]
  const int64_t* row_hardest_index;  // [n]
  const int64_t* col_hardest_index;  // [m]
  const double* grad_row_lse;        // [n]; upstream gradients
  const double* grad_col_lse;        // [m]
  const double* grad_positive;       // [n]
  const double* grad_row_hardest;    // [n]
  const double* grad_col_hardest;    // [m]
  void* image_grad;                  // [n, d] in the type of the features, dense; null: not computed
  void* text_grad;                   // [m, d]
  double* logit_scale_grad;          // [1]
  const int64_t* row_labels = nullptr;
  const int64_t* col_labels = nullptr;
};
Error launch_pair_statistics_backward(const PairStatisticsBackward& args, const Context& context);

struct SigmoidRowsForward {
  Features image, text;
  const double* logit_scale;
  const double* logit_bias;
  int64_t offset;
  double* row_loss;  // [n]
  const int64_t* row_labels = nullptr;
  const int64_t* col_labels = nullptr;
  // Pairs of equal labels are positives. Otherwise they do not count.
  bool same_are_positives = false;
};
Error launch_sigmoid_rows_forward(const SigmoidRowsForward& args, const Context& context);

struct SigmoidRowsBackward {
  Features image, text;
  const double* logit_scale;
  const double* logit_bias;
  int64_t offset;
  const double* grad_rows;  // [n]
  void* image_grad;         // as in PairStatisticsBackward
  void* text_grad;
  double* logit_scale_grad;  // [1]
  double* logit_bias_grad;   // [1]
  const int64_t* row_labels = nullptr;
  const int64_t* col_labels = nullptr;
  bool same_are_positives = false;
};
Error launch_sigmoid_rows_backward(const SigmoidRowsBackward& args, const Context& context);

struct CycleGramsForward {
  Features image, text;  // [n, d] both
  double* plus_gram;     // [d, d]
  double* minus_gram;    // [d, d]
  double* cross_gram;    // [d, d], or null: not computed
};
Error launch_cycle_grams_forward(const CycleGramsForward& args, const Context& context);

struct CycleGramsBackward {
  Features image, text;
  const double* grad_plus_gram;   // [d, d], dense
  const double* grad_minus_gram;  // [d, d]
  const double* grad_cross_gram;  // [d, d], or null: zero
  void* image_grad;               // [n, d] in the type of the features, dense
  void* text_grad;                // [n, d]
};
Error launch_cycle_grams_backward(const CycleGramsBackward& args, const Context& context);

struct CycleDirectForward {
  Features image, text;     // [n, d] both
  double* in_modal_sum;     // [1]
  double* cross_modal_sum;  // [1]
};
Error launch_cycle_direct_forward(const CycleDirectForward& args, const Context& context);

struct CycleDirectBackward {
  Features image, text;
  const double* grad_in_modal_sum;     // [1]
  const double* grad_cross_modal_sum;  // [1]
  void* image_grad;                    // [n, d] in the type of the features, dense
  void* text_grad;                     // [n, d]
};
Error launch_cycle_direct_backward(const CycleDirectBackward& args, const Context& context);

// An image and a text belong together if their labels are equal. row_rank[i] is the number of texts
// with other labels that are at least as similar to image i as the most similar text with its own
// label, or -1 if there is none. col_rank[j] is the same for text j among the images. A similarity
// that is NaN counts as -inf.
struct RetrievalRanksForward {
  Features image, text;         // [n, d], [m, d]
  const int64_t* image_labels;  // [n]
  const int64_t* text_labels;   // [m]
  int64_t* row_rank;            // [n]
  int64_t* col_rank;            // [m]
};
Error launch_retrieval_ranks_forward(const RetrievalRanksForward& args, const Context& context);

// The k most similar candidates of each query, in descending order; the first of several equal
// candidates comes first. 1 <= k <= m. A similarity that is NaN counts as -inf.
struct SimilarityTopKForward {
  Features query, candidate;  // [n, d], [m, d]
  int64_t k;
  double* values;    // [n, k]
  int64_t* indices;  // [n, k]
};
Error launch_similarity_top_k_forward(const SimilarityTopKForward& args, const Context& context);

}  // namespace cyclip::cuda
