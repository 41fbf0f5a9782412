// The row-wise kernels of cycle_rows.h: the arithmetic is in double, and results are rounded to T.
// wide.inl.h has the loads and stores.

namespace cyclip::cpu::CYCLIP_ISA {

struct WideSum {
  Vec<double> lanes{};
  double rest = 0;

  void add(Vec<double> v) { lanes += v; }
  void add(double v) { rest += v; }
  double total() const { return sum_lanes<double>(lanes) + rest; }
};

template <typename X>
void add_weighted(const X* x, const double* norms, const double* pivot, int64_t rows, int64_t d, double* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    double factor = 1 / norms[i];
    if (pivot != nullptr) {
      WideSum dot;
      for_each_wide(d, [&](int64_t k, auto zero) {
        using V = decltype(zero);
        dot.add(load_wide<V>(x + i * d + k) * load_wide<V>(pivot + k));
      });
      factor *= dot.total() * factor;
    }
    for_each_wide(d, [&](int64_t k, auto zero) {
      using V = decltype(zero);
      store_narrow(sums + k, load_wide<V>(sums + k) + load_wide<V>(x + i * d + k) * factor);
    });
  }
}

// Computes x^ and stores it in memory. If the product were fused with the subtraction that follows,
// the difference of equal rows would be a rounding error instead of zero. along[r] = <x^, q_r>.
template <typename X>
inline void normalize_row(const X* x, double norm, int64_t d, const double* directions, double* normalized,
                          double* along) {
  const double inv_norm = 1 / norm;
  WideSum sums[kDirections];
  for_each_wide(d, [&](int64_t k, auto zero) {
    using V = decltype(zero);
    const V value = load_wide<V>(x + k) * inv_norm;
    store_narrow(normalized + k, value);
    if (directions == nullptr) return;
    for (int r = 0; r < kDirections; ++r) sums[r].add(value * load_wide<V>(directions + r * d + k));
  });
  for (int r = 0; r < kDirections; ++r) along[r] = sums[r].total();
}

template <typename X, typename T>
void cycle_factors_forward(const CycleFactorsForward<X, T>& args) {
  const TowerRows<X>& towers = args.towers;
  const int64_t d = towers.d;
  const double* q = args.directions;
  double *image = args.scratch, *text = args.scratch + d;
  for (int64_t i = 0; i < towers.rows; ++i) {
    double image_along[kDirections], text_along[kDirections];
    normalize_row(towers.image + i * d, towers.image_norms[i], d, q, image, image_along);
    normalize_row(towers.text + i * d, towers.text_norms[i], d, q, text, text_along);
    T *plus = args.plus + i * d, *minus = args.minus + i * d;
    if (q == nullptr) {
      for_each_wide(d, [&](int64_t k, auto zero) {
        using V = decltype(zero);
        const V x = load_wide<V>(image + k), y = load_wide<V>(text + k);
        store_narrow(plus + k, x + y);
        store_narrow(minus + k, x - y);
      });
      continue;
    }
    double* along = args.along + i * kAlong;
    for (int r = 0; r < kDirections; ++r) {
      along[r] = image_along[r] + text_along[r];
      along[kDirections + r] = image_along[r] - text_along[r];
    }
    const double p0 = along[0], p1 = along[1], m0 = along[2], m1 = along[3];
    for_each_wide(d, [&](int64_t k, auto zero) {
      using V = decltype(zero);
      const V x = load_wide<V>(image + k), y = load_wide<V>(text + k);
      const V q0 = load_wide<V>(q + k), q1 = load_wide<V>(q + d + k);
      store_narrow(plus + k, (x + y) - p0 * q0 - p1 * q1);
      store_narrow(minus + k, (x - y) - m0 * q0 - m1 * q1);
    });
  }
}

template <typename T>
void along_products(const double* along, const T* factor, int64_t rows, int64_t d, double* sums) {
  for_each_wide(d, [&](int64_t k, auto zero) {
    using V = decltype(zero);
    V s0 = zero, s1 = zero, s2 = zero, s3 = zero;
    for (int64_t i = 0; i < rows; ++i) {
      const V value = load_wide<V>(factor + i * d + k);
      const double* a = along + i * kAlong;
      s0 += a[0] * value;
      s1 += a[1] * value;
      s2 += a[2] * value;
      s3 += a[3] * value;
    }
    store_narrow(sums + k, s0);
    store_narrow(sums + d + k, s1);
    store_narrow(sums + 2 * d + k, s2);
    store_narrow(sums + 3 * d + k, s3);
  });
}

// dL/dx^ and dL/dy^ of one row, and their dot products with the raw row.
template <typename X>
struct RowGradients {
  const X *image_row, *text_row;
  double *image, *text;
  WideSum image_dot{}, text_dot{};

