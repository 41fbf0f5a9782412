// The products of a pairwise loss, in two precisions: dot products of all pairs, and the gradients
// of both towers from a panel of H.
//
//   ExactProducts<T>  T = float or double throughout; 16-bit features are widened
//   Bf16Products      bfloat16 features, exact products with sums in float; H rounded to bfloat16

#pragma once

#include <optional>
#include <utility>

#include "../../kernels/cpu/bf16.h"
#include "features.h"
#include "gemm.h"

namespace cyclip::cpu {

// A part of the similarity matrix.
struct TileRange {
  int64_t row_begin, row_end, col_begin, col_end;
};

template <typename T>
class ExactProducts {
 public:
  using Number = T;

  ExactProducts(const Tensor& image_features, const Tensor& text_features, bool needs_dots)
      : image(image_features), text(text_features) {
    if (kernel_ && needs_dots) panels_.emplace(*kernel_, text.block(0, text.rows).transposed());
  }

  const Features<T> image, text;

  // <x_i, y_j> of the range into out [rows, pitch].
  void dots(const TileRange& range, T* out, int64_t pitch) const {
    const int64_t rows = range.row_end - range.row_begin, cols = range.col_end - range.col_begin, d = image.d;
    const Matrix<const T> a = image.block(range.row_begin, range.row_end);
    if (!kernel_) {
      const Matrix<const T> b = text.block(range.col_begin, range.col_end).transposed();
      return library_product<T>({out, rows, cols, pitch}, a, b, false);
    }
    run_product<T>(
        *kernel_,
        {{a.data, d, 1}, panels_->from(range.col_begin), out, pitch, rows, d, panels_->count(cols), false});
  }

  // Some rows of H, all columns.
  class Panel {
   public:
    Panel(const ExactProducts& products, int64_t rows, int64_t pitch, int64_t /*tile_rows*/, int64_t /*tile_cols*/)
        : products_(products), pitch_(pitch), data_(rows * pitch) {}

    // write(values, pitch) writes the tile at this position.
    template <typename Write>
    void write_tile(int64_t row, int64_t col, int64_t /*rows*/, int64_t /*cols*/, const Write& write) {
      write(data_.data() + row * pitch_ + col, pitch_);
    }

    // out = H Y for these rows of the panel.
    void image_gradient(int64_t begin, int64_t end, T* out) const {
      const Features<T>& text = products_.text;
      const Matrix<const T> h = {data_.data() + begin * pitch_, end - begin, text.rows, pitch_};
      gemm<T>({out, end - begin, text.d, text.d}, h, text.block(0, text.rows));
    }

    // out = H' X, or out += H' X, for these texts. The panel belongs to the `rows` images from
    // `first` on.
    void text_gradient(int64_t begin, int64_t end, int64_t first, int64_t rows, T* out) const {
      const Features<T>& image = products_.image;
      const Matrix<const T> h = {data_.data() + begin, rows, end - begin, pitch_};
      gemm<T>({out, end - begin, image.d, image.d}, h.transposed(), image.block(first, first + rows),
              /*accumulate=*/first > 0);
    }

   private:
    const ExactProducts& products_;
    int64_t pitch_;
    Buffer<T> data_;
  };

 private:
  const ProductKernel<T>* kernel_ = product_kernel<T>();
  std::optional<Panels<T>> panels_;  // of the transposed texts
};

// The words of features along their rows. For an even width these are the features themselves.
class RowWords {
 public:
  explicit RowWords(const Features<Bf16>& features) : rows_(features.rows), depth_(ceil_div(features.d, 2)) {
    if (features.d % 2 == 0) {
      data_ = reinterpret_cast<const Bf16Pair*>(features.data);
      return;
    }
    padded_.emplace(features.rows * depth_);
    for_each_block(features.rows, row_block(features.rows), [&](int64_t begin, int64_t end) {
      pair_columns(features.row(begin), end - begin, features.d, padded_->data() + begin * depth_);
    });
    data_ = padded_->data();
  }

  int64_t depth() const { return depth_; }
  const Bf16Pair* row(int64_t i) const { return data_ + i * depth_; }
  Matrix<const Bf16Pair> matrix() const { return {data_, rows_, depth_, depth_}; }

 private:
  int64_t rows_, depth_;
  std::optional<Buffer<Bf16Pair>> padded_;
  const Bf16Pair* data_;
};

// Rows of a right operand in panels of words, each a pair of rows 2k and 2k + 1.
class PairedRows {
 public:
  explicit PairedRows(const Features<Bf16>& features) : PairedRows(features.rows, features.d) {
    for_each_pair([&](int64_t begin, int64_t end, Bf16Pair* to) {
      pair_rows(features.row(begin), end - begin, d_, panel_cols(), stride_, to);
    });
  }

  // Rounds the rows to bfloat16.
  PairedRows(const float* data, int64_t rows, int64_t d) : PairedRows(rows, d) {
    for_each_pair([&](int64_t begin, int64_t end, Bf16Pair* to) {
      bf16_kernels()->round_rows(data + begin * d, end - begin, d, panel_cols(), stride_, to);
    });
  }

  int64_t depth() const { return depth_; }

