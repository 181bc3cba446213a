// Order and choice of lanes: comparisons, selection, lanes of one and two bytes, partial loads.
//
// What simd.h has for arithmetic, this file has for maxima. A LaneMask<T> holds one truth per lane
// of a Vec<T>: a mask register on AVX-512, a vector of all or no bits elsewhere.
#pragma once
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <int kBytes>
struct SignedOf;
template <>
struct SignedOf<1> {
  using Type = int8_t;
};
template <>
struct SignedOf<2> {
  using Type = int16_t;
};
template <>
struct SignedOf<4> {
  using Type = int32_t;
};
template <>
struct SignedOf<8> {
  using Type = int64_t;
};
// The signed integer as wide as T.
template <class T>
using Signed = typename SignedOf<sizeof(T)>::Type;

// masks

#if defined(__AVX512F__)
template <int kLanes>
struct MaskBitsOf {
  using Type = uint64_t;
};
template <>
struct MaskBitsOf<32> {
  using Type = uint32_t;
};
template <>
struct MaskBitsOf<16> {
  using Type = uint16_t;
};
template <>
struct MaskBitsOf<8> {
  using Type = uint8_t;
};
template <class T>
struct LaneMask {
  typename MaskBitsOf<Vec<T>::kLanes>::Type bits;
};

#else
template <class T>
struct LaneMask {
  typename Vec<Signed<T> >::Raw bits;
};
#endif

// Lane i is a's where the mask is true, else b's.
template <class T, class U>
FASTCONV_INLINE Vec<U> select(LaneMask<T> mask, Vec<U> a, Vec<U> b) {
  static_assert(sizeof(T) == sizeof(U), "a truth for every lane");
#if defined(__AVX512F__)
  const __m512i x = (__m512i)a.raw, y = (__m512i)b.raw;
  if constexpr (sizeof(T) == 1)
    return {(typename Vec<U>::Raw)_mm512_mask_blend_epi8(mask.bits, y, x)};
  else if constexpr (sizeof(T) == 2)
    return {(typename Vec<U>::Raw)_mm512_mask_blend_epi16(mask.bits, y, x)};
  else if constexpr (sizeof(T) == 4)
    return {(typename Vec<U>::Raw)_mm512_mask_blend_epi32(mask.bits, y, x)};
  else
    return {(typename Vec<U>::Raw)_mm512_mask_blend_epi64(mask.bits, y, x)};
#else
  return {mask.bits ? a.raw : b.raw};
#endif
}

// Lanes in [0, bound).
FASTCONV_INLINE LaneMask<int64_t> lanes_below(Vec<int64_t> v, int64_t bound) {
#if defined(__AVX512F__)
  return {_mm512_cmplt_epu64_mask((__m512i)v.raw, _mm512_set1_epi64(bound))};
#else
  return {(v.raw >= 0) & (v.raw < bound)};
#endif
}

// The order of maxima: a NaN is larger than everything, of equal elements the left one is taken, of
// several NaNs the right one.

// Whether the right element is not taken.
template <class T>
FASTCONV_INLINE LaneMask<T> left_stays(Vec<T> left, Vec<T> right) {
  if constexpr (std::is_floating_point_v<T>) {
    // A NaN on the left counts as infinity: then only another NaN is larger, or not ordered.
    const Vec<T> infinity = Vec<T>::broadcast(static_cast<T>(__builtin_inf()));
#if defined(__AVX512F__)
    // min(a, b) is b if a is NaN
    if constexpr (sizeof(T) == 4)
      return {_mm512_cmp_ps_mask(right.raw, _mm512_min_ps(left.raw, infinity.raw), _CMP_LE_OQ)};
    else
      return {_mm512_cmp_pd_mask(right.raw, _mm512_min_pd(left.raw, infinity.raw), _CMP_LE_OQ)};
#else
    const auto bounded = left.raw < infinity.raw ? left.raw : infinity.raw;
    return {right.raw <= bounded};
#endif
  } else {
#if defined(__AVX512F__)
    const __m512i a = (__m512i)right.raw, b = (__m512i)left.raw;
    if constexpr (kSame<T, uint8_t>)
      return {_mm512_cmple_epu8_mask(a, b)};
    else if constexpr (sizeof(T) == 1)
      return {_mm512_cmple_epi8_mask(a, b)};
    else if constexpr (sizeof(T) == 2)
      return {_mm512_cmple_epi16_mask(a, b)};
    else if constexpr (sizeof(T) == 4)
      return {_mm512_cmple_epi32_mask(a, b)};
    else
      return {_mm512_cmple_epi64_mask(a, b)};
#else
    return {right.raw <= left.raw};
#endif
  }
}

