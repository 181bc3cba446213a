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
class DepthwiseChannelRows {
 public:
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

  // `pixels`: of the longest piece, as many as its tiles hold; `registers` of target channels, of
  // which `spread` are made of each source channel.
  DepthwiseChannelRows(const PixelSource<S>& source, const DepthwiseColumns& columns, int64_t pixels,
                       int64_t slots, int64_t registers, int64_t spread)
      : source_(source),
        columns_(columns),
        slots_(slots),
        width_(columns.count(pixels)),
        pitch_(pitch_of(registers)),
        spread_(spread),
        index_(spread > 1 ? registers * kLanes : 0),
        position_(slots == source.H && source.stride_c != 1 ? source.H * source.W : 0) {
    int64_t begin, end;
    columns.inside(0, source.W, width_, begin, end);
    whole_ = slots == source.H && columns.unit == 1 && end - begin == source.W &&
             source.stride_w == 1 && source.stride_h == source.W && source.stride_c != 1;
    for (int64_t m = 0; whole_ && m < source.H * source.W; ++m)
      position_.data()[m] = (m / source.W * width_ + begin + m % source.W) * pitch_;
  }

  // Elements between two columns: an odd number of cache lines, so that columns do not fall upon each
  // other in L1.
  static int64_t pitch_of(int64_t registers) {
    constexpr int64_t kLine = 64 / int64_t{sizeof(T)};
    if (registers == 1) return kLanes;
    return (divide_up(registers * kLanes, kLine) | 1) * kLine;
  }
  int64_t size() const { return slots_ * width_ * pitch_; }
  int64_t slots() const { return slots_; }
  // Elements between two pixels, and to tap s.
  FASTCONV_INLINE int64_t pixel_step() const { return columns_.step * pitch_; }
  FASTCONV_INLINE int64_t offset(int64_t s) const { return s * columns_.dilation * pitch_; }

  // Lends memory for size() elements and slots() numbers.
  void use(T* memory, int64_t* tags) { memory_ = memory, tags_.use(tags, slots_); }

  // From here on: target channels [k, k + channels) of an image, pixels from j on.
  void start(const S* image, int64_t k, int64_t channels, int64_t j) {
    if (channels != channels_ || j != j_) clear_run(memory_, size());
    if (spread_ > 1 && (k != k_ || channels != channels_)) set_spread(k, channels);
    image_ = image + k / spread_ * source_.stride_c;
    k_ = k, channels_ = channels, j_ = j;
    columns_.inside(j, source_.W, width_, begin_, end_);
    tags_.forget();
    if (whole_)
      fill_planes(image_, 1, source_.H * source_.W,
                  [&](int64_t m) { return memory_ + position_.data()[m]; });
  }

  // Null outside.
  FASTCONV_INLINE const T* row(int64_t h) {
    if (h < 0 || h >= source_.H) return nullptr;
    if (whole_) return memory_ + h * width_ * pitch_;
    const int64_t slot =
        tags_.slot_of(h, [&](int64_t to) { fill(memory_ + to * width_ * pitch_, h); });
    return memory_ + slot * width_ * pitch_;
  }

 private:
  void fill(T* row, int64_t h) {
    const int64_t column = columns_.first + (j_ * columns_.step + begin_) * columns_.unit;
    const int64_t step = columns_.unit * source_.stride_w, count = end_ - begin_;
    const S* from = image_ + h * source_.stride_h + column * source_.stride_w;
    T* to = row + begin_ * pitch_;
    if (source_.stride_c != 1)
      fill_planes(from, step, count, [&](int64_t m) { return to + m * pitch_; });
    else if (spread_ > 1)
      for (int64_t x = 0; x < count; ++x) spread_pixel(to + x * pitch_, from + x * step);
    else
      for (int64_t x = 0; x < count; ++x) {
        T* target = to + x * pitch_;
        const S* source = from + x * step;
        int64_t c = 0;
        for (; c + kLanes <= channels_; c += kLanes) {
          __builtin_prefetch(target + c + 8 * kLanes, 1);
          load_as_compute(source + c).store(target + c);
        }
        if (c < channels_)
          store_some(target + c, load_some_as_compute(source + c, channels_ - c), channels_ - c);
      }
  }

  // Register by register, pixel m to at(m).
  template <class At>
  FASTCONV_INLINE void fill_planes(const S* from, int64_t step, int64_t pixels,
                                   const At& at) const {
    for (int64_t b = 0; b * kLanes < channels_; ++b) {
      const S* planes = from + first_channel(b) * source_.stride_c;
      const int64_t count = source_channels(b);
      if (spread_ == 1) {
        transpose_planes(planes, step, source_.stride_c, pixels, count,
                         [&](int64_t m, V v) { v.store(at(m) + b * kLanes); });
      } else {
        const auto index = Vec<LaneIndex<T>>::load(index_.data() + b * kLanes);
        transpose_planes(planes, step, source_.stride_c, pixels, count,
                         [&](int64_t m, V v) { permute(v, index).store(at(m) + b * kLanes); });
      }
    }
  }

  void spread_pixel(T* to, const S* from) const {
    for (int64_t b = 0; b * kLanes < channels_; ++b)
      permute(load_some_as_compute(from + first_channel(b), source_channels(b)),
              Vec<LaneIndex<T>>::load(index_.data() + b * kLanes))
          .store(to + b * kLanes);
  }

  // The source channels of register b: where they begin behind that of lane 0 of all, and how many.
  FASTCONV_INLINE int64_t first_channel(int64_t b) const {
    return spread_ == 1 ? b * kLanes : (k_ + b * kLanes) / spread_ - k_ / spread_;
  }
  FASTCONV_INLINE int64_t source_channels(int64_t b) const {
    const int64_t last = smaller((b + 1) * kLanes, channels_) - 1;
    return (spread_ == 1 ? last : (k_ + last) / spread_ - k_ / spread_) - first_channel(b) + 1;
  }

  // Lane l of a register is its source channel index[l].
  void set_spread(int64_t k, int64_t channels) {
    for (int64_t l = 0; l < divide_up(channels, kLanes) * kLanes; ++l) {
      const int64_t first = k + l / kLanes * kLanes, at = smaller(k + l, k + channels - 1);
      index_.data()[l] = static_cast<LaneIndex<T>>(at / spread_ - first / spread_);
    }
  }

  const PixelSource<S>& source_;
  DepthwiseColumns columns_;
  int64_t slots_, width_, pitch_, spread_;
  Scratch<LaneIndex<T>> index_;
  Scratch<int64_t> position_;  // of a plane's pixels in the ring, where it holds all of them
  bool whole_;
  T* memory_ = nullptr;
  RingTags tags_;
  const S* image_ = nullptr;
  int64_t k_ = -1, channels_ = -1, j_ = -1, begin_ = 0, end_ = 0;
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
