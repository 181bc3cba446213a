// Source rows as the sums of a depthwise convolution read them (conv2d_depthwise_sums.h): a ring, in
// cache, of the rows that some target rows read, widened, padded with zeros.
//
//   DepthwiseChannelRows   ring[slot][x][channel]    of column x
//   DepthwisePixelRows     ring[slot][phase][x]      column x * step + phase of one channel
//
// x counts the columns of DepthwiseColumns, from those of the first pixel of a piece on.
#pragma once
#include "../scratch.h"
#include "conv2d_depthwise_window.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Calls put(m, v) for each pixel m: lane c of v is source[m * step + c * stride_c], zero from
// `channels` on.
template <class S, class Put>
FASTCONV_INLINE void transpose_planes(const S* source, int64_t step, int64_t stride_c,
                                      int64_t pixels, int64_t channels, const Put& put) {
  using T = Compute<S>;
  using V = Vec<T>;
  for (int64_t m = 0; m < pixels; m += V::kLanes) {
    const int64_t count = smaller(pixels - m, int64_t{V::kLanes});
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
  const auto channel = [&](int64_t l) { return (k + l) / p.K * p.weight_g + (k + l) % p.K * p.weight_k; };
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

// Which source row each slot of a ring holds.
class RingTags {
 public:
  void use(int64_t* memory, int64_t slots) { tags_ = memory, slots_ = slots; }
  void forget() {
    for (int64_t i = 0; i < slots_; ++i) tags_[i] = -1;
  }
  // The slot of row h; `fill(slot)` brings it there if it is not.
  template <class Fill>
  FASTCONV_INLINE int64_t slot_of(int64_t h, const Fill& fill) {
    const int64_t slot = h % slots_;
    if (tags_[slot] != h) fill(slot);
    tags_[slot] = h;
    return slot;
  }

 private:
  int64_t* tags_ = nullptr;
  int64_t slots_ = 0;
};

template <class S>
class DepthwisePixelRows {
 public:
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  DepthwisePixelRows(const PixelSource<S>& source, const DepthwiseColumns& columns, int64_t slots)
      : source_(source), columns_(columns), slots_(slots) {
    // With more phases than taps in a row, each tap has a copy of its own.
    by_phase_ = columns.step <= columns.S;
    phases_ = by_phase_ ? columns.step : columns.S;
    const int64_t pixels = divide_up(source.grid.J, kLanes) * kLanes;
    phase_stride_ = by_phase_ ? divide_up(columns.count(pixels), columns.step) : pixels;
    phase_stride_ = divide_up(phase_stride_, kLanes) * kLanes;
  }

  int64_t size() const { return slots_ * row_stride(); }
  int64_t slots() const { return slots_; }
  int64_t phases() const { return phases_; }
  int64_t offset(int64_t s) const {
    const int64_t x = s * columns_.dilation;
    return by_phase_ ? x % columns_.step * phase_stride_ + x / columns_.step : s * phase_stride_;
  }

  // Lends memory for size() elements, slots() numbers and 2 * phases() more.
  void use(T* memory, int64_t* tags, int64_t* bounds) {
    memory_ = memory, bounds_ = bounds, tags_.use(tags, slots_);
    clear_run(memory_, size());
    for (int64_t phase = 0; phase < phases_; ++phase) {
      // x with a column inside [0, W).
      const int64_t first = first_column(phase), step = columns_.step * columns_.unit;
      bounds[2 * phase] = smaller(first >= 0 ? 0 : divide_up(-first, step), phase_stride_);
      bounds[2 * phase + 1] = smaller(
          first >= source_.W ? 0 : divide_up(source_.W - first, step), phase_stride_);
    }
  }

  void start(const S* plane) {
    plane_ = plane;
    tags_.forget();
  }

  // Null outside.
  FASTCONV_INLINE const T* row(int64_t h) {
    if (h < 0 || h >= source_.H) return nullptr;
    return memory_ + tags_.slot_of(h, [&](int64_t slot) { fill(slot, h); }) * row_stride();
  }

 private:
  int64_t row_stride() const { return phases_ * phase_stride_; }
  FASTCONV_INLINE int64_t first_column(int64_t phase) const {
    return columns_.first + phase * columns_.unit * (by_phase_ ? 1 : columns_.dilation);
  }

  void fill(int64_t slot, int64_t h) {
    const S* from = plane_ + h * source_.stride_h;
    const int64_t step = columns_.step * columns_.unit;
    for (int64_t phase = 0; phase < phases_; ++phase) {
      const int64_t begin = bounds_[2 * phase], end = bounds_[2 * phase + 1];
      if (begin < end)
        copy_run(memory_ + slot * row_stride() + phase * phase_stride_ + begin,
                 from + (first_column(phase) + begin * step) * source_.stride_w,
                 step * source_.stride_w, end - begin);
    }
  }

  const PixelSource<S>& source_;
  DepthwiseColumns columns_;
  int64_t slots_, phases_, phase_stride_;
  bool by_phase_;
  T* memory_ = nullptr;
  int64_t* bounds_ = nullptr;
  RingTags tags_;
  const S* plane_ = nullptr;
};

}  // namespace fastconv::cpu::FASTCONV_ISA
