// Epilogues of the pairwise sigmoid loss: softplus(-l_ij z_ij) with z = s S + b, l = 1 for the
// positive and -1 for all others. The positive of each row is a single entry, computed separately
// in double. Other pairs of equal labels do not count, or have l = 1 as well.

namespace cyclip::cpu::CYCLIP_ISA {

template <typename T>
struct Sigmoid {
  Vec<T> z;
  Vec<T> decay;  // e^(-|z|), gives both softplus and its derivative without overflow
};

template <typename T>
inline Sigmoid<T> sigmoid_parts(Vec<T> s, double scale, double bias) {
  constexpr T hi = static_cast<T>(kLog2e);
  constexpr T lo = static_cast<T>(kLog2e - static_cast<double>(hi));
  const Vec<T> z = s * static_cast<T>(scale) + static_cast<T>(bias);
  const Vec<T> zero = splat(T(0));
  const Vec<T> negative = z > zero ? zero - z : z;
  const Vec<T> lowest = splat(T(-1000));  // e^-1000 is zero; the comparison preserves NaN
  const Base2<T> power = exp2_split<T>(negative < lowest ? lowest : negative, hi, lo);
  return {z, power.fraction * power_of_two<T>(power.exponent)};
}

inline double softplus(double z) { return (z > 0 ? z : 0) + __builtin_log1p(__builtin_exp(-__builtin_fabs(z))); }

inline double logistic(double z) { return 1 / (1 + __builtin_exp(-z)); }

template <typename T>
inline double exact_cosine(const Tile<T>& tile, int64_t row, int64_t col) {
  return static_cast<double>(tile.dots[row * tile.pitch + col]) * tile.row_inv_norms[row] *
         tile.col_inv_norms[col];
}

// Calls step(first column, mask, positive) for each vector of a row, without the positive of the row.
template <typename T, typename Args, typename Step>
inline void for_each_term(const Args& args, int64_t row, Step&& step) {
  for_each_pair(args.tile, args.labels, row, [&](int64_t col, auto mask, auto same) {
    if (args.same_are_positives) {
      step(col, mask, same);
    } else {
      step(col, without(mask, same), NoLanes{});
    }
  });
}

template <typename T>
void sigmoid_forward(const SigmoidForward<T>& args) {
  const Tile<T>& tile = args.tile;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t positive = positive_column(tile, row);
    const Vec<T> zero = splat(T(0));
    Vec<T> sum = zero;
    for_each_term<T>(args, row, [&](int64_t col, auto mask, auto is_positive) {
      const Sigmoid<T> p = sigmoid_parts<T>(cosine(tile, row, col), args.scale, args.bias);
      const Vec<T> z = choose(is_positive, -p.z, p.z);
      sum += choose(mask, maximum(z, zero) + log1p_unit<T>(p.decay), zero);
    });
    args.row_loss[row] += sum_lanes<T>(sum);
    if (in_tile(tile, positive)) {
      args.row_loss[row] += softplus(-(args.scale * exact_cosine(tile, row, positive) + args.bias));
    }
  }
}

template <typename T>
void sigmoid_backward(const SigmoidBackward<T>& args) {
  const Tile<T>& tile = args.tile;
  for (int64_t row = 0; row < tile.rows; ++row) {
    T* gradient = args.gradient.values + row * args.gradient.pitch;
    const int64_t positive = positive_column(tile, row);
    const bool has_positive = in_tile(tile, positive);
    const double positive_cosine = has_positive ? exact_cosine(tile, row, positive) : 0;
    const T row_grad = static_cast<T>(args.row_grad[row]);
    const T scale = static_cast<T>(args.scale);
    const Vec<T> zero = splat(T(0)), one = splat(T(1));
    Vec<T> row_dot = zero, row_slope = zero;
    for_each_term<T>(args, row, [&](int64_t col, auto mask, auto is_positive) {
      const Vec<T> s = cosine(tile, row, col);
      const Sigmoid<T> p = sigmoid_parts<T>(s, args.scale, args.bias);
      const Vec<T> z = choose(is_positive, -p.z, p.z), upstream = splat(row_grad);
      const Vec<T> numerator = z > zero ? one : p.decay;
      const Vec<T> signed_upstream = choose(is_positive, -upstream, upstream);
      const Vec<T> slope = choose(mask, signed_upstream * numerator / (one + p.decay), zero);
      row_dot += choose(mask, slope * s, zero);
      row_slope += slope;
      const Vec<T> inv_norm = load<Vec<T>>(tile.col_inv_norms + col);
      store(gradient + col, choose(mask, slope * scale * tile.row_inv_norms[row] * inv_norm, zero));
    });
    double dot = sum_lanes<T>(row_dot), slope = sum_lanes<T>(row_slope);
    if (has_positive) {
      const double z = args.scale * positive_cosine + args.bias;
      const double positive_slope = -args.row_grad[row] * logistic(-z);
      const double inv_norms = static_cast<double>(tile.row_inv_norms[row]) * tile.col_inv_norms[positive];
      gradient[positive] = static_cast<T>(positive_slope * args.scale * inv_norms);
      dot += positive_slope * positive_cosine;
      slope += positive_slope;
    }
    args.scalars->scale += dot;
    args.scalars->bias += slope;
  }
}

}  // namespace cyclip::cpu::CYCLIP_ISA
