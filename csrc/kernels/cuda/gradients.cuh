// The schedule of every pairwise loss from G = dL/dS to the gradients of the raw features.
//
// With H_ij = G_ij / (|x_i| |y_j|),
//
//     dL/dx_i = g_i - <g_i, x^_i> x^_i,    g_i = sum_j H_ij y_j        and the same for y.
//
// H is computed panel by panel, each as large as the workspace allows, by a kernel that recomputes
// the dot products. Two products consume the panel: H Y is added to the gradients of the panel's
// images, H' X to those of its texts.
//
// The positives are not in H. There is one in each row and column, they are the largest entries,
// and they have the opposite sign of all others, so rounding H to 16 bits would affect them most.
// The last kernel adds them in float32.

#pragma once

#include <cmath>

#include "product.cuh"
#include "sum_pairs.cuh"
#include "tower.cuh"

namespace cyclip::cuda {

// The arithmetic of the products with H. Gradients exceed the range of fp16. TF32 has the range of
// float and represents fp16 features exactly.
template <typename Math>
struct PanelMathOf {
  using Type = Math;
};
template <>
struct PanelMathOf<F16> {
  using Type = Tf32;
};
template <typename Math>
using PanelMath = typename PanelMathOf<Math>::Type;

template <typename Math>
__device__ inline typename Math::Element panel_entry(typename Math::Accumulator h) {
  if constexpr (std::is_same_v<Math, Tf32>) return round_to_tf32(h);
  return narrow<typename Math::Element>(h);
}

// A rectangle of H. Entries from its last column to the pitch, which is a multiple of a chunk, are
// zero.
template <typename Math>
struct Panel {
  using Element = typename Math::Element;

  Element* h;
  SumPair* sums;  // one for each block or, on the engine for compute capability 9.0a, for each warp
  int64_t row_begin, row_end;
  int64_t col_begin, col_end;
  int64_t pitch;

  bool is_first() const { return row_begin == 0 && col_begin == 0; }
  __host__ __device__ int64_t rows() const { return row_end - row_begin; }
  __host__ __device__ int64_t cols() const { return col_end - col_begin; }
  __device__ bool contains(int64_t row, int64_t col) const {
    return row >= row_begin && row < row_end && col >= col_begin && col < col_end;
  }
  __device__ Element* at(int64_t row, int64_t col) const {
    return h + (row - row_begin) * pitch + (col - col_begin);
  }

  Operand<Element> by_rows() const { return {h, rows(), cols(), pitch}; }
  Operand<Element> by_columns() const { return {h, cols(), rows(), pitch}; }
};

// The size of panels, which are as square as possible: each column of panels reads and writes the
// sums of all images once more, and each row of panels those of all texts.
struct PanelSize {
  static constexpr int64_t kUnit = 128, kMostRows = int64_t{1} << 20;  // both sides are multiples of the unit

  int64_t rows, cols;

  PanelSize(int64_t n, int64_t m, int64_t elements) {
    const auto whole_units = [](int64_t size) { return std::max(size / kUnit * kUnit, kUnit); };
    const int64_t side = whole_units(static_cast<int64_t>(std::sqrt(static_cast<double>(elements))));
    const int64_t most_rows = std::min(round_up(n, kUnit), kMostRows);
    cols = std::min(round_up(m, kUnit), whole_units(elements / std::min(most_rows, side)));
    rows = std::min(most_rows, whole_units(elements / cols));
  }

