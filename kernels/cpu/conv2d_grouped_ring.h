// Source rows with lanes of channels, for grouped convolution (conv2d_grouped.h): a ring in L1 of the
// rows that some target rows read, widened and padded,
//
//   ring[slot][chunk][phase][x][pitch]    channel chunk * pitch + lane of source column
//                                         first + x * step_w + phase, zero outside
//
// so that the pixels of a tile lie `pitch` apart, whatever the stride.
#pragma once
#include "conv2d_grouped.h"

namespace fastconv::cpu::FASTCONV_ISA {

// source[0], source[stride], ... in the first `count` lanes, the others zero.
template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_run(const S* source, int64_t stride, int64_t count) {
  using V = Vec<Compute<S>>;
  if (stride == 1) {
    if (count == V::kLanes) return load_as_compute(source);
    return load_some_as_compute(source, count);
  }
  alignas(64) Compute<S> lanes[V::kLanes] = {};
  copy_run(lanes, source, stride, count);
  return V::load(lanes);
}

// Calls put(i, v, lanes) for pixel after pixel: lane c of v is source[i * pixel_stride + c *
// channel_stride], c < lanes, at most a register of channels.
template <class S, class Put>
FASTCONV_INLINE void transpose_run(const S* source, int64_t pixel_stride, int64_t channel_stride,
                                   int64_t pixels, int64_t lanes, const Put& put) {
  using V = Vec<Compute<S>>;
  for (int64_t i = 0; i < pixels; i += V::kLanes, source += V::kLanes * pixel_stride) {
    const int64_t count = smaller(pixels - i, int64_t{V::kLanes});
    V block[V::kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < V::kLanes; ++r)
      block[r] = load_run(source + r * channel_stride, pixel_stride, r < lanes ? count : 0);
    transpose(block);
#pragma GCC unroll 16
    for (int r = 0; r < V::kLanes; ++r)
      if (r < count) put(i + r, block[r], lanes);
  }
}

// target[i * target_stride + c] = source[i * pixel_stride + c * channel_stride], widened; blocks are
// transposed in registers where channels lie apart.
template <class S>
void copy_pixels(Compute<S>* target, int64_t target_stride, const S* source, int64_t pixel_stride,
                 int64_t channel_stride, int64_t pixels, int64_t channels) {
  using V = Vec<Compute<S>>;
  if (channel_stride == 1)
    return copy_grid(target, target_stride, source, pixel_stride, channel_stride, pixels, channels);
  for (int64_t c = 0; c < channels; c += V::kLanes)
    transpose_run(source + c * channel_stride, pixel_stride, channel_stride, pixels,
                  smaller(channels - c, int64_t{V::kLanes}), [&](int64_t i, V v, int64_t lanes) {
                    store_some(target + i * target_stride + c, v, lanes);
                  });
}

template <class S>
class ChannelRing {
 public:
  using T = Compute<S>;

  // `columns`: pixels of the longest piece of a target row; `rows`: target rows that are read at once.
  ChannelRing(const PixelSource<S>& source, int64_t channels, int64_t columns, int64_t rows,
              int64_t pitch)
      : source_(source), span_(source), pitch_(pitch) {
    slots_ = smaller(span_.rows + (rows - 1) * source.step_h, source.H);
    phases_ = smaller(source.step_w, span_.columns);
    width_ = columns + (span_.columns - 1) / source.step_w;
    row_ = divide_up(channels, pitch) * chunk();
  }

  int64_t size() const { return (slots_ + 1) * row_; }
  int64_t slots() const { return slots_; }
  // Between two chunks of channels of one row.
  FASTCONV_INLINE int64_t chunk() const { return phases_ * width_ * pitch_; }

  // Lends memory for size() elements and slots() numbers.
  void use(T* memory, int64_t* tags) { memory_ = memory, tags_ = tags; }

  // From here on: rows of `image` (its first channel), pixels [j, j + columns).
  void start(const S* image, int64_t channels, int64_t j, int64_t columns) {
    if (channels != channels_ || j != j_ || columns != columns_) clear_run(memory_, size());
    image_ = image, channels_ = channels, j_ = j, columns_ = columns;
    for (int64_t i = 0; i < slots_; ++i) tags_[i] = -1;
  }

