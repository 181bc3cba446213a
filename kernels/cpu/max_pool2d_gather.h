// max_pool2d backward as a gather: every element of grad_input adds what the windows over it gave.
//
//   grad_input[n,c,h,w] = sum over p, q, in row-major order, of grad_output[n,c,p,q]
//                         where taps[n,c,p,q] == r * S + s,
//   r and s being the tap by which window p, q holds h, w
//
// A window that took another element adds nothing: a comparison of bytes masks the addition. What
// is written is written once, in order; nothing is cleared before.
#pragma once
#include "max_pool2d_places.h"

namespace fastconv::cpu::FASTCONV_ISA {

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
    lanes[l] = l >= range.begin && l < range.end ? taps[l] : kNoTap;
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

// Rounds sums to storage. One element is no sum: it is stored as it was.
template <class S>
FASTCONV_INLINE void store_sums(S* p, Vec<Compute<S>> sums, bool single) {
  if constexpr (kSame<S, BFloat16>) {
    if (single) {
      *reinterpret_cast<HalfRaw*>(p) = __builtin_convertvector((WordRaw)sums.raw >> 16, HalfRaw);
      return;
    }
  }
  store_from_compute(p, sums);
}

// A tap by which windows hold a row (or a column of a phase), and which window that is.
struct Holder {
  int64_t output, tap;
};

// The windows along an axis that hold one element after the other.
struct WindowsOver {
  const Axis& axis;
  int64_t first;  // the first window that does not end before the element

  WindowsOver(const Axis& axis, int64_t at) : axis(axis) {
    const int64_t ends_before = at + axis.pad - axis.reach();
    first = ends_before <= 0 ? 0 : (ends_before + axis.stride - 1) / axis.stride;
  }

  // The windows that hold element `at`, first to last, into `holders`; returns how many. Elements
  // come in order.
  FASTCONV_INLINE int64_t list(int64_t at, Holder* holders) {
    const int64_t from = at + axis.pad;
    while (first * axis.stride + axis.reach() < from) ++first;
    int64_t count = 0, distance = from - first * axis.stride;
    for (int64_t o = first; o < axis.outputs && distance >= 0; ++o, distance -= axis.stride) {
      if (axis.dilation == 1)
        holders[count++] = {o, distance};
      else if (distance % axis.dilation == 0)
        holders[count++] = {o, distance / axis.dilation};
    }
    return count;
  }
};

// The window's own axes: taps are numbered as the whole window's, and nothing depends on its length.
FASTCONV_INLINE Axis window_rows(const MaxPool2dShape& s) {
  const Window2d& w = s.window;
  return {s.H, w.R, w.stride_h, w.pad_h, w.dilation_h, s.P};
}
FASTCONV_INLINE Axis window_columns(const MaxPool2dShape& s) {
  const Window2d& w = s.window;
  return {s.W, w.S, w.stride_w, w.pad_w, w.dilation_w, s.Q};
}

// Indices of outputs whose windows begin at `corner`, corner + step, ..., as taps. One that its window
// does not hold becomes none, or a tap in the padding, which holds no element.
FASTCONV_INLINE void taps_of_indices(const MaxPool2dShape& s, int64_t corner, int64_t step,
                                     const int64_t* indices, int64_t stride, int64_t count,
                                     uint8_t* taps) {
  const int64_t S = s.window.S, dilation = s.window.dilation_w;
  const int64_t row_step = s.window.dilation_h * s.W;
  const auto tap_of = [&](int64_t offset) {
    uint8_t tap = kNoTap;
    for (int64_t r = 0; r < s.window.R; ++r, offset -= row_step)
      if (offset >= 0 && offset <= (S - 1) * dilation && offset % dilation == 0)
        tap = static_cast<uint8_t>(r * S + offset / dilation);
    return tap;
  };
  int64_t i = 0;
  using Index = Vec<int64_t>;
  if (stride == 1 && dilation == 1)
    for (; i + Index::kLanes <= count; i += Index::kLanes) {
      Index offset = Index::load(indices + i) -
                     progression(corner + i * step, step, typename CountLanes<Index::kLanes>::List());
      Index tap = Index::broadcast(kNoTap);
      for (int64_t r = 0; r < s.window.R; ++r, offset.raw -= row_step)
        tap = select(lanes_below(offset, S), Index{offset.raw + r * S}, tap);
      store_low_bytes(taps + i, tap, Index::kLanes);
    }
  for (; i < count; ++i) taps[i] = tap_of(indices[i * stride] - corner - i * step);
}

// Windows for which two rows and two columns of input lie under at most two of output.
FASTCONV_INLINE bool moves_by_two(const Window2d& w) {
  const bool square = w.R == w.S && w.pad_h == w.pad_w && w.stride_h == 2 && w.stride_w == 2;
  const bool known = (w.R == 2 && w.pad_h == 0) || (w.R == 3 && w.pad_h <= 1);
  return square && known && w.dilation_h == 1 && w.dilation_w == 1;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
