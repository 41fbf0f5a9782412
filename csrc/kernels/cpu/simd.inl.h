// Vectors of T for the instruction set of the including translation unit, in plain C++: GCC and Clang
// vector extensions. Only isa/*.cpp include this, with CYCLIP_ISA and CYCLIP_VECTOR_BYTES defined.
//
// Nothing here may call an inline function of the standard library: it would be compiled for this
// instruction set under a name that all others share, and the linker keeps an arbitrary one of
// them.

namespace cyclip::cpu::CYCLIP_ISA {

template <typename T>
struct FloatFormat;
template <>
struct FloatFormat<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
  static constexpr float kRoundingMagic = 12582912.0f;  // 1.5 * 2^23
};
template <>
struct FloatFormat<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
  static constexpr double kRoundingMagic = 6755399441055744.0;  // 1.5 * 2^52
};

template <typename T>
struct VectorOf {
  typedef T Vec __attribute__((vector_size(CYCLIP_VECTOR_BYTES)));
  typedef LaneInt<T> Int __attribute__((vector_size(CYCLIP_VECTOR_BYTES)));
  typedef typename LaneOf<T>::Unsigned Unsigned __attribute__((vector_size(CYCLIP_VECTOR_BYTES)));
};
template <typename T>
using Vec = typename VectorOf<T>::Vec;
template <typename T>
using IntVec = typename VectorOf<T>::Int;

template <typename T>
using UnsignedVec = typename VectorOf<T>::Unsigned;

template <typename T>
inline constexpr int64_t kLanes = CYCLIP_VECTOR_BYTES / sizeof(T);

template <typename V, typename T>
inline V load(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename T>
inline void store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

template <typename T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}

template <typename T>
inline IntVec<T> splat_int(LaneInt<T> x) {
  return x - IntVec<T>{};
}

template <typename T>
inline IntVec<T> lane_indices() {
  IntVec<T> index;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) index[lane] = lane;
  return index;
}

template <typename V>
inline V maximum(V a, V b) {
  return a > b ? a : b;
}

template <typename T>
inline T largest_lane(Vec<T> v) {
  T result = v[0];
  for (int64_t lane = 1; lane < kLanes<T>; ++lane) result = v[lane] > result ? v[lane] : result;
  return result;
}

template <typename T>
inline double sum_lanes(Vec<T> v) {
  double sum = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) sum += static_cast<double>(v[lane]);
  return sum;
}

// a - b with wrapping: the exponent of a NaN or an infinity may be arbitrary, and is then
// multiplied by a fraction that is NaN.
template <typename T>
inline IntVec<T> wrapping_subtract(IntVec<T> a, IntVec<T> b) {
  return reinterpret_cast<IntVec<T>>(reinterpret_cast<UnsignedVec<T>>(a) - reinterpret_cast<UnsignedVec<T>>(b));
}

// Nearest integer of each |x| < 2^22 (2^51 for double), using the rounding of an addition.
template <typename T>
inline IntVec<T> nearest_integer(Vec<T> x) {
  const Vec<T> magic = splat<T>(FloatFormat<T>::kRoundingMagic);
  return wrapping_subtract<T>(reinterpret_cast<IntVec<T>>(x + magic), reinterpret_cast<IntVec<T>>(magic));
}

// 2^e for integers e, flushed to zero below the smallest normal number.
template <typename T>
inline Vec<T> power_of_two(IntVec<T> e) {
  constexpr LaneInt<T> bias = FloatFormat<T>::kBias;
  const IntVec<T> flushed = maximum(e, splat_int<T>(-bias));
  const auto biased = reinterpret_cast<UnsignedVec<T>>(flushed) + static_cast<typename LaneOf<T>::Unsigned>(bias);
  return reinterpret_cast<Vec<T>>(biased << FloatFormat<T>::kMantissaBits);
}

// 2^f for |f| <= 1/2 as 1 + f q(f), where q is interpolated at Chebyshev nodes. The relative error
// is 5e-9 for float and 8e-18 for double, so that rounding dominates.
inline Vec<float> exp2_fraction(Vec<float> f) {
  Vec<float> q = splat(1.545316294512069018e-4f);
  q = q * f + 1.339086336467123438e-3f;
  q = q * f + 9.618082557277851491e-3f;
  q = q * f + 5.550357114219077819e-2f;
  q = q * f + 2.402265076056812694e-1f;
  q = q * f + 6.931471880262287811e-1f;
  return q * f + 1.0f;
}

