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

// Whether planes are better transposed, so that lanes are channels. In cycles per register of target
// pixels (Zen 4, 2026-11): to transpose takes some for every pixel; lanes of pixels are partly empty,
// and each row that is padded, and each phase of the stride that is split, takes its time.
template <class S>
bool transposing_pays(const Product<S>& p) {
  constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
  const PixelSource<S>& source = p.source;
  const auto waste = [](int64_t count) {
    return static_cast<double>(divide_up(count, kLanes) * kLanes) / static_cast<double>(count);
  };
  const double taps = static_cast<double>(source.tap_count), J = static_cast<double>(source.grid.J);
  const double area = static_cast<double>(source.step_h * source.step_w);
  const double channels = (taps + 6.5 * (area + 1) + 6) * waste(p.G * p.K);
  const double pixels = taps * waste(source.grid.J) * (area > 1 ? 1.6 : 1.15) + 10 * area + 280 / J;
  return channels < pixels;
}

template <class S>
void run_depthwise(const Product<S>& p) {
  const bool channels = p.source.stride_c == 1 && p.target.stride_k == 1;
  if (channels || transposing_pays(p))
    run_depthwise_channels(p);
  else
    run_depthwise_pixels(p);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