  // The number of tiles of a panel if they are the smaller ones.
  int64_t most_tiles() const { return (rows / 64) * (cols / 64); }
};

// dL/dS of the positives, [n]. The positive of row i is in column i + offset.
struct PositiveGradients {
  const double* values;
  int64_t offset;
};

// Finishes the gradient of the rows [begin, end) of a tower: adds up the parts of sum_j H_ij y_j,
// each [end - begin, d], adds the contribution of the positive, subtracts the projection and
// rounds.
template <typename Accumulator>
struct FinishGradient {
  const Accumulator* parts;
  int64_t part_count, part_size;
  int64_t begin, end;
  Features tower, partner;
  const double* norms;          // of the tower, [tower.rows]
  const double* partner_norms;  // [partner.rows]
  PositiveGradients positives;
  bool tower_is_text;
  void* gradient;  // [tower.rows, d] in the type of the features
};
template <typename Accumulator>
Error launch_finish_gradient(const FinishGradient<Accumulator>& args, const Context& context);

// Arguments common to the backward operators of all pairwise losses.
struct PairwiseGradients {
  Features image, text;
  PositiveGradients positives;
  void* image_grad;  // null: not computed
  void* text_grad;
};

// fill(panel, tower of images, tower of texts) launches the kernel that fills a panel.
template <typename Math, typename Fill>
Error launch_feature_gradients(const PairwiseGradients& args, const Context& context, const Fill& fill) {
  using PanelM = PanelMath<Math>;
  using Element = typename PanelM::Element;
  using Accumulator = typename PanelM::Accumulator;
  const int64_t n = args.image.rows, m = args.text.rows, d = args.image.d;
  Workspace& workspace = context.workspace;

  Tower<Math> image, text;
  CYCLIP_TRY(prepare_tower(args.image, context, &image));
  CYCLIP_TRY(prepare_tower(args.text, context, &text));
  Tower<PanelM> panel_image, panel_text;  // the same towers, or converted for the products with H
  if constexpr (std::is_same_v<Math, PanelM>) {
    panel_image = image;
    panel_text = text;
  } else {
    CYCLIP_TRY(prepare_tower(args.image, context, &panel_image));
    CYCLIP_TRY(prepare_tower(args.text, context, &panel_text));
  }

  const PanelSize size(n, m, context.panel_bytes / static_cast<int64_t>(sizeof(Element)));
  Element* h = workspace.take<Element>(size.rows * size.cols);
  SumPair* sums = workspace.take<SumPair>(size.most_tiles());
  const int64_t image_parts = depth_parts(size.rows, d, size.cols), image_part_size = size.rows * d;
  const int64_t text_parts = depth_parts(size.cols, d, size.rows), text_part_size = m * d;
  Accumulator* image_sums = args.image_grad ? workspace.take<Accumulator>(image_parts * image_part_size) : nullptr;
  Accumulator* text_sums = args.text_grad ? workspace.take<Accumulator>(text_parts * text_part_size) : nullptr;

  for (int64_t row = 0; row < n; row += size.rows) {
    const int64_t row_end = std::min(n, row + size.rows);
    for (int64_t col = 0; col < m; col += size.cols) {
      const Panel<PanelM> panel = {h, sums, row, row_end, col, std::min(m, col + size.cols), size.cols};
      CYCLIP_TRY(fill(panel, image, text));
      if (args.image_grad) {
        CYCLIP_TRY((launch_product<PanelM, Layout::kAlongDepth, Layout::kAcrossDepth>(
            {panel.by_rows(), panel_text.by_columns(col, panel.col_end), image_sums, d, image_parts,
             image_part_size,
             /*accumulate=*/col > 0},
            context)));
      }
      if (args.text_grad) {
        CYCLIP_TRY((launch_product<PanelM, Layout::kAcrossDepth, Layout::kAcrossDepth>(
            {panel.by_columns(), panel_image.by_columns(row, row_end), text_sums + col * d, d, text_parts,
             text_part_size, /*accumulate=*/row > 0},
            context)));
      }
    }
    if (args.image_grad) {
      CYCLIP_TRY(launch_finish_gradient<Accumulator>(
          {image_sums, image_parts, image_part_size, row, row_end, args.image, args.text, image.norms, text.norms,
           args.positives, /*tower_is_text=*/false, args.image_grad},
          context));
    }
  }
  if (!args.text_grad) return kSuccess;
  return launch_finish_gradient<Accumulator>(
      {text_sums, text_parts, text_part_size, 0, m, args.text, args.image, text.norms, image.norms, args.positives,
       /*tower_is_text=*/true, args.text_grad},
      context);
}

}  // namespace cyclip::cuda
