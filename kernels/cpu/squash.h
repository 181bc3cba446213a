// sigmoid and tanh of whole registers. float32 errs by less than 2e-7 of the result; float64 asks the C
// library, lane by lane.
#pragma once
#include "vector_math.h"

namespace fastconv::cpu::FASTCONV_ISA {

// 1 / (1 + exp(-x)); where exp(-x) is infinite, 0.
template <class T>
FASTCONV_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> one = Vec<T>::broadcast(1);
  return one / (one + exp(Vec<T>::zero() - x));
}

// Near zero x * P(x * x), exact to the last places of small results too; else by exp(2 |x|).
FASTCONV_INLINE Vec<float> tanh(Vec<float> x) {
  constexpr float kP[] = {1.0f,          -0.333333284f,   0.133331612f,  -0.0539433137f,
                          0.0216879416f, -0.00815532636f, 0.00212877779f};
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  const Vec<float> one = Vec<float>::broadcast(1.0f), two = Vec<float>::broadcast(2.0f);
  const Words sign = (Words)x.raw & 0x80000000u;
  const Vec<float> size{(Vec<float>::Raw)((Words)x.raw & 0x7fffffffu)};
  const Vec<float> far = one - two / (exp(size + size) + one);
  const Vec<float> far_signed{(Vec<float>::Raw)((Words)far.raw | sign)};
  const Vec<float> near = x * polynomial(kP, x * x);
  return {size.raw < Vec<float>::broadcast(0.625f).raw ? near.raw : far_signed.raw};
}
FASTCONV_INLINE Vec<double> tanh(Vec<double> x) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) x.raw[i] = __builtin_tanh(x.raw[i]);
  return x;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