// The element that is taken.
template <class T>
FASTCONV_INLINE Vec<T> larger_of(Vec<T> left, Vec<T> right) {
  if constexpr (std::is_floating_point_v<T>) {
    // max(a, b) is b if they are equal or either is NaN
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      const __mmask16 ordered = _mm512_cmp_ps_mask(right.raw, right.raw, _CMP_ORD_Q);
      return {_mm512_mask_max_ps(right.raw, ordered, right.raw, left.raw)};
    } else {
      const __mmask8 ordered = _mm512_cmp_pd_mask(right.raw, right.raw, _CMP_ORD_Q);
      return {_mm512_mask_max_pd(right.raw, ordered, right.raw, left.raw)};
    }
#elif defined(__AVX2__) && FASTCONV_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return {_mm256_blendv_ps(_mm256_max_ps(right.raw, left.raw), right.raw,
                               _mm256_cmp_ps(right.raw, right.raw, _CMP_UNORD_Q))};
    else
      return {_mm256_blendv_pd(_mm256_max_pd(right.raw, left.raw), right.raw,
                               _mm256_cmp_pd(right.raw, right.raw, _CMP_UNORD_Q))};
#else
    return select(left_stays(left, right), left, right);
#endif
  } else {
    return {left.raw > right.raw ? left.raw : right.raw};
  }
}

// Whether some lane equals the number.
template <class T>
FASTCONV_INLINE bool any_equal(Vec<T> values, T wanted) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return _mm512_cmp_ps_mask(values.raw, _mm512_set1_ps(wanted), _CMP_EQ_OQ) != 0;
  else
    return _mm512_cmp_pd_mask(values.raw, _mm512_set1_pd(wanted), _CMP_EQ_OQ) != 0;
#else
  int equal = 0;
  for (int l = 0; l < Vec<T>::kLanes; ++l) equal |= values.raw[l] == wanted;
  return equal != 0;
#endif
}

// Negative lanes with all bits but the sign inverted: sign and magnitude to and from an integer in
// the same order.
FASTCONV_INLINE Vec<int16_t> magnitudes_flipped(Vec<int16_t> v) {
#if defined(__AVX512F__)
  constexpr int kXorOfAnd = 0x78;  // a ^ (b & c)
  return {(Vec<int16_t>::Raw)_mm512_ternarylogic_epi32((__m512i)v.raw, (__m512i)(v.raw >> 15),
                                                       _mm512_set1_epi16(0x7fff), kXorOfAnd)};
#else
  return {v.raw ^ ((v.raw >> 15) & 0x7fff)};
#endif
}

// Partial loads and stores

// Lanes [begin, end), either of which may lie outside [0, kLanes].
template <class T>
struct LaneRange {
#if defined(__AVX512F__)
  decltype(LaneMask<T>::bits) bits;

  FASTCONV_INLINE static LaneRange of(int64_t begin, int64_t end) {
    begin = larger(begin, int64_t{0});
    end = smaller(end, int64_t{Vec<T>::kLanes});
    if (begin >= end) return {0};
    const uint64_t upto = ~uint64_t{0} >> (64 - end);
    return {static_cast<decltype(bits)>(upto & (~uint64_t{0} << begin))};
  }
#else
  int64_t begin, end;

  FASTCONV_INLINE static LaneRange of(int64_t begin, int64_t end) {
    return {larger(begin, int64_t{0}), smaller(end, int64_t{Vec<T>::kLanes})};
  }
#endif
};

// Lane i is p[i] in the range, else that of `fill`; nothing else of memory is touched.
template <class T>
FASTCONV_INLINE Vec<T> load_range(const T* p, LaneRange<T> range, Vec<T> fill) {
#if defined(__AVX512F__)
  const __m512i other = (__m512i)fill.raw;
  if constexpr (sizeof(T) == 1)
    return {(typename Vec<T>::Raw)_mm512_mask_loadu_epi8(other, range.bits, p)};
  else if constexpr (sizeof(T) == 2)
    return {(typename Vec<T>::Raw)_mm512_mask_loadu_epi16(other, range.bits, p)};
  else if constexpr (sizeof(T) == 4)
    return {(typename Vec<T>::Raw)_mm512_mask_loadu_epi32(other, range.bits, p)};
  else
    return {(typename Vec<T>::Raw)_mm512_mask_loadu_epi64(other, range.bits, p)};
#else
  if (range.begin >= range.end) return fill;
  T lanes[Vec<T>::kLanes];
  fill.store(lanes);
  __builtin_memcpy(lanes + range.begin, p + range.begin,
                   static_cast<unsigned long>(range.end - range.begin) * sizeof(T));
  return Vec<T>::load(lanes);
#endif
}

