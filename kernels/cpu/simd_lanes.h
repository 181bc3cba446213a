// Neighbouring lanes: every second one, two registers interleaved, lanes repeated.
#pragma once
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {

#if defined(__clang__)
#define FASTCONV_SHUFFLE(a, b, ...) __builtin_shufflevector(a.raw, b.raw, __VA_ARGS__)
#else
#define FASTCONV_SHUFFLE(a, b, ...) \
  __builtin_shuffle(a.raw, b.raw, typename Vec<LaneIndex<T>>::Raw{__VA_ARGS__})
#endif

// Lanes 1, 3, 5, ... of a and b, one behind the other.
template <class T, int... lane>
FASTCONV_INLINE Vec<T> odd_lanes(Vec<T> a, Vec<T> b, LaneList<lane...>) {
  return {FASTCONV_SHUFFLE(a, b, (2 * lane + 1)...)};
}
template <class T>
FASTCONV_INLINE Vec<T> odd_lanes(Vec<T> a, Vec<T> b) {
  return odd_lanes(a, b, typename CountLanes<Vec<T>::kLanes>::List());
}

// a0 b0 a1 b1 ..., of the lower half of the lanes, or the upper.
template <bool kUpper, class T, int... lane>
FASTCONV_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, LaneList<lane...>) {
  constexpr int kLanes = Vec<T>::kLanes, kFirst = kUpper ? kLanes / 2 : 0;
  return {FASTCONV_SHUFFLE(a, b, (kFirst + lane / 2 + (lane % 2 ? kLanes : 0))...)};
}
template <bool kUpper, class T>
FASTCONV_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b) {
  return interleave<kUpper>(a, b, typename CountLanes<Vec<T>::kLanes>::List());
}
#undef FASTCONV_SHUFFLE

}  // namespace fastconv::cpu::FASTCONV_ISA