  // Where tap t of target row i reads pixel j; null outside. Taps of one row follow each other.
  FASTCONV_INLINE const T* tap(int64_t i, int64_t t) {
    const int64_t h = i * source_.step_h + source_.taps[t].h;
    if (h < 0 || h >= source_.H) return nullptr;
    return row_at(h) + column(t);
  }
  // Zeros, to read instead.
  FASTCONV_INLINE const T* zeros(int64_t t) const { return memory_ + slots_ * row_ + column(t); }

 private:
  FASTCONV_INLINE int64_t column(int64_t t) const {
    const int64_t w = source_.taps[t].w - span_.w;
    return (w % source_.step_w * width_ + w / source_.step_w) * pitch_;
  }

  FASTCONV_INLINE const T* row_at(int64_t h) {
    const int64_t slot = h % slots_;
    if (tags_[slot] != h) fill(memory_ + slot * row_, h);
    tags_[slot] = h;
    return memory_ + slot * row_;
  }

  void fill(T* row, int64_t h) const {
    const S* from = image_ + h * source_.stride_h;
    const int64_t step = source_.step_w, stride = source_.stride_w;
    const int64_t last = columns_ + (span_.columns - 1) / step;
    if (step > 1 && stride == 1 && source_.stride_c != 1) return fill_from_planes(row, from, last);
    for (int64_t c = 0; c < channels_; c += pitch_)
      for (int64_t phase = 0; phase < phases_; ++phase) {
        const int64_t w = j_ * step + span_.w + phase;
        const int64_t begin = smaller(w >= 0 ? 0 : divide_up(-w, step), last);
        const int64_t end = smaller(w >= source_.W ? 0 : divide_up(source_.W - w, step), last);
        T* to = row + c / pitch_ * chunk() + phase * width_ * pitch_;
        copy_pixels(to + begin * pitch_, pitch_,
                    from + (w + begin * step) * stride + c * source_.stride_c, step * stride,
                    source_.stride_c, end - begin, smaller(channels_ - c, pitch_));
      }
  }

  // All columns are transposed in passing, and each goes to its phase.
  void fill_from_planes(T* row, const S* from, int64_t last) const {
    const int64_t step = source_.step_w, first = j_ * step + span_.w;
    const int64_t begin = larger(first, int64_t{0});
    const int64_t end = smaller(first + (last - 1) * step + phases_, source_.W);
    for (int64_t c = 0; c < channels_; c += pitch_, row += chunk())
      for (int64_t d = 0, count = smaller(channels_ - c, pitch_); d < count; d += Vec<T>::kLanes) {
        int64_t phase = (begin - first) % step, x = (begin - first) / step;
        transpose_run(from + begin + (c + d) * source_.stride_c, 1, source_.stride_c,
                      larger(end - begin, int64_t{0}), smaller(count - d, int64_t{Vec<T>::kLanes}),
                      [&](int64_t, Vec<T> v, int64_t lanes) {
                        if (phase < phases_)
                          store_some(row + (phase * width_ + x) * pitch_ + d, v, lanes);
                        if (++phase == step) phase = 0, ++x;
                      });
      }
  }

  const PixelSource<S>& source_;
  WindowSpan span_;
  int64_t pitch_, slots_, phases_, width_, row_;
  T* memory_ = nullptr;
  int64_t* tags_ = nullptr;  // which source row a slot holds
  const S* image_ = nullptr;
  int64_t channels_ = -1, j_ = -1, columns_ = -1;
};

// Lane (g, j) of permutation d is lane (g, (j + d * direction) mod K).
template <class T>
FASTCONV_INLINE void set_rotations(int64_t K, int64_t count, int64_t direction,
                                   LaneIndex<T>* index) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t d = 0; d < count; ++d)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t j = lane % K, from = lane - j + (j + K + direction * (d % K)) % K;
      *index++ = static_cast<LaneIndex<T>>(from < kLanes ? from : lane);
    }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
