// Norms of rows, on vectors of double. Products of two floats are exact in double, so a fused
// multiply-add returns the same bits as a separate one, and all instruction sets return the same
// bits.

namespace cyclip::cpu::CYCLIP_ISA {

inline Vec<double> load_number(const float* from) {
  typedef float Floats __attribute__((vector_size(kLanes<double> * sizeof(float))));
  return __builtin_convertvector(load<Floats>(from), Vec<double>);
}

inline Vec<double> load_number(const Bf16* from) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes<double> * sizeof(uint16_t))));
  typedef uint32_t Words __attribute__((vector_size(kLanes<double> * sizeof(uint32_t))));
  typedef float Floats __attribute__((vector_size(kLanes<double> * sizeof(float))));
  const Words words = __builtin_convertvector(load<Halves>(from), Words) << 16;
  return __builtin_convertvector(reinterpret_cast<Floats>(words), Vec<double>);
}

// Sums in eight independent chains. The numbers after the last eight are padded with zeros and come
// first.
template <typename X>
void row_norms(const X* x, int64_t rows, int64_t d, double* norms) {
  constexpr int64_t chains = 8, vectors = chains / kLanes<double>;
  const int64_t whole = d / chains * chains;
  for (int64_t i = 0; i < rows; ++i, x += d) {
    Vec<double> partial[vectors] = {};
    for (int64_t k = 0; k < whole; k += chains) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) {
        const Vec<double> number = load_number(x + k + v * kLanes<double>);
        partial[v] += number * number;
      }
    }
    X rest[chains] = {};
    for (int64_t k = whole; k < d; ++k) rest[k - whole] = x[k];
    double sum = 0;
    for (int64_t v = 0; v < vectors; ++v) {
      const Vec<double> number = load_number(rest + v * kLanes<double>), squares = number * number;
      for (int64_t lane = 0; lane < kLanes<double>; ++lane) sum += squares[lane];
    }
    for (const Vec<double>& part : partial) {
      for (int64_t lane = 0; lane < kLanes<double>; ++lane) sum += part[lane];
    }
    const double norm = __builtin_sqrt(sum);
    norms[i] = norm < kEps ? kEps : norm;  // keeps NaN
  }
}

}  // namespace cyclip::cpu::CYCLIP_ISA
