// Functions of whole registers: exp, erfc and the activations of an epilogue.
//
// float32: the error of exp is below 1.4 units of the last place over all floats; erfc errs by less
// than 1.6e-7 and by less than 5e-6 of itself up to 4, from where on it is 0, for there 1 - erfc is 1.
// The polynomials are Chebyshev fits of the degree at which their own error no longer counts. float64
// asks the C library, lane by lane.
#pragma once
#include "../epilogue.h"
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class T>
FASTCONV_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return {a.raw / b.raw};
}

// NaN in x stays: a comparison with it is false.
template <class T>
FASTCONV_INLINE Vec<T> at_least(Vec<T> x, T low) {
  const Vec<T> bound = Vec<T>::broadcast(low);
  return {x.raw < bound.raw ? bound.raw : x.raw};
}
template <class T>
FASTCONV_INLINE Vec<T> at_most(Vec<T> x, T high) {
  const Vec<T> bound = Vec<T>::broadcast(high);
  return {x.raw > bound.raw ? bound.raw : x.raw};
}

// coefficients[0] + coefficients[1] * x + ..., by Horner's rule.
template <class T, int kCount>
FASTCONV_INLINE Vec<T> polynomial(const T (&coefficients)[kCount], Vec<T> x) {
  Vec<T> sum = Vec<T>::broadcast(coefficients[kCount - 1]);
#pragma GCC unroll 16
  for (int i = kCount - 2; i >= 0; --i) sum = sum * x + Vec<T>::broadcast(coefficients[i]);
  return sum;
}

// exp(x) = 2^n * exp(r), n = round(x / ln 2), r = x - n * ln 2 in two steps, so that it is exact to
// the last place. 2^n in two factors: alone it may be infinite or subnormal where the result is not.
FASTCONV_INLINE Vec<float> exp(Vec<float> x) {
  typedef int32_t Words __attribute__((vector_size(kVectorBytes)));
  constexpr float kLog2E = 1.44269504088896341f, kRound = 0x1.8p23f;
  constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cf8p-20f;
  constexpr float kOfRest[] = {1.0f,          1.0f,           0.500000005f,  0.166664053f,
                               0.0416663401f, 0.00837596823f, 0.00139421598f};
  x = at_most(at_least(x, -104.0f), 89.0f);
  const Vec<float> shifted = x * Vec<float>::broadcast(kLog2E) + Vec<float>::broadcast(kRound);
  const Words n = (Words)shifted.raw - static_cast<int32_t>(0x4b400000);
  const Vec<float> whole = shifted - Vec<float>::broadcast(kRound);
  const Vec<float> rest =
      x - whole * Vec<float>::broadcast(kLn2High) - whole * Vec<float>::broadcast(kLn2Low);
  const Words half = n >> 1;
  const Vec<float> first{(Vec<float>::Raw)((half + 127) << 23)};
  const Vec<float> second{(Vec<float>::Raw)((n - half + 127) << 23)};
  return polynomial(kOfRest, rest) * first * second;
}

// erfc(x) of x >= 0: below 1 as 1 - x * P(x * x), from there on as exp(-Q(x)).
FASTCONV_INLINE Vec<float> erfc_of_magnitude(Vec<float> x) {
  constexpr float kP[] = {1.12837917f,    -0.376126267f,    0.112835947f,    -0.0268542120f,
                          0.00518908742f, -0.000801686429f, 0.0000787587506f};
  constexpr float kQ[] = {-0.000321471026f, 1.13023920f,      0.631815700f,
                          0.110090197f,     -0.0264270438f,   0.00476171724f,
                          -0.000597264433f, 0.0000461129139f, -0.00000163993802f};
  const Vec<float> one = Vec<float>::broadcast(1.0f), zero = Vec<float>::zero();
  const Vec<float> near = one - x * polynomial(kP, x * x);
  const Vec<float> bounded = at_most(x, 4.0f);
  const Vec<float> far = exp(zero - polynomial(kQ, bounded));
  const Vec<float> beyond{x.raw > bounded.raw ? zero.raw : far.raw};
  return {x.raw < one.raw ? near.raw : beyond.raw};
}

FASTCONV_INLINE Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) x.raw[i] = __builtin_exp(x.raw[i]);
  return x;
}
FASTCONV_INLINE Vec<double> erfc_of_magnitude(Vec<double> x) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) x.raw[i] = __builtin_erfc(x.raw[i]);
  return x;
}

template <class T>
FASTCONV_INLINE Vec<T> gelu(Vec<T> x) {
  const Vec<T> zero = Vec<T>::zero(), two = Vec<T>::broadcast(2);
  const Vec<T> scaled = x * Vec<T>::broadcast(static_cast<T>(0.70710678118654752440));
  const Vec<T> tail = erfc_of_magnitude(Vec<T>{x.raw < zero.raw ? -scaled.raw : scaled.raw});
  const Vec<T> twice_share{x.raw < zero.raw ? tail.raw : (two - tail).raw};
  return x * Vec<T>::broadcast(static_cast<T>(0.5)) * twice_share;
}

// Those that take more than a few instructions: never inlined, for they stand behind every store.
template <class T>
__attribute__((noinline)) static Vec<T> activate_smoothly(Vec<T> x, Activation activation) {
  if (activation == Activation::kSilu) return x / (Vec<T>::broadcast(1) + exp(Vec<T>::zero() - x));
  if (activation == Activation::kGelu) return gelu(x);
  const Vec<T> shifted = x + Vec<T>::broadcast(3);
  return x * (at_most(at_least(shifted, T{0}), T{6}) / Vec<T>::broadcast(6));
}

template <class T>
FASTCONV_INLINE Vec<T> activate(Vec<T> x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return at_least(x, T{0});
    case Activation::kRelu6:
      return at_most(at_least(x, T{0}), T{6});
    default:
      return activate_smoothly(x, activation);
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