// The lanes of the range, which begins at 0, to p, p + 1, ...
template <class T>
FASTCONV_INLINE void store_range(T* p, Vec<T> v, LaneRange<T> range) {
#if defined(__AVX512F__)
  const __m512i lanes = (__m512i)v.raw;
  if constexpr (sizeof(T) == 1)
    _mm512_mask_storeu_epi8(p, range.bits, lanes);
  else if constexpr (sizeof(T) == 2)
    _mm512_mask_storeu_epi16(p, range.bits, lanes);
  else if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_epi32(p, range.bits, lanes);
  else
    _mm512_mask_storeu_epi64(p, range.bits, lanes);
#else
  if constexpr (sizeof(T) >= 4)
    store_some(p, v, range.end);
  else
    __builtin_memcpy(p, &v, static_cast<unsigned long>(range.end) * sizeof(T));
#endif
}

// Lanes [kPart * n, kPart * n + n) of integers, as int64, n as many as fill a register.
// first, first + step, ...
template <int... lane>
FASTCONV_INLINE Vec<int64_t> progression(int64_t first, int64_t step, LaneList<lane...>) {
  return {Vec<int64_t>::Raw{lane...} * step + first};
}

template <int kPart, class T, int... lane>
FASTCONV_INLINE Vec<int64_t> as_int64(Vec<T> v, LaneList<lane...>) {
  if constexpr (sizeof(T) == 8)
    return {(Vec<int64_t>::Raw)v.raw};
  else
    return {Vec<int64_t>::Raw{v.raw[kPart * Vec<int64_t>::kLanes + lane]...}};
}
template <int kPart, class T>
FASTCONV_INLINE Vec<int64_t> as_int64(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return {
        (Vec<int64_t>::Raw)_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64((__m512i)v.raw, kPart))};
  if constexpr (sizeof(T) == 2)
    return {
        (Vec<int64_t>::Raw)_mm512_cvtepi16_epi64(_mm512_extracti32x4_epi32((__m512i)v.raw, kPart))};
#elif defined(__AVX2__) && FASTCONV_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return {
        (Vec<int64_t>::Raw)_mm256_cvtepi32_epi64(_mm256_extracti128_si256((__m256i)v.raw, kPart))};
#endif
  return as_int64<kPart>(v, typename CountLanes<Vec<int64_t>::kLanes>::List());
}

// The low bytes of the first `count` lanes.
template <class T>
FASTCONV_INLINE void store_low_bytes(uint8_t* p, Vec<T> v, int64_t count) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  const Bytes bytes = __builtin_convertvector(v.raw, Bytes);
  if (count == kLanes) {
    __builtin_memcpy(p, &bytes, kLanes);
    return;
  }
#if defined(__AVX512F__)
  const auto mask = LaneRange<T>::of(0, count).bits;
  if constexpr (kLanes == 16) return _mm_mask_storeu_epi8(p, mask, (__m128i)bytes);
  if constexpr (kLanes == 32) return _mm256_mask_storeu_epi8(p, mask, (__m256i)bytes);
#endif
  __builtin_memcpy(p, &bytes, static_cast<unsigned long>(count));
}

// Lane i is lane index[i] of a and b, one behind the other.
template <int... index, class T>
FASTCONV_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return {__builtin_shufflevector(a.raw, b.raw, index...)};
#else
  return {__builtin_shuffle(a.raw, b.raw, typename Vec<Signed<T> >::Raw{index...})};
#endif
}

// Lanes kFirst, kFirst + 2, kFirst + 4, ... of a and b, one behind the other.
template <int kFirst, class T, int... lane>
FASTCONV_INLINE Vec<T> every_other(Vec<T> a, Vec<T> b, LaneList<lane...>) {
  return shuffle<(2 * lane + kFirst)...>(a, b);
}
template <int kFirst, class T>
FASTCONV_INLINE Vec<T> every_other(Vec<T> a, Vec<T> b) {
  return every_other<kFirst>(a, b, typename CountLanes<Vec<T>::kLanes>::List());
}

// Half kPart of a and b lane by lane: a0, b0, a1, b1, ...
template <int kPart, class T, int... lane>
FASTCONV_INLINE Vec<T> interleaved(Vec<T> a, Vec<T> b, LaneList<lane...>) {
  constexpr int kLanes = Vec<T>::kLanes;
  return shuffle<(lane / 2 + lane % 2 * kLanes + kPart * kLanes / 2)...>(a, b);
}
template <int kPart, class T>
FASTCONV_INLINE Vec<T> interleaved(Vec<T> a, Vec<T> b) {
  return interleaved<kPart>(a, b, typename CountLanes<Vec<T>::kLanes>::List());
}

}  // namespace fastconv::cpu::FASTCONV_ISA
