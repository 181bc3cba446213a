// Sums of the lanes that bytes name: what a gathered gradient adds up.
#pragma once
#include "simd_order.h"

namespace fastconv::cpu::FASTCONV_ISA {

// A tap is a byte; no lane is asked for kNoByte.
constexpr uint8_t kNoByte = 255;

// The number of a tap, to compare as many bytes with as T has lanes.
template <class T>
struct TapLanes {
#if defined(__AVX512F__)
  __m128i bytes;
  FASTCONV_INLINE static TapLanes of(int64_t tap) {
    return {_mm_set1_epi8(static_cast<char>(tap))};
  }
#else
  Vec<Signed<T>> lanes;
  FASTCONV_INLINE static TapLanes of(int64_t tap) {
    return {Vec<Signed<T>>::broadcast(static_cast<Signed<T>>(tap))};
  }
#endif
};

// sum[l] + values[l] where taps[l] is the tap.
template <class T>
FASTCONV_INLINE Vec<T> add_taken(Vec<T> sum, Vec<T> values, const uint8_t* taps, TapLanes<T> tap) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(taps));
    const __mmask16 taken = _mm_cmpeq_epi8_mask(bytes, tap.bytes);
    return {_mm512_mask_add_ps(sum.raw, taken, sum.raw, values.raw)};
  } else {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(taps));
    const auto taken = static_cast<__mmask8>(_mm_mask_cmpeq_epi8_mask(0xff, bytes, tap.bytes));
    return {_mm512_mask_add_pd(sum.raw, taken, sum.raw, values.raw)};
  }
#else
  typedef uint8_t Bytes __attribute__((vector_size(Vec<T>::kLanes), aligned(1), may_alias));
  using Raw = typename Vec<Signed<T>>::Raw;
  const Raw lanes = __builtin_convertvector(*reinterpret_cast<const Bytes*>(taps), Raw);
  const Raw taken = (Raw)(lanes == tap.lanes.raw);
  return sum + Vec<T>{(typename Vec<T>::Raw)((Raw)values.raw & taken)};
#endif
}

// The same where lanes outside the range take nothing: no tap of theirs is read.
template <class T>
FASTCONV_INLINE Vec<T> add_taken(Vec<T> sum, Vec<T> values, const uint8_t* taps, TapLanes<T> tap,
                                 LaneRange<T> range) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_maskz_loadu_epi8(range.bits, taps);
  const __mmask16 taken = _mm_mask_cmpeq_epi8_mask(range.bits, bytes, tap.bytes);
  if constexpr (sizeof(T) == 4)
    return {_mm512_mask_add_ps(sum.raw, taken, sum.raw, values.raw)};
  else
    return {_mm512_mask_add_pd(sum.raw, static_cast<__mmask8>(taken), sum.raw, values.raw)};
#else
  uint8_t lanes[Vec<T>::kLanes];
  for (int64_t l = 0; l < Vec<T>::kLanes; ++l)
    lanes[l] = l >= range.begin && l < range.end ? taps[l] : kNoByte;
  return add_taken(sum, values, lanes, tap);
#endif
}

// The end of a range that begins at 0.
template <class T>
FASTCONV_INLINE int64_t range_end(LaneRange<T> range) {
#if defined(__AVX512F__)
  return __builtin_popcount(range.bits);
#else
  return range.end;
#endif
}

// Lanes of the range, the others zero.
template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_range_as_compute(const S* p, LaneRange<Compute<S>> range) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 2)
    return widen((HalfRaw)_mm256_maskz_loadu_epi16(range.bits, p), S{});
  else
    return load_range(p, range, Vec<S>::zero());
#else
  return range.begin < range.end ? load_between_as_compute(p + range.begin, range.begin, range.end)
                                 : Vec<Compute<S>>::zero();
#endif
}

}  // namespace fastconv::cpu::FASTCONV_ISA
