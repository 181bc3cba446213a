// What the pointwise kernels do alike with a thread's sums.
#pragma once
#include <cstring>

#include "kernels/cuda/conv2d_pointwise.h"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

// The bias of two neighbouring columns; 0 where there is none.
struct BiasPair {
  float first = 0, second = 0;

  template <class T>
  __device__ __forceinline__ BiasPair(const Pointwise& of, int64_t column, T) {
    const T* bias = static_cast<const T*>(of.bias);
    if (bias == nullptr) return;
    if (column < of.columns) first = widen(bias[column * of.bias_stride]);
    if (column + 1 < of.columns) second = widen(bias[(column + 1) * of.bias_stride]);
  }
};

// Two neighbours, rounded once, in one access of 32 bits.
template <class T>
__device__ __forceinline__ void store_pair(T* to, float first, float second) {
  const T values[2] = {Narrow<T>::from(first), Narrow<T>::from(second)};
  uint32_t raw;
  memcpy(&raw, values, sizeof(raw));
  *reinterpret_cast<uint32_t*>(to) = raw;
}

}  // namespace cuda
}  // namespace fastconv
