// What the kernels of all kinds of pooling share: which thread works where, and how tensors are cut
// into pieces whose offsets fit 32 bits.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/window.h"

namespace fastconv {
namespace cuda {

constexpr int kPoolThreads = 256;
// Blocks per multiprocessor: they leave 80 and 128 registers, below which some kernels spill.
template <class Index>
constexpr int kPoolBlocks = sizeof(Index) == 4 ? 3 : 2;

inline int64_t offset_of(const Strides4& strides, int64_t n, int64_t c) {
  return n * strides.s[0] + c * strides.s[1];
}

// Calls body(piece, first n, first c) for pieces of the batch, then of the channels, that fit, or
// are one plane.
template <class Shape, class Body>
const char* in_pieces(const Shape& shape, bool (*fits)(const Shape&), const Body& body,
                      int64_t n = 0, int64_t c = 0) {
  using Extent = int64_t Shape::*;
  const Extent axis = shape.N > 1 ? &Shape::N : &Shape::C;
  if (fits(shape) || shape.*axis == 1) return body(shape, n, c);
  Shape front = shape, back = shape;
  front.*axis = shape.*axis / 2;
  back.*axis -= front.*axis;
  const char* error = in_pieces(front, fits, body, n, c);
  if (error != nullptr) return error;
  return shape.N > 1 ? in_pieces(back, fits, body, n + front.N, c)
                     : in_pieces(back, fits, body, n, c + front.C);
}

inline int64_t blocks_for(int64_t threads) { return (threads + kPoolThreads - 1) / kPoolThreads; }

template <class Index>
struct Place {
  Index n, c, y, x;
};

// The thread's place in a tensor of [N, C, height, width], fastest axis first. A Pool has C, in
// units of a thread's channels, and channels_last: neighbouring threads are neighbouring channels.
template <class Pool, class Index>
__device__ __forceinline__ Place<Index> place_of(const Pool& pool, Index i, Index height,
                                                 Index width) {
  Place<Index> at;
  if (pool.channels_last) at.c = take_axis(i, pool.C);
  at.x = take_axis(i, width);
  at.y = take_axis(i, height);
  if (!pool.channels_last) at.c = take_axis(i, pool.C);
  at.n = i;
  return at;
}

template <class Index>
__device__ __forceinline__ Index offset_of(const Index (&strides)[4], Index n, Index c, Index y,
                                           Index x) {
  return n * strides[0] + c * strides[1] + y * strides[2] + x * strides[3];
}

// The outputs [begin, end) whose windows cover some input row in [first, last].
template <class Index>
struct Windows {
  Index begin, end;
};

template <class Index>
__device__ __forceinline__ Windows<Index> windows_over(Index first, Index last, Index taps,
                                                       Index stride, Index pad, Index dilation,
                                                       Index outputs) {
  const Index behind = first + pad - (taps - 1) * dilation;
  const Index begin = behind <= 0 ? 0 : quotient(behind + stride - 1, stride);
  const Index end = quotient(last + pad, stride) + 1;
  return {begin, end < outputs ? end : outputs};
}

template <class T, int kLanes, class Index>
__device__ __forceinline__ void store_sums(T* to, const Wide<T> (&sums)[kLanes]) {
  Vector<T, kLanes> values;
#pragma unroll
  for (int v = 0; v < kLanes; ++v) values.lane[v] = Narrow<T>::from(sums[v]);
  store_vector(to, values);
}

}  // namespace cuda
}  // namespace fastconv
