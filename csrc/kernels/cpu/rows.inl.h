// The row-wise kernels of rows.h, on vectors of double. Products of two floats are exact in double,
// so a fused multiply-add returns the same bits as a separate one, and all instruction sets return
// the same norms of floats.

namespace cyclip::cpu::CYCLIP_ISA {

// Computes <a_r, b_r> of consecutive rows. Each row is summed in eight chains. The numbers after the
// last eight are padded with zeros and come first. Several rows at once hide the latency of the
// additions.
template <int kRows, typename A, typename B>
inline void dots(const A* a, const B* b, int64_t d, double* sums) {
  constexpr int64_t chains = 8, vectors = chains / kLanes<double>;
  const int64_t whole = d / chains * chains;
  Vec<double> partial[kRows][vectors] = {};
  for (int64_t k = 0; k < whole; k += chains) {
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t at = row * d + k + v * kLanes<double>;
        partial[row][v] += load_wide<Vec<double>>(a + at) * load_wide<Vec<double>>(b + at);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    double sum = 0;
    for (int64_t k = row * d + whole; k < (row + 1) * d; ++k)
      sum += load_wide<double>(a + k) * load_wide<double>(b + k);
    for (const Vec<double>& part : partial[row]) {
      for (int64_t lane = 0; lane < kLanes<double>; ++lane) sum += part[lane];
    }
    sums[row] = sum;
  }
}

// Calls visit(row, sum) with the sum <a_row, b_row> of each row.
template <typename A, typename B, typename Visit>
inline void for_each_dot(const A* a, const B* b, int64_t rows, int64_t d, const Visit& visit) {
  constexpr int kTogether = kLanes<double> / 2;
  double sums[kTogether];
  int64_t row = 0;
  for (; row + kTogether <= rows; row += kTogether) {
    dots<kTogether>(a + row * d, b + row * d, d, sums);
    for (int i = 0; i < kTogether; ++i) visit(row + i, sums[i]);
  }
  for (; row < rows; ++row) {
    dots<1>(a + row * d, b + row * d, d, sums);
    visit(row, sums[0]);
  }
}

template <typename X>
void row_norms(const X* x, int64_t rows, int64_t d, double* norms) {
  for_each_dot(x, x, rows, d, [&](int64_t row, double sum) {
    const double norm = __builtin_sqrt(sum);
    norms[row] = norm < kEps ? kEps : norm;  // keeps NaN
  });
}

template <typename X, typename T, typename Out>
void subtract_projection(const X* x, const double* norms, int64_t rows, int64_t d, const T* gradient, Out* out) {
  for_each_dot(x, gradient, rows, d, [&](int64_t row, double sum) {
    const double along = norms[row] <= kEps ? 0 : sum / (norms[row] * norms[row]);
    const int64_t begin = row * d;
    for_each_wide(d, [&](int64_t k, auto zero) {
      using V = decltype(zero);
      store_narrow(out + begin + k, load_wide<V>(gradient + begin + k) - along * load_wide<V>(x + begin + k));
    });
  });
}

}  // namespace cyclip::cpu::CYCLIP_ISA
