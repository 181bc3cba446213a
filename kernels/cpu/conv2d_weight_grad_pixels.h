// What conv2d's weight gradient reads: pixels of a tensor as lines and columns of a grid, in place or
// copied next to each other.
//
// Along one axis, position p of the window and tap r read line u = p * step + r * reach. Lines lie
// `spacing` elements of the image apart, so that only lines that some tap reads are counted.
#pragma once
#include "../conv2d.h"
#include "conv2d_weight_grad_tile.h"

namespace fastconv::cpu::FASTCONV_ISA {

FASTCONV_INLINE int64_t clamped(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

struct Interval {
  int64_t begin, end;
  FASTCONV_INLINE int64_t length() const { return end - begin; }
  FASTCONV_INLINE Interval within(const Interval& other) const {
    const int64_t from = clamped(begin, other.begin, other.end);
    return {from, clamped(end, from, other.end)};
  }
};

struct SlidingAxis {
  int64_t positions, taps;
  int64_t step, reach, spacing, pad;
  Interval inside;  // lines of the image, the others are padding

  SlidingAxis() = default;
  SlidingAxis(int64_t extent, int64_t positions, int64_t taps, int64_t stride, int64_t dilation,
              int64_t pad)
      : positions(positions), taps(taps), pad(pad) {
    spacing = stride;
    for (int64_t rest = taps > 1 ? dilation : 0; rest;) {  // greatest common divisor
      const int64_t next = spacing % rest;
      spacing = rest, rest = next;
    }
    step = stride / spacing;
    reach = taps > 1 ? dilation / spacing : 0;
    inside = {divide_up(pad, spacing), divide_up(extent + pad, spacing)};
  }

  // A single tap of this axis.
  SlidingAxis tap(int64_t r) const {
    SlidingAxis axis = *this;
    axis.spacing = spacing * step, axis.step = 1, axis.reach = 0, axis.taps = 1;
    axis.pad = pad - r * reach * spacing;
    axis.inside = inside_of(r);
    return axis;
  }
  // The positions whose tap r lies inside.
  FASTCONV_INLINE Interval inside_of(int64_t r) const {
    const int64_t begin = larger(inside.begin - r * reach, int64_t{0});
    const int64_t end = larger(inside.end - r * reach, int64_t{0});
    return Interval{divide_up(begin, step), divide_up(end, step)}.within({0, positions});
  }
  // The lines that positions [begin, end) read, and those of them that lie inside.
  FASTCONV_INLINE Interval all_lines_of(const Interval& p) const {
    return {p.begin * step, (p.end - 1) * step + (taps - 1) * reach + 1};
  }
  FASTCONV_INLINE Interval lines_of(const Interval& p) const {
    return all_lines_of(p).within(inside);
  }
};

// A tensor of one group, [n][c][line][column].
template <class S>
struct GridTensor {
  const S* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
  SlidingAxis h, w;
};

// Where the strip at hand lies: panels of `width` channels, pixels in place or copied. Channel c of
// line v, column u of image n: offset + n * image + v * row + u * column + c * channel.
template <class T>
struct StripPixels {
  const T* data;
  int64_t offset, panel, image, row, column, channel;

  BoxOperand<T> from(int64_t panel_index, int64_t n, int64_t v, int64_t u, int64_t step_v,
                     int64_t step_u) const {
    return {data + (offset + panel_index * panel + n * image + v * row + u * column), image,
            row * step_v, column * step_u, channel};
  }
};

// Whether moving a part of a register is one instruction.
constexpr bool kMasks = kVectorBytes == 64;

// target[pixel * target_stride + c] = source[pixel * stride + c * stride_c], widened.
template <class S>
void copy_each_element(Compute<S>* target, int64_t target_stride, const S* source, int64_t stride,
                       int64_t stride_c, int64_t pixels, int64_t channels) {
  for (int64_t m = 0; m < pixels; ++m)
    for (int64_t c = 0; c < channels; ++c)
      target[m * target_stride + c] = to_compute(source[m * stride + c * stride_c]);
}

// The same where the elements of a channel's row are contiguous and pixels are few of them apart:
// square blocks of the row are transposed in registers, and those of its elements that are no
// pixels left out. 1 <= stride <= kWidestStep.
constexpr int64_t kWidestStep = 4;

template <class S>
void copy_planes(Compute<S>* target, int64_t target_stride, const S* source, int64_t stride,
                 int64_t stride_c, int64_t pixels, int64_t channels) {
  using V = Vec<Compute<S>>;
  const int64_t extent = (pixels - 1) * stride + 1;
  const int64_t whole = kMasks ? extent : extent / V::kLanes * V::kLanes;
  int64_t c = 0;
  for (; c + V::kLanes <= channels; c += V::kLanes) {
    const S* from = source + c * stride_c;
    Compute<S>* to = target + c;
    int64_t m = 0;
    for (int64_t begin = 0; begin < whole; begin += V::kLanes) {
      const int64_t end = smaller(begin + V::kLanes, extent);
      V block[V::kLanes];
      if (end - begin == V::kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < V::kLanes; ++i) block[i] = load_as_compute(from + begin + i * stride_c);
      } else {
        for (int i = 0; i < V::kLanes; ++i)
          block[i] = load_some_as_compute(from + begin + i * stride_c, end - begin);
      }
      transpose(block);
      for (; m * stride < end; ++m) block[m * stride - begin].store(to + m * target_stride);
    }
    copy_each_element(to + m * target_stride, target_stride, from + m * stride, stride, stride_c,
                      pixels - m, V::kLanes);
  }
  copy_each_element(target + c, target_stride, source + c * stride_c, stride, stride_c, pixels,
                    channels - c);
}

// The same where the channels of a pixel are contiguous, into panels of `width` channels.
template <class S>
void copy_channels(Compute<S>* target, int64_t width, int64_t panel, const S* source,
                   int64_t stride, int64_t pixels, int64_t channels) {
  using V = Vec<Compute<S>>;
  constexpr int64_t kWidth = kTileColumns<Compute<S>>;
  if (stride == channels && width == channels) {
    copy_run(target, source, 1, pixels * channels);
    return;
  }
  for (int64_t m = 0; m < pixels; ++m, source += stride, target += width) {
    int64_t c = 0;
    Compute<S>* to = target;
    if (width == kWidth)
      for (; c + kWidth <= channels; c += kWidth, to += panel)
#pragma GCC unroll 4
        for (int j = 0; j < kTileVectors; ++j)
          load_as_compute(source + c + j * V::kLanes).store(to + j * V::kLanes);
    if (c < channels) copy_run(to, source + c, 1, channels - c);
  }
}

// What a strip takes of a tensor. Columns that are `held` but not `copied` are padding: zero.
struct StripRange {
  Interval n, lines, copied, held;
  int64_t c, channels;
};

// Copies it into target[panel][n][line][held column][width]; lanes behind the last channel are zero.
template <class S>
StripPixels<Compute<S>> copy_strip(const GridTensor<S>& tensor, const StripRange& range,
                                   int64_t width, Compute<S>* target) {
  const Interval &n = range.n, &lines = range.lines, &copied = range.copied, &held = range.held;
  const int64_t row = held.length() * width, image = lines.length() * row;
  const int64_t panel = n.length() * image, panels = divide_up(range.channels, width);
  const int64_t stride_h = tensor.stride_h * tensor.h.spacing;
  const int64_t stride_w = tensor.stride_w * tensor.w.spacing;
  if (held.length() > copied.length()) clear_run(target, panels * panel);
  if (range.channels % width) clear_run(target + (panels - 1) * panel, panel);
  // Rows that follow one another in memory are one run.
  const bool one_run = stride_h == copied.length() * stride_w && held.length() == copied.length();
  const int64_t runs = one_run ? smaller(lines.length(), int64_t{1}) : lines.length();
  const int64_t pixels = (one_run ? lines.length() : 1) * copied.length();
  for (int64_t b = n.begin; b < n.end; ++b)
    for (int64_t i = 0; i < runs; ++i) {
      const S* from =
          tensor.data + (b * tensor.stride_n + range.c * tensor.stride_c +
                         ((lines.begin + i) * tensor.h.spacing - tensor.h.pad) * tensor.stride_h +
                         (copied.begin * tensor.w.spacing - tensor.w.pad) * tensor.stride_w);
      Compute<S>* to =
          target + (b - n.begin) * image + i * row + (copied.begin - held.begin) * width;
      if (tensor.stride_c == 1) {
        copy_channels(to, width, panel, from, stride_w, pixels, range.channels);
        continue;
      }
      for (int64_t x = 0; x < panels; ++x, to += panel, from += width * tensor.stride_c) {
        const int64_t channels = smaller(range.channels - x * width, width);
        if (stride_w >= 1 && stride_w <= kWidestStep)
          copy_planes(to, width, from, stride_w, tensor.stride_c, pixels, channels);
        else
          copy_each_element(to, width, from, stride_w, tensor.stride_c, pixels, channels);
      }
    }
  return {
      target, -n.begin * image - lines.begin * row - held.begin * width, panel, image, row, width,
      1};
}

// The tensor's own memory, which needs no conversion.
template <class T>
StripPixels<T> read_in_place(const GridTensor<T>& tensor, int64_t c, int64_t width) {
  return {tensor.data,
          c * tensor.stride_c - tensor.h.pad * tensor.stride_h - tensor.w.pad * tensor.stride_w,
          width * tensor.stride_c,
          tensor.stride_n,
          tensor.stride_h * tensor.h.spacing,
          tensor.stride_w * tensor.w.spacing,
          tensor.stride_c};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
