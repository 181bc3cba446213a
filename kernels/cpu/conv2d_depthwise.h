// Depthwise convolution: one source channel per group, so no product of matrices but weighted sums
// of shifted images. Both passes of conv2d.cpp:
//
//   target[n,g*K+k,i,j] = bias[g*K+k] + sum_t weight[g,k,t] * source[n,g,row,column]
//   with  row = i * step_h + h(t),  column = j * step_w + w(t)
//
// Two arrangements of the lanes, both over rows that are widened and padded once, in cache
// (conv2d_depthwise_rows.h), with a block of target pixels in registers (conv2d_depthwise_sums.h):
//   channels   NHWC; planes of few pixels, by way of a transposition
//   pixels     else: those of a row
// Results do not depend on how the work is cut.
// Cost: 2 flops per tap and target element; one copy of each source row.
#pragma once
#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

#define FASTCONV_DEPTHWISE(S)                         \
  void run_depthwise_channels(const Product<S>& p); \
  void run_depthwise_pixels(const Product<S>& p);
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

// One source channel per group, at least one tap.
template <class S>
bool is_depthwise(const Product<S>& p) {
  return p.source.C == 1 && p.G > 1 && p.source.tap_count > 0;
}

// Rows of so few pixels leave lanes empty: more than it costs to transpose.
constexpr int64_t kShortDepthwiseRow = 20;

template <class S>
void run_depthwise(const Product<S>& p) {
  const bool channels = p.source.stride_c == 1 && p.target.stride_k == 1;
  const bool transposed =
      p.source.grid.J <= kShortDepthwiseRow && p.G * p.K >= Vec<Compute<S>>::kLanes / 2;
  if (channels || transposed)
    run_depthwise_channels(p);
  else
    run_depthwise_pixels(p);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
