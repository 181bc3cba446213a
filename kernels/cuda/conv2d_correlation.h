// What forward and input_grad have in common: both are one correlation of a source tensor with the
// weight.
//
//   dest[n, g*columns + column, y, x] = bias[g*columns + column]
//                      + sum_{c,a,b} source[n, g*channels + c, h, w] * weight(column, c, r, s)
//
// forward:    dest = output,     source = input,       column = k in the group, c = c in the group.
// input_grad: dest = grad_input, source = grad_output, column = c in the group, c = k in the group.
// conv_transpose2d is input_grad with a bias.
//
// Only the taps r with  y + pad - r * dilation  divisible by the stride reach a grad_input row y.
// They depend on y % stride alone, so the rows of one remainder ("phase") form a correlation
// without strides of its own: rows y = f + stride * i, taps r = first_tap + a * tap_step, source
// rows h = first + i - a * (tap_step * dilation / stride). Forward is the case of one phase that
// holds every row. Columns likewise.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/conv2d.h"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

struct Axis {
  int64_t dest, source, taps;     // extents
  int64_t stride, pad, dilation;  // of the forward pass
};

struct Correlation {
  const void* source;
  const void* weight;
  const void* bias;  // or null
  void* dest;
  int64_t bias_stride;
  int64_t N, G, channels, columns;
  Axis h, w;
  bool transposed;  // input_grad
  Strides4 source_strides, dest_strides;
  int64_t weight_group, weight_column, weight_channel, weight_r, weight_s;  // strides of the weight
  int64_t phases_h, phases_w;
};

// One phase of one axis: see the head of the file.
template <class Index>
struct Phase {
  Index first_dest, dest_step, count;
  Index first_source, source_step, source_move;
  Index first_tap, tap_step, taps;
};

__host__ __device__ constexpr int64_t phases_of(const Axis& axis, bool transposed) {
  return !transposed ? 1 : axis.stride < axis.dest ? axis.stride : axis.dest;
}

template <class Index>
__host__ __device__ constexpr Index greatest_common_divisor(Index a, Index b) {
  while (b != 0) {
    const Index rest = a - quotient(a, b) * b;
    a = b;
    b = rest;
  }
  return a;
}

template <class Index>
__host__ __device__ constexpr Phase<Index> phase_of(const Axis& axis, bool transposed,
                                                    Index phase) {
  const Index stride = static_cast<Index>(axis.stride), pad = static_cast<Index>(axis.pad);
  const Index dilation = static_cast<Index>(axis.dilation), taps = static_cast<Index>(axis.taps);
  const Index dest = static_cast<Index>(axis.dest);
  if (!transposed) return {0, 1, dest, -pad, stride, dilation, 0, 1, taps};
  if (stride == 1) return {0, 1, dest, pad, 1, -dilation, 0, 1, taps};
  const Index tap_step = quotient(stride, greatest_common_divisor(stride, dilation));

  // The first tap that reaches this phase: row r * dilation lies `above` rows, a multiple of the
  // stride, above it
  Index first_tap = 0;
  Index above = phase + pad;
  const auto reaches = [&] {
    return above >= 0 ? above == quotient(above, stride) * stride
                      : -above == quotient(-above, stride) * stride;
  };
  while (first_tap < taps && first_tap < tap_step && !reaches()) ++first_tap, above -= dilation;
  const Index count = quotient(dest - phase + stride - 1, stride);
  if (first_tap >= taps || first_tap >= tap_step) return {phase, stride, count, 0, 1, 0, 0, 1, 0};
  const Index first_source = above >= 0 ? quotient(above, stride) : -quotient(-above, stride);
  const Index move = quotient(tap_step * dilation, stride);
  return {phase,        stride,   count,
          first_source, 1,        -move,
          first_tap,    tap_step, quotient(taps - first_tap + tap_step - 1, tap_step)};
}

// One thread per few elements, for groups of few channels and for extents beyond 32 bits:
// conv2d_direct.cu.
const char* correlate_direct(DType dtype, const Correlation& correlation, void* stream);
const char* weight_grad_direct(const Conv2dShape& shape, const void* grad_output, const void* input,
                               void* grad_weight, void* stream);

// Groups so small that tiles would be mostly empty. The bound is an estimate: it has not been
// measured yet.
inline bool groups_are_small(const Conv2dShape& shape) {
  constexpr int64_t kSmallProduct = 64;
  return shape.G > 1 && (shape.C / shape.G) * (shape.K / shape.G) <= kSmallProduct;
}

// The tiled kernels hold coordinates (not offsets) in 32 bits; sums of two numbers below the limit
// still fit.
inline bool tiles_fit(const Conv2dShape& shape) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const Window2d& window = shape.window;
  const int64_t below_limit[] = {shape.N,      shape.C,           shape.H,          shape.W,
                                 shape.K,      shape.P,           shape.Q,          window.R,
                                 window.S,     window.stride_h,   window.stride_w,  window.pad_h,
                                 window.pad_w, window.dilation_h, window.dilation_w};
  for (const int64_t number : below_limit) {
    if (number >= kLimit) return false;
  }
  const int64_t channels = shape.C > shape.K ? shape.C : shape.K;
  return shape.P * window.stride_h < kLimit && shape.Q * window.stride_w < kLimit &&
         window.R * window.dilation_h < kLimit && window.S * window.dilation_w < kLimit &&
         window.R * window.S < kLimit && window.R * window.S * channels < kLimit;
}

}  // namespace cuda
}  // namespace fastconv