  // out = left times the words from `first` on, or out += that product; out is [rows, d].
  void product(const LeftOperand<Bf16Pair>& left, int64_t first, int64_t rows, int64_t depth, bool accumulate,
               float* out) const {
    const ProductKernel<Bf16Pair>& kernel = bf16_kernels()->product;
    const RightOperand<Bf16Pair> right = {pairs_.data() + first * panel_cols(), panel_cols(), stride_};
    const int64_t width = round_up(d_, panel_cols()), panels = width / panel_cols();
    if (width == d_) return run_product(kernel, {left, right, out, d_, rows, depth, panels, accumulate});
    Buffer<float> wide(rows * width);  // the last panel is wider than the output
    run_product(kernel, {left, right, wide.data(), width, rows, depth, panels, false});
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < d_; ++k) {
        out[row * d_ + k] = wide[row * width + k] + (accumulate ? out[row * d_ + k] : 0);
      }
    }
  }

 private:
  PairedRows(int64_t rows, int64_t d)
      : rows_(rows),
        d_(d),
        depth_(ceil_div(rows, 2)),
        stride_(depth_ * panel_cols()),
        pairs_(depth_ * round_up(d, panel_cols())) {}

  template <typename Fill>
  void for_each_pair(const Fill& fill) {
    for_each_block(rows_, row_block(rows_), [&](int64_t begin, int64_t end) {
      fill(begin, end, pairs_.data() + begin / 2 * panel_cols());
    });
  }

  static int64_t panel_cols() { return bf16_kernels()->product.panel_cols; }

  int64_t rows_, d_, depth_, stride_;
  Buffer<Bf16Pair> pairs_;
};

// Some rows of a matrix H, all columns, rounded to bfloat16. H is paired along its rows for one
// product and along its columns for the other.
class Bf16Panel {
 public:
  Bf16Panel(PairedRows image, PairedRows text, int64_t rows, int64_t pitch, int64_t tile_rows, int64_t tile_cols)
      : image_(std::move(image)),
        text_(std::move(text)),
        pitch_(pitch),
        tile_rows_(tile_rows),
        tile_cols_(tile_cols),
        by_row_(rows * pitch / 2),
        by_column_(ceil_div(rows, 2) * pitch) {}

  // write(values, pitch) writes the tile at this position.
  template <typename Write>
  void write_tile(int64_t row, int64_t col, int64_t rows, int64_t cols, const Write& write) {
    Buffer<float> tile(tile_rows_ * tile_cols_);
    write(tile.data(), tile_cols_);
    bf16_kernels()->round_tile({tile.data(), tile_cols_, rows, cols, by_row_.data() + (row * pitch_ + col) / 2,
                                pitch_ / 2, by_column_.data() + row / 2 * pitch_ + col, pitch_});
  }

  // As those of the panel of ExactProducts.
  void image_gradient(int64_t begin, int64_t end, float* out) const {
    text_.product({by_row_.data() + begin * pitch_ / 2, pitch_ / 2, 1}, 0, end - begin, text_.depth(), false, out);
  }

  void text_gradient(int64_t begin, int64_t end, int64_t first, int64_t rows, float* out) const {
    image_.product({by_column_.data() + begin, 1, pitch_}, first / 2, end - begin, ceil_div(rows, 2), first > 0,
                   out);
  }

 private:
  PairedRows image_, text_;
  int64_t pitch_, tile_rows_, tile_cols_;
  Buffer<Bf16Pair> by_row_, by_column_;
};

class Bf16Products {
 public:
  using Number = float;

  // Requires bf16_kernels() and bfloat16 features.
  Bf16Products(const Tensor& image_features, const Tensor& text_features, bool needs_dots)
      : image(image_features), text(text_features) {
    if (!needs_dots) return;
    image_words_.emplace(image);
    const RowWords text_words(text);
    text_panels_.emplace(kernel(), text_words.matrix().transposed());
  }

  const Features<Bf16> image, text;

  void dots(const TileRange& range, float* out, int64_t pitch) const {
    const int64_t rows = range.row_end - range.row_begin, cols = range.col_end - range.col_begin;
    const int64_t depth = image_words_->depth();
    run_product(kernel(), {{image_words_->row(range.row_begin), depth, 1},
                           text_panels_->from(range.col_begin),
                           out,
                           pitch,
                           rows,
                           depth,
                           text_panels_->count(cols),
                           false});
  }

  struct Panel : Bf16Panel {
    Panel(const Bf16Products& products, int64_t rows, int64_t pitch, int64_t tile_rows, int64_t tile_cols)
        : Bf16Panel(PairedRows(products.image), PairedRows(products.text), rows, pitch, tile_rows, tile_cols) {}
  };

 private:
  static const ProductKernel<Bf16Pair>& kernel() { return bf16_kernels()->product; }

  std::optional<RowWords> image_words_;
  std::optional<Panels<Bf16Pair>> text_panels_;
};

struct ProductOptions {
  bool allow_bf16 = false;  // float32 features may be rounded to bfloat16 before the loss
  bool needs_dots = true;   // false if the forward pass stored them
};

// Calls f with the products for these features. Processors without bfloat16 instructions multiply
// in float32.
template <typename F>
auto with_products(const Tensor& image_features, const Tensor& text_features, const ProductOptions& options,
                   const F& f) {
  const ScalarType dtype = image_features.scalar_type();
  if (dtype == ScalarType::Double) {
    return f(ExactProducts<double>(image_features, text_features, options.needs_dots));
  }
  const bool rounds = options.allow_bf16 && dtype == ScalarType::Float;
  const auto rounded = [&](const Tensor& features) {
    return rounds ? torch::stable::to(features, ScalarType::BFloat16) : features;
  };
  const Tensor image = rounded(image_features), text = rounded(text_features);
  if (bf16_kernels() && image.scalar_type() == ScalarType::BFloat16) {
    return f(Bf16Products(image, text, options.needs_dots));
  }
  return f(ExactProducts<float>(image, text, options.needs_dots));
}

}  // namespace cyclip::cpu
