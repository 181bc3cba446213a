// Depthwise convolution: one source channel per group, so no product of matrices but weighted sums
// of shifted images. Both passes of conv2d.cpp:
//
//   target[n,g*K+k,i,j] = bias[g*K+k] + sum_t weight[g,k,t] * source[n,g,row,column]
//   with  row = i * step_h + h(t),  column = j * step_w + w(t)
//
// Two arrangements of the lanes, with a block of target pixels in registers:
//   channels   NHWC, read where it lies; planes of few pixels, by way of a transposition
//              (conv2d_depthwise_channels.cpp, conv2d_depthwise_channel_sums.h)
//   pixels     else: those of a row, over rows that are widened and padded once, in cache
//              (conv2d_depthwise_pixels.cpp, conv2d_depthwise_pixel_sums.h)
// Results do not depend on how the work is cut.
// Cost: 2 flops per tap and target element; one copy of each source row that is not read in place.
#pragma once
#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Which pixels of an image a product is about: those at (i * stride_h + a, j * stride_w + b).
struct PhasePlace {
  int64_t a, b;
};

// One of the products that make up an image together: its pixel (i, j) is the image's pixel
// (i * step_h + a, j * step_w + b). They read the same source, with step 1 if there are several.
template <class S>
struct DepthwisePart {
  Product<S> product;
  int64_t a, b;
};

template <class S>
struct DepthwiseImage {
  Target<S> target;  // of all pixels; its grid says how many
  int64_t step_h, step_w;
  bool has_gaps;  // pixels of no part: the bias, or zero
};

#define FASTCONV_DEPTHWISE(S)                                               \
  void run_depthwise_channels(const DepthwisePart<S>* parts, int64_t count, \
                              const DepthwiseImage<S>& image);              \
  void run_depthwise_pixels(const Product<S>& p);
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

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
  const double area = static_cast<double>(source.step_h) * static_cast<double>(source.step_w);
  const double channels = (taps + 6.5 * (area + 1) + 6) * waste(p.G * p.K);
  const double pixels = taps * waste(source.grid.J) * (area > 1 ? 1.6 : 1.15) + 10 * area + 280 / J;
  return channels < pixels;
}

template <class S>
void run_depthwise(const Product<S>& p) {
  const bool channels = p.source.stride_c == 1 && p.target.stride_k == 1;
  if (!channels && !transposing_pays(p)) return run_depthwise_pixels(p);
  const DepthwisePart<S> part = {p, 0, 0};
  DepthwiseImage<S> image = {p.target, 1, 1, false};
  image.target.grid = p.source.grid;
  run_depthwise_channels(&part, 1, image);
}

// All phases of a strided convolution's input gradient at once: they read the same rows. Pixels of no
// phase hold their value already.
template <class S>
void run_depthwise_phases(const Product<S>* phases, const PhasePlace* places, int64_t count,
                          const Target<S>& image, const Window2d& window) {
  Scratch<DepthwisePart<S>> parts(count);
  for (int64_t i = 0; i < count; ++i) parts.data()[i] = {phases[i], places[i].a, places[i].b};
  const int64_t all =
      smaller(window.stride_h, image.grid.I) * smaller(window.stride_w, image.grid.J);
  run_depthwise_channels(parts.data(), count,
                         {image, window.stride_h, window.stride_w, count < all});
}

}  // namespace fastconv::cpu::FASTCONV_ISA
