// The kernels for averages, and how a sum is divided.
#pragma once
#include "../average.h"
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {

void average(const Average& average, const void* read, void* written);

// Channels lie next to each other in what is read and written; any other tensors.
void average_channels(const Average& average, const void* read, void* written);
void average_rows(const Average& average, const void* read, void* written);

// What can be done in a better way; false: nothing was done.
bool average_halved_gradient(const Average& average, const void* read, void* written);
bool average_planes(const Average& average, const void* read, void* written);
bool average_small_windows(const Average& average, const void* read, void* written);
bool average_wide_windows(const Average& average, const void* read, void* written);

// sum / divisor, rounded once. Where a power of two divides, its reciprocal multiplies: the same
// number, sooner.
template <class T>
struct Divisor {
  Vec<T> factor, divisor;
  bool exact;

  FASTCONV_INLINE explicit Divisor(double value)
      : factor(Vec<T>::broadcast(static_cast<T>(1 / value))),
        divisor(Vec<T>::broadcast(static_cast<T>(value))) {
    uint64_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    exact = (bits & ((uint64_t{1} << 52) - 1)) == 0;
  }
  FASTCONV_INLINE Vec<T> divide(Vec<T> sum) const {
    return exact ? sum * factor : Vec<T>{sum.raw / divisor.raw};
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
