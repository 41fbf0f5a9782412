// The interface of the CPU kernels: argument structs, and a table of function pointers for each instruction set
// (isa/*.cpp), chosen at run time (dispatch.cpp).
//
// A tile is a small block of the similarity matrix (rows are images, columns are texts), still in
// the cache after the matrix product that wrote it. T is the compute type, float or double. Symbols
// follow docs/gradients.md: S cosine, s logit scale, z = s S, W softmax weight, G = dL/dS.

#pragma once

#include "../common.h"

namespace cyclip::cpu {

// The integer that is as wide as T: exponents of powers of two are stored and applied as integers.
template <typename T>
struct LaneOf;
template <>
struct LaneOf<float> {
  using Int = int32_t;
  using Unsigned = uint32_t;
};
template <>
struct LaneOf<double> {
  using Int = int64_t;
  using Unsigned = uint64_t;
};
template <typename T>
using LaneInt = typename LaneOf<T>::Int;

// Vector kernels read and write whole vectors at the right edge of a tile, so tile pitches and all
// per-column arrays are padded to a multiple of this many elements. The content of the padding is
// arbitrary.
inline constexpr int64_t kColumnPadding = 16;

constexpr int64_t padded(int64_t cols) { return (cols + kColumnPadding - 1) / kColumnPadding * kColumnPadding; }

// The part of the similarity matrix that one tile covers.
template <typename T>
struct Tile {
  const T* dots;           // [rows, pitch]; raw dot products <x_i, y_j>
  int64_t pitch;           // elements between rows, a multiple of kColumnPadding
  int64_t rows, cols;      //
  int64_t row_begin;       // global index of row 0
  int64_t col_begin;       // global index of column 0
  int64_t offset;          // the positive of global row i is global column i + offset
  const T* row_inv_norms;  // [rows]
  const T* col_inv_norms;  // [cols]
};

// An image and a text with equal labels belong together. Columns past the end have labels that no row has.
template <typename T>
struct Labels {
  const LaneInt<T>* row = nullptr;  // [rows]; null: there are no labels
  const LaneInt<T>* col = nullptr;  // [padded(cols)]
};

// z log2(e) = S (scale_hi + scale_lo): two terms, so that rounding s log2(e) to T costs nothing.
template <typename T>
struct Base2Scale {
  T hi, lo;
};

// Running statistics of some rows (or columns) over their negatives: sum_j 2^(z'_ij) = sum[i]
// 2^shift[i], and the largest cosine with its global index (-1 if there is none yet).
template <typename T>
struct NegativeStatistics {
  LaneInt<T>* shift;
  double* sum;
  T* hardest;
  LaneInt<T>* hardest_index;
};

template <typename T>
struct SoftmaxForward {
  Tile<T> tile;
  Base2Scale<T> scale;
  NegativeStatistics<T> row_statistics;  // [rows], updated
  NegativeStatistics<T> col_statistics;  // [cols], updated
  double* positive;                      // [rows], written for the rows whose positive is in the tile
  T* column_scratch;                     // [2, padded(cols)]
  bool needs_hardest;                    // otherwise the hardest negatives are not updated
  Labels<T> labels = {};                 // pairs of equal labels are not negatives
  bool same_are_positives = false;       // pairs of equal labels are in the sums, but never the hardest
};

// Weights W_ij = row_weight_i 2^(z'_ij - row_shift_i) + col_weight_j 2^(z'_ij - col_shift_j).
template <typename T>
struct SoftmaxWeights {
  const LaneInt<T>* row_shift;
  const T* row_weight;
  const LaneInt<T>* col_shift;
  const T* col_weight;
};

// dL/ds and, for the sigmoid loss, dL/db.
struct ScalarGradients {
  double scale = 0, bias = 0;
};

// The destination of a tile's H_ij = G_ij / (|x_i| |y_j|). It may overwrite the dot products.
template <typename T>
struct GradientTile {
  T* values;
  int64_t pitch;
};

template <typename T>
struct SoftmaxBackward {
  Tile<T> tile;
  GradientTile<T> gradient;
  Base2Scale<T> scale_base2;
  double scale;
  SoftmaxWeights<T> weights;
  ScalarGradients* scalars;  // added to
  Labels<T> labels = {};
};

template <typename T>
struct SigmoidForward {
  Tile<T> tile;
  double scale, bias;
  double* row_loss;  // [rows], added to
  Labels<T> labels = {};
  bool same_are_positives = false;  // pairs of equal labels are positives; otherwise they do not count
};

template <typename T>
struct SigmoidBackward {
  Tile<T> tile;
  GradientTile<T> gradient;
  double scale, bias;
  const double* row_grad;    // [rows], dL/d(row_loss)
  ScalarGradients* scalars;  // added to
  Labels<T> labels = {};
  bool same_are_positives = false;  // pairs of equal labels are positives; otherwise they do not count
};

// For each row and column, the largest cosine among its own entries (those with equal labels), or
// NaN if there is none yet.
template <typename T>
struct OwnBest {
  Tile<T> tile;
  Labels<T> labels;
  T* row_best;  // [rows], updated
  T* col_best;  // [cols], updated
};

// For each row and column, the number of foreign entries that are at least as large as its own
// best.
template <typename T>
struct ForeignCount {
  Tile<T> tile;
  Labels<T> labels;
  const T* row_best;      // [rows]
  const T* col_best;      // [cols]
  LaneInt<T>* row_count;  // [rows], added to
  LaneInt<T>* col_count;  // [cols], added to
};

// For each row, the `capacity` largest cosines in descending order, and their global columns. NaN
// marks a free entry.
template <typename T>
struct TopK {
  Tile<T> tile;
  T* cosines;  // [cols], scratch, padded
  int64_t capacity;
  T* values;            // [rows, capacity], updated
  LaneInt<T>* indices;  // [rows, capacity], updated
};

// The kernels of one instruction set.
template <typename T>
struct TileKernels {
  const char* isa;
  void (*softmax_forward)(const SoftmaxForward<T>&);
  void (*softmax_backward)(const SoftmaxBackward<T>&);
  void (*sigmoid_forward)(const SigmoidForward<T>&);
  void (*sigmoid_backward)(const SigmoidBackward<T>&);
  void (*own_best)(const OwnBest<T>&);
  void (*foreign_count)(const ForeignCount<T>&);
  void (*top_k)(const TopK<T>&);
};

// Returns the best table that this processor can run.
template <typename T>
const TileKernels<T>& tile_kernels();

}  // namespace cyclip::cpu
