// What the kernels of max_pool2d share: their parameters.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/pool.cuh"
#include "kernels/max_pool2d.h"

namespace fastconv {
namespace cuda {

// A MaxPool2dShape with the pointers, in the index type that the tensors need. Divisions and
// products of 64 bits cost several times those of 32, so int64_t is only for what in_pieces cannot
// cut small enough.
template <class Index>
struct Pool {
  const void* values;   // forward: input, backward: grad_output
  void* result;         // forward: output, backward: grad_input
  void* places;         // indices or taps: forward writes them, backward reads them
  Index count;          // threads that have work
  Index C, H, W, P, Q;  // C in units of a thread's channels
  Index R, S, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  Index input[4], output[4], index_strides[4];
  bool channels_last;  // neighbouring threads: neighbouring channels, else columns
};

template <class Index>
Pool<Index> pool_of(const MaxPool2dShape& shape, const void* values, void* result, void* places) {
  const auto narrow = [](int64_t x) { return static_cast<Index>(x); };
  const Window2d& window = shape.window;
  Pool<Index> pool{};
  pool.values = values;
  pool.result = result;
  pool.places = places;
  pool.C = narrow(shape.C), pool.H = narrow(shape.H), pool.W = narrow(shape.W);
  pool.P = narrow(shape.P), pool.Q = narrow(shape.Q);
  pool.R = narrow(window.R), pool.S = narrow(window.S);
  pool.stride_h = narrow(window.stride_h), pool.stride_w = narrow(window.stride_w);
  pool.pad_h = narrow(window.pad_h), pool.pad_w = narrow(window.pad_w);
  pool.dilation_h = narrow(window.dilation_h), pool.dilation_w = narrow(window.dilation_w);
  for (int axis = 0; axis < 4; ++axis) {
    pool.input[axis] = narrow(shape.input.s[axis]);
    pool.output[axis] = narrow(shape.output.s[axis]);
    pool.index_strides[axis] = places == nullptr ? 0 : narrow(shape.indices.s[axis]);
  }
  pool.channels_last = shape.output.s[1] < shape.output.s[3];
  return pool;
}

// Does every offset and every coordinate that a kernel computes fit 32 bits?
inline bool fits_int32(const MaxPool2dShape& shape) {
  const Window2d& window = shape.window;
  constexpr int64_t kLimit = kInt32Limit / 2;  // sums of two such numbers still fit
  const int64_t numbers[] = {
      shape.N * shape.C * shape.P * shape.Q,
      shape.N * shape.C * shape.H * shape.W,
      reach(shape.input, shape.N, shape.C, shape.H, shape.W),
      reach(shape.output, shape.N, shape.C, shape.P, shape.Q),
      reach(shape.indices, shape.N, shape.C, shape.P, shape.Q),
      shape.P * window.stride_h + window.pad_h,
      shape.Q * window.stride_w + window.pad_w,
      window.R * window.dilation_h,
      window.S * window.dilation_w,
  };
  for (const int64_t number : numbers) {
    if (number >= kLimit) return false;
  }
  return true;
}

// Bytes of what says which elements were taken.
inline int64_t place_bytes(const MaxPool2dShape& shape) {
  return shape.where == DType::kUInt8 ? 1 : 8;
}

// Can indices or taps of vectors along an axis be moved in vectors as well, indices two at a time?
inline bool places_in_vectors(const MaxPool2dShape& shape, const void* places, int along,
                              int64_t extent, int64_t lanes) {
  const bool taps = shape.where == DType::kUInt8;
  const int at_once = static_cast<int>(taps ? lanes : lanes > 1 ? 2 : 1);
  return moves_in_vectors(places, shape.indices, along, extent, at_once, place_bytes(shape));
}

// The tap of a window without an element.
constexpr uint8_t kNoTap = 255;

// Calls body(piece, first n, first c) for pieces that fit_int32, or are one plane.
template <class Body>
const char* in_pieces(const MaxPool2dShape& shape, const Body& body) {
  return in_pieces(shape, fits_int32, body);
}

}  // namespace cuda
}  // namespace fastconv
