// Divides the similarity matrix of two towers into tiles.
//
// Sizes depend only on the shape. Another number of threads then runs the same products and adds
// the same partial sums in the same order, so results agree bit for bit.

#pragma once

#include "../../kernels/common.h"
#include "products.h"

namespace cyclip::cpu {

// The columns of a tile are a multiple of this number, which is a multiple of every product
// kernel's panel.
inline constexpr int64_t kTileColumns = 128;

// Smaller blocks may stay with the allocator, which uses them again.
inline constexpr int64_t kHugeBytes = int64_t{32} << 20;

// A tile of T stays in a core's second-level cache, together with its features.
inline int64_t tile_rows_for(int64_t rows) { return rows >= 1024 ? 128 : rows >= 128 ? 64 : 32; }
inline int64_t tile_cols_for(int64_t cols) { return cols >= 2048 ? 512 : cols >= 512 ? 256 : 128; }

// z' = S s log2(e), with s log2(e) split into two terms of T.
template <typename T>
Base2Scale<T> base2_scale(double scale) {
  const double value = usable_scale(scale) * kLog2e;
  const T hi = static_cast<T>(value);
  return {hi, static_cast<T>(value - static_cast<double>(hi))};
}

template <typename Products>
using NumberOf = typename Products::Number;

// The tile whose dot products are at `dots`.
template <typename Products, typename T = NumberOf<Products>>
Tile<T> make_tile(const Products& products, const TileRange& range, int64_t offset, const T* dots, int64_t pitch) {
  return {dots,
          pitch,
          range.row_end - range.row_begin,
          range.col_end - range.col_begin,
          range.row_begin,
          range.col_begin,
          offset,
          products.image.inv_norms.data() + range.row_begin,
          products.text.inv_norms.data() + range.col_begin};
}

// The dot products of all pairs, which the forward pass may store for the backward pass. They are
// an output of the operator, [rows, cols rounded up to kTileColumns], or empty if they are not
// stored. Tiles are stored one after another, each with its own pitch: rows of a whole matrix would
// be a power of two apart and evict each other from the cache.
template <typename T>
class KeptDots {
 public:
  KeptDots(int64_t rows, int64_t cols, int64_t keep_bytes) : KeptDots(rows, cols) {
    const bool kept = rows_ * width_ <= keep_bytes / int64_t{sizeof(T)};
    tensor_ = kept ? empty<T>({rows_, width_}) : empty<T>({0, 0});
    if (tensor_.numel() * int64_t{sizeof(T)} >= kHugeBytes) {
      allow_huge_pages(tensor_.mutable_data_ptr(), tensor_.numel() * int64_t{sizeof(T)});
    }
    if (kept && cols < width_) clear_last_columns();
  }

  // Wraps the output of the forward pass for the backward pass.
  KeptDots(int64_t rows, int64_t cols, const Tensor& dots) : KeptDots(rows, cols) {
    tensor_ = dots;
    STD_TORCH_CHECK(
        dots.scalar_type() == kDtype<T> && dots.is_contiguous() && (is_empty() || dots.numel() == rows_ * width_),
        "dots must be the output of the forward operator for these features, got shape ", shape_of(dots));
  }

  bool is_empty() const { return tensor_.numel() == 0; }
  // The pitch and the address of a range within one tile.
  int64_t pitch(const TileRange& range) const {
    return std::min(tile_cols_, width_ - range.col_begin / tile_cols_ * tile_cols_);
  }
  T* at(const TileRange& range) const {
    const int64_t first_row = range.row_begin / tile_rows_ * tile_rows_;
    const int64_t first_col = range.col_begin / tile_cols_ * tile_cols_;
    const int64_t tile_rows = std::min(tile_rows_, rows_ - first_row);
    return tensor_.template mutable_data_ptr<T>() + first_row * width_ + first_col * tile_rows +
           (range.row_begin - first_row) * pitch(range);
  }
  const Tensor& tensor() const { return tensor_; }

 private:
  KeptDots(int64_t rows, int64_t cols)
      : tile_rows_(tile_rows_for(rows)),
        tile_cols_(tile_cols_for(cols)),
        rows_(rows),
        width_(round_up(cols, kTileColumns)) {}

  // Clears the columns that no product writes, because an output of an operator must not contain
  // undefined bits.
  void clear_last_columns() {
    for (int64_t row = 0; row < rows_; row += tile_rows_) {
      const TileRange last = {row, std::min(row + tile_rows_, rows_), (width_ - 1) / tile_cols_ * tile_cols_,
                              width_};
      std::fill_n(at(last), (last.row_end - last.row_begin) * pitch(last), T(0));
    }
  }

  int64_t tile_rows_, tile_cols_, rows_, width_;
  Tensor tensor_;
};

// The forward schedule. The matrix is divided into at most 8 x 8 regions of whole tiles. A region
// is one task, which owns a partial result per row and per column. Each row or column has at most 8
// of them, so memory stays linear.
struct Regions {
  static constexpr int64_t kMost = 8;  // in each direction

  int64_t rows, cols;  // of the matrix
  int64_t tile_rows, tile_cols;
  int64_t down, across;  // number of regions
  int64_t region_rows, region_cols;

  Regions(int64_t rows, int64_t cols)
      : rows(rows), cols(cols), tile_rows(tile_rows_for(rows)), tile_cols(tile_cols_for(cols)) {
    region_rows = round_up(ceil_div(rows, kMost), tile_rows);
    region_cols = round_up(ceil_div(cols, kMost), tile_cols);
    down = ceil_div(rows, region_rows);
    across = ceil_div(cols, region_cols);
  }

  // Calls visit(down index, across index, tile) for each tile. Tiles of one region come in order,
  // from left to right and then down, on one thread. The dot products are stored in `kept` unless
  // it is empty; if `are_computed`, they are already stored there.
  template <typename Products, typename T = NumberOf<Products>, typename Visit>
  void for_each_tile(const Products& products, int64_t offset, const KeptDots<T>& kept, const Visit& visit,
                     bool are_computed = false) const {
    for_each_task(down * across, [&](int64_t region) {
      const int64_t i = region / across, j = region % across;
      Buffer<T> values(kept.is_empty() ? tile_rows * tile_cols : 0);
      const int64_t last_row = std::min(rows, (i + 1) * region_rows);
      const int64_t last_col = std::min(cols, (j + 1) * region_cols);
      for (int64_t row = i * region_rows; row < last_row; row += tile_rows) {
        for (int64_t col = j * region_cols; col < last_col; col += tile_cols) {
          const TileRange range = {row, std::min(row + tile_rows, last_row), col,
                                   std::min(col + tile_cols, last_col)};
          T* dots = kept.is_empty() ? values.data() : kept.at(range);
          const int64_t pitch = kept.is_empty() ? tile_cols : kept.pitch(range);
          if (!are_computed) products.dots(range, dots, pitch);
          visit(i, j, make_tile(products, range, offset, dots, pitch));
        }
      }
    });
  }
};

}  // namespace cyclip::cpu