inline Vec<double> exp2_fraction(Vec<double> f) {
  Vec<double> q = splat(4.455817908336064493e-10);
  q = q * f + 7.054897304155499277e-9;
  q = q * f + 1.01780570877339411e-7;
  q = q * f + 1.321548680870556279e-6;
  q = q * f + 1.525273384155677259e-5;
  q = q * f + 1.540353039337073341e-4;
  q = q * f + 1.33335581464064707e-3;
  q = q * f + 9.618129107628479493e-3;
  q = q * f + 5.550410866482162704e-2;
  q = q * f + 2.402265069591007123e-1;
  q = q * f + 6.931471805599453093e-1;
  return q * f + 1.0;
}

// x (hi + lo) = exponent + log2(fraction): one exponential for every softmax over x.
template <typename T>
struct Base2 {
  Vec<T> fraction;     // 2^f, f in [-1/2, 1/2]
  IntVec<T> exponent;  // k
};

template <typename T>
inline Base2<T> exp2_split(Vec<T> x, T hi, T lo) {
  const Vec<T> magic = splat<T>(FloatFormat<T>::kRoundingMagic);
  const Vec<T> rounded = x * hi + magic;
  const Vec<T> k = rounded - magic;
  // With a fused multiply-add the difference x hi - k is exact except for its own last bit.
  const Vec<T> f = (x * hi - k) + x * lo;
  return {exp2_fraction(f),
          wrapping_subtract<T>(reinterpret_cast<IntVec<T>>(rounded), reinterpret_cast<IntVec<T>>(magic))};
}

// log(1 + u) for 0 <= u <= 1, as 2 atanh(u / (2 + u)): its argument is at most 1/3, so the series is short.
template <typename T>
inline Vec<T> log1p_unit(Vec<T> u) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
  const Vec<T> w = u / (u + T(2));
  const Vec<T> w2 = w * w;
  Vec<T> series = splat(T(1) / T(2 * kTerms + 1));
#pragma GCC unroll 17
  for (int term = kTerms - 1; term >= 0; --term) series = series * w2 + T(1) / T(2 * term + 1);
  return T(2) * w * series;
}

// Calls step(first column, mask) for each vector of a row. The mask is off in the columns past the
// end and at `excluded` (any value outside [0, cols) excludes nothing). `step` is generic in the
// mask type, which is AllLanes for vectors without masked lanes, so that no masking is compiled for
// the common case. NoLanes is the opposite.
struct AllLanes {};
struct NoLanes {};

template <typename V>
inline V choose(AllLanes, V yes, V) {
  return yes;
}
template <typename V>
inline V choose(NoLanes, V, V no) {
  return no;
}
template <typename M, typename V>
inline V choose(M mask, V yes, V no) {
  return mask ? yes : no;
}

// The lanes from `col` on that lie before the end and are not `excluded`.
template <typename T>
inline IntVec<T> lanes_except(int64_t col, int64_t cols, int64_t excluded) {
  const bool excludes = excluded >= 0 && excluded < cols;  // others might not fit into a lane
  const IntVec<T> index = lane_indices<T>() + static_cast<LaneInt<T>>(col);
  const IntVec<T> below_end = index < splat_int<T>(static_cast<LaneInt<T>>(cols));
  return below_end & (index != splat_int<T>(static_cast<LaneInt<T>>(excludes ? excluded : -1)));
}

template <typename T, typename Step>
inline void for_each_vector(int64_t cols, int64_t excluded, Step&& step) {
  const int64_t whole = cols / kLanes<T> * kLanes<T>;
  const bool excludes = excluded >= 0 && excluded < cols;
  const int64_t special = excludes ? excluded / kLanes<T> * kLanes<T> : -1;
  const auto masked_step = [&](int64_t col) { step(col, lanes_except<T>(col, cols, excluded)); };
  const int64_t before = excludes && special < whole ? special : whole;
  for (int64_t col = 0; col < before; col += kLanes<T>) step(col, AllLanes{});
  if (before < whole) {
    masked_step(before);
    for (int64_t col = before + kLanes<T>; col < whole; col += kLanes<T>) step(col, AllLanes{});
  }
  if (whole < cols) masked_step(whole);
}

}  // namespace cyclip::cpu::CYCLIP_ISA