  // Writes the columns from k on, from those of dL/dp and dL/dm.
  template <typename V>
  void write(int64_t k, V plus, V minus) {
    const V of_image = plus + minus, of_text = plus - minus;
    store_narrow(image + k, of_image);
    store_narrow(text + k, of_text);
    image_dot.add(load_wide<V>(image_row + k) * of_image);
    text_dot.add(load_wide<V>(text_row + k) * of_text);
  }
};

template <typename X, typename T>
inline void factor_gradients(const T* plus, const T* minus, int64_t d, RowGradients<X>* gradients) {
  for_each_wide(d, [&](int64_t k, auto zero) {
    using V = decltype(zero);
    gradients->write(k, load_wide<V>(plus + k), load_wide<V>(minus + k));
  });
}

// The same with deflation; `row` counts its rows.
template <bool kCross, typename X, typename T>
inline void deflated_gradients(const CycleDeflation<T>& deflation, int64_t row, const T* plus, const T* minus,
                               int64_t d, RowGradients<X>* gradients) {
  const double *q = deflation.directions, *a = deflation.plus, *b = deflation.minus;
  const double *c = deflation.cross, *l = deflation.cross_left;
  const T *p_row = deflation.plus_rows + row * d, *m_row = deflation.minus_rows + row * d;
  const double* along = deflation.along + row * kAlong;
  const double p0 = along[0], p1 = along[1], m0 = along[2], m1 = along[3];

  WideSum plus0, plus1, minus0, minus1;  // coefficients of q
  for_each_wide(d, [&](int64_t k, auto zero) {
    using V = decltype(zero);
    const V p = load_wide<V>(p_row + k), m = load_wide<V>(m_row + k);
    plus0.add(p * load_wide<V>(a + k));
    plus1.add(p * load_wide<V>(a + d + k));
    minus0.add(m * load_wide<V>(b + k));
    minus1.add(m * load_wide<V>(b + d + k));
    if constexpr (kCross) {
      plus0.add(m * load_wide<V>(l + k));
      plus1.add(m * load_wide<V>(l + d + k));
      minus0.add(p * load_wide<V>(c + k));
      minus1.add(p * load_wide<V>(c + d + k));
    }
  });
  const double of_plus0 = plus0.total(), of_plus1 = plus1.total();
  const double of_minus0 = minus0.total(), of_minus1 = minus1.total();

  for_each_wide(d, [&](int64_t k, auto zero) {
    using V = decltype(zero);
    const V q0 = load_wide<V>(q + k), q1 = load_wide<V>(q + d + k);
    V p = load_wide<V>(plus + k) + of_plus0 * q0 + of_plus1 * q1;
    V m = load_wide<V>(minus + k) + of_minus0 * q0 + of_minus1 * q1;
    p += p0 * load_wide<V>(a + k) + p1 * load_wide<V>(a + d + k);
    m += m0 * load_wide<V>(b + k) + m1 * load_wide<V>(b + d + k);
    if constexpr (kCross) {
      p += m0 * load_wide<V>(c + k) + m1 * load_wide<V>(c + d + k);
      m += p0 * load_wide<V>(l + k) + p1 * load_wide<V>(l + d + k);
    }
    gradients->write(k, p, m);
  });
}

// From g = dL/dx^ to dL/dx = (g - <g, x^> x^) / |x|, with `dot` = <x, g>. A norm clamped to eps is a
// constant, so there is no projection.
template <typename X>
inline void normalize_row_backward(const X* x, double norm, int64_t d, const double* g, double dot, X* out) {
  const double along = norm <= kEps ? 0 : dot / (norm * norm), inv_norm = 1 / norm;
  for_each_wide(d, [&](int64_t k, auto zero) {
    using V = decltype(zero);
    store_narrow(out + k, (load_wide<V>(g + k) - along * load_wide<V>(x + k)) * inv_norm);
  });
}

template <typename X, typename T>
void cycle_factors_backward(const CycleFactorsBackward<X, T>& args) {
  const TowerRows<X>& towers = args.towers;
  const int64_t d = towers.d;
  for (int64_t i = 0; i < towers.rows; ++i) {
    const X *image = towers.image + i * d, *text = towers.text + i * d;
    const T *plus = args.plus + i * d, *minus = args.minus + i * d;
    RowGradients<X> gradients = {image, text, args.scratch, args.scratch + d};
    if (args.deflation == nullptr) {
      factor_gradients(plus, minus, d, &gradients);
    } else if (args.deflation->cross == nullptr) {
      deflated_gradients<false>(*args.deflation, i, plus, minus, d, &gradients);
    } else {
      deflated_gradients<true>(*args.deflation, i, plus, minus, d, &gradients);
    }
    normalize_row_backward(image, towers.image_norms[i], d, gradients.image, gradients.image_dot.total(),
                           args.image_grad + i * d);
    normalize_row_backward(text, towers.text_norms[i], d, gradients.text, gradients.text_dot.total(),
                           args.text_grad + i * d);
  }
}

}  // namespace cyclip::cpu::CYCLIP_ISA
