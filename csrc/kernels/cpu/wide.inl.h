// Rows of float, double or Bf16, read and written as vectors of double.

namespace cyclip::cpu::CYCLIP_ISA {

// As many numbers of type T as a vector has doubles.
template <typename T>
struct Narrow {
  typedef T Vec __attribute__((vector_size(kLanes<double> * sizeof(T))));
};
template <typename T>
using NarrowVec = typename Narrow<T>::Vec;

// GCC 12 splits __builtin_convertvector into halves, so the wider instruction sets use intrinsics. It
// warns of those without a mask.
#if CYCLIP_VECTOR_BYTES == 64
inline Vec<double> widen(NarrowVec<float> v) { return _mm512_maskz_cvtps_pd(0xff, v); }
inline NarrowVec<float> narrow(Vec<double> v) { return _mm512_maskz_cvtpd_ps(0xff, v); }
inline NarrowVec<uint32_t> widen(NarrowVec<uint16_t> v) {
  return reinterpret_cast<NarrowVec<uint32_t>>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(v)));
}
inline NarrowVec<uint16_t> narrow(NarrowVec<uint32_t> v) {
  return reinterpret_cast<NarrowVec<uint16_t>>(_mm256_cvtepi32_epi16(reinterpret_cast<__m256i>(v)));
}
#elif CYCLIP_VECTOR_BYTES == 32
inline Vec<double> widen(NarrowVec<float> v) { return _mm256_cvtps_pd(v); }
inline NarrowVec<float> narrow(Vec<double> v) { return _mm256_cvtpd_ps(v); }
inline NarrowVec<uint32_t> widen(NarrowVec<uint16_t> v) {
  return reinterpret_cast<NarrowVec<uint32_t>>(
      _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i*>(&v))));
}
inline NarrowVec<uint16_t> narrow(NarrowVec<uint32_t> v) {
  return __builtin_convertvector(v, NarrowVec<uint16_t>);
}
#else
inline Vec<double> widen(NarrowVec<float> v) { return __builtin_convertvector(v, Vec<double>); }
inline NarrowVec<float> narrow(Vec<double> v) { return __builtin_convertvector(v, NarrowVec<float>); }
inline NarrowVec<uint32_t> widen(NarrowVec<uint16_t> v) { return __builtin_convertvector(v, NarrowVec<uint32_t>); }
inline NarrowVec<uint16_t> narrow(NarrowVec<uint32_t> v) {
  return __builtin_convertvector(v, NarrowVec<uint16_t>);
}
#endif

template <typename V>
inline V load_wide(const double* from) {
  return load<V>(from);
}

template <typename V>
inline V load_wide(const float* from) {
  if constexpr (sizeof(V) == sizeof(double)) {
    return static_cast<double>(*from);
  } else {
    return widen(load<NarrowVec<float>>(from));
  }
}

// A bfloat16 number is the upper half of a float.
template <typename V>
inline V load_wide(const Bf16* from) {
  if constexpr (sizeof(V) == sizeof(double)) {
    const uint32_t bits = static_cast<uint32_t>(*from) << 16;
    return static_cast<double>(load<float>(&bits));
  } else {
    return widen(reinterpret_cast<NarrowVec<float>>(widen(load<NarrowVec<uint16_t>>(from)) << 16));
  }
}

template <typename V>
inline void store_narrow(double* to, V v) {
  store(to, v);
}

template <typename V>
inline void store_narrow(float* to, V v) {
  if constexpr (sizeof(V) == sizeof(double)) {
    *to = static_cast<float>(v);
  } else {
    store(to, narrow(v));
  }
}

// Rounds to float and then to bfloat16, each to nearest, ties to even.
template <typename V>
inline void store_narrow(Bf16* to, V v) {
  if constexpr (sizeof(V) == sizeof(double)) {
    const float rounded = static_cast<float>(v);
    const uint32_t bits = load<uint32_t>(&rounded);
    store(to, static_cast<uint16_t>(rounded == rounded ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0));
  } else {
    const auto rounded = narrow(v);
    const auto bits = reinterpret_cast<NarrowVec<uint32_t>>(rounded);
    const auto words = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    store(to, narrow(rounded == rounded ? words : words * 0 + 0x7fc0));
  }
}

// Calls step(k, zero) along a row. zero has type Vec<double>, or double in the columns that do not
// fill a vector.
template <typename Step>
inline void for_each_wide(int64_t d, const Step& step) {
  int64_t k = 0;
  for (; k + kLanes<double> <= d; k += kLanes<double>) step(k, Vec<double>{});
  for (; k < d; ++k) step(k, double{});
}

}  // namespace cyclip::cpu::CYCLIP_ISA
