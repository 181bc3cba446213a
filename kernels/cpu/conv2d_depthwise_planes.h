// Planes of depthwise convolution's tensors on their way into lanes of channels, and its weight, which
// lies like planes of few pixels.
#pragma once
#include "conv2d_depthwise_window.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Calls put(m, v) for each pixel m: lane c of v is source[m * step + c * stride_c], zero from
// `channels` on.
template <class S, class Put>
FASTCONV_INLINE void transpose_planes(const S* source, int64_t step, int64_t stride_c,
                                      int64_t pixels, int64_t channels, const Put& put) {
  using T = Compute<S>;
  using V = Vec<T>;
  for (int64_t next = 0; next < pixels; next += V::kLanes) {
    // The last block overlaps the one before instead of being partly empty.
    const int64_t m = larger(smaller(next, pixels - V::kLanes), int64_t{0});
    const int64_t count = smaller(pixels, int64_t{V::kLanes});
    const S* from = source + m * step;
    V block[V::kLanes];
    if (step == 1 && count == V::kLanes && channels == V::kLanes) {
#pragma GCC unroll 16
      for (int c = 0; c < V::kLanes; ++c) block[c] = load_as_compute(from + c * stride_c);
    } else if (step == 1) {
#pragma GCC unroll 16
      for (int c = 0; c < V::kLanes; ++c)
        block[c] = load_some_as_compute(from + c * stride_c, c < channels ? count : 0);
    } else {
      alignas(64) T lanes[V::kLanes];
      for (int c = 0; c < V::kLanes; ++c) {
        copy_run(lanes, from + c * stride_c, step, c < channels ? count : 0);
        block[c] = load_some(lanes, c < channels ? count : 0);
      }
    }
    transpose(block);
    if (count == V::kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; ++i) put(m + i, block[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; ++i)
        if (i < count) put(m + i, block[i]);
    }
  }
}

// [t][lane] of target channels k + lane, taps in the window's order; zero behind the last channel.
template <class S>
void pack_depthwise_weight(const Product<S>& p, const DepthwiseWindow& window, int64_t k,
                           Compute<S>* packed) {
  using T = Compute<S>;
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const int64_t channels = smaller(kLanes, p.G * p.K - k), taps = window.taps();
  const auto channel = [&](int64_t l) {
    return (k + l) / p.K * p.weight_g + (k + l) % p.K * p.weight_k;
  };
  const auto offset = [&](int64_t t) {
    return p.source.taps[window.number(t / window.S, t % window.S)].weight;
  };
  const int64_t step = taps > 1 ? offset(1) - offset(0) : 1;
  const int64_t apart = channels > 1 ? channel(1) - channel(0) : 0;
  bool even = step == 1 || step == -1;
  for (int64_t t = 1; t < taps; ++t) even &= offset(t) - offset(t - 1) == step;
  for (int64_t l = 1; l < channels; ++l) even &= channel(l) - channel(l - 1) == apart;
  if (even) {
    const S* from = p.weight + channel(0) + offset(step > 0 ? 0 : taps - 1);
    return transpose_planes(from, int64_t{1}, apart, taps, channels, [&](int64_t t, Vec<T> v) {
      v.store(packed + (step > 0 ? t : taps - 1 - t) * kLanes);
    });
  }
  clear_run(packed, taps * kLanes);
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t l = 0; l < channels; ++l)
      packed[t * kLanes + l] = to_compute(p.weight[channel(l) + offset(t)]);
}

// Rows of an image as pixels of registers: pixel m of `rows` rows goes to to + m * pixel. `from` is
// the first row's first channel of the register, of `channels`; spread(v) is what is stored of them.
template <class S, class Spread>
FASTCONV_INLINE void gather_pixels(const PixelSource<S>& image, const S* from, int64_t rows,
                                   int64_t channels, Compute<S>* to, int64_t pixel,
                                   const Spread& spread) {
  using V = Vec<Compute<S>>;
  const bool joined = image.stride_h == image.W * image.stride_w;
  const int64_t runs = joined ? 1 : rows, length = joined ? rows * image.W : image.W;
  for (int64_t run = 0; run < runs; ++run, from += image.stride_h, to += length * pixel) {
    if (image.stride_c == 1)
      for (int64_t m = 0; m < length; ++m)
        spread(load_some_as_compute(from + m * image.stride_w, channels)).store(to + m * pixel);
    else
      transpose_planes(from, image.stride_w, image.stride_c, length, channels,
                       [&](int64_t m, V v) { spread(v).store(to + m * pixel); });
  }
}

// Which source channel, counted from that of target channel k, belongs to each lane, if every source
// channel has K targets; `lanes` of them are.
template <class T>
FASTCONV_INLINE Vec<LaneIndex<T>> lanes_of_source(int64_t k, int64_t lanes, int64_t K) {
  Vec<LaneIndex<T>> index = {};
  for (int64_t l = 0; l < lanes; ++l) index.raw[l] = static_cast<LaneIndex<T>>((k + l) / K - k / K);
  return index;
}

// The way back: lane l of pixel m, at from + m * pixel, goes to store(l, m, run, count), where the
// first `count` lanes of `run` are pixels from m on.
template <class T, class Store>
FASTCONV_INLINE void transpose_pixels(const T* from, int64_t pixel, int64_t pixels, int64_t lanes,
                                      const Store& store) {
  using V = Vec<T>;
  for (int64_t next = 0; next < pixels; next += V::kLanes) {
    // The last block overlaps the one before instead of being partly empty.
    const int64_t m = larger(smaller(next, pixels - V::kLanes), int64_t{0});
    const int64_t count = smaller(pixels, int64_t{V::kLanes});
    V block[V::kLanes];
#pragma GCC unroll 16
    for (int q = 0; q < V::kLanes; ++q)
      block[q] = V::load(from + (m + (q < count ? q : 0)) * pixel);
    transpose(block);
    if (lanes == V::kLanes) {
#pragma GCC unroll 16
      for (int l = 0; l < V::kLanes; ++l) store(l, m, block[l], count);
    } else {
#pragma GCC unroll 16
      for (int l = 0; l < V::kLanes; ++l)
        if (l < lanes) store(l, m, block[l], count);
    }
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
