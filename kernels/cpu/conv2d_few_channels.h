// Dense convolution of few channels, channels last (the first layer of a network): unfolding would
// cost as much as the products. A strip of source rows is copied once, with its padding, as
// [row][column][C]; pixel j of a target row reads tap t of channel c at j * step_w * C + offset(t, c).
// Where nothing is padded the source itself is the strip.
//
// One task = a strip of target rows of one image. Cost: 2 * N*K*I*J * C*taps flops.
#pragma once
#include "conv2d_weights.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int64_t kFewChannels = 16;
constexpr int64_t kPaddedStrip = int64_t{1} << 14;  // elements: rows are added up to it
constexpr int64_t kLargestPaddedStrip = int64_t{1} << 18;

// What a strip of target rows reads of one image.
template <class S>
class PaddedStrip {
 public:
  using T = Compute<S>;

  explicit PaddedStrip(const PixelSource<S>& source) : source_(source) {
    h_ = source.taps[0].h, w_ = source.taps[0].w;
    int64_t last_h = h_, last_w = w_;
    for (int64_t t = 1; t < source.tap_count; ++t) {
      const Tap& tap = source.taps[t];
      h_ = smaller(h_, tap.h), w_ = smaller(w_, tap.w);
      last_h = larger(last_h, tap.h), last_w = larger(last_w, tap.w);
    }
    const PixelGrid& grid = source.grid;
    reach_ = last_h - h_ + 1;
    columns_ = (grid.J - 1) * source.step_w + last_w - w_ + 1;
    in_place_ = kSame<S, T> && h_ >= 0 && w_ >= 0 && w_ + columns_ <= source.W &&
                h_ + (grid.I - 1) * source.step_h + reach_ <= source.H;
    pitch_ = in_place_ ? source.stride_h : columns_ * source.C;
    const int64_t near = (kPaddedStrip / (columns_ * source.C) - reach_) / source.step_h + 1;
    const int64_t threads = num_threads();
    const int64_t wanted = divide_up(grid.I, clamped(near, 1, grid.I));
    strips_ = smaller(divide_up(wanted * grid.N, threads) * threads / grid.N, grid.I);
    strips_ = larger(strips_, wanted);
  }

  FASTCONV_INLINE int64_t strips() const { return strips_; }
  FASTCONV_INLINE int64_t pitch() const { return pitch_; }
  FASTCONV_INLINE int64_t size() const {
    return in_place_ ? 0 : source_rows(divide_up(source_.grid.I, strips_)) * pitch_;
  }
  FASTCONV_INLINE bool is_small() const {
    return columns_ <= kLargestPaddedStrip / source_.C &&
           source_rows(1) <= kLargestPaddedStrip / (columns_ * source_.C);
  }

  void set_offsets(int64_t* offsets) const {
    for (int64_t t = 0; t < source_.tap_count; ++t)
      for (int64_t c = 0; c < source_.C; ++c)
        *offsets++ = (source_.taps[t].h - h_) * pitch_ + (source_.taps[t].w - w_) * source_.C + c;
  }

  // What target rows [i, i_end) of image n read, copied to `memory` if need be.
  const T* rows(int64_t n, int64_t i, int64_t i_end, T* memory) const {
    const int64_t first = i * source_.step_h + h_;
    const S* from =
        source_.data + n * source_.stride_n + first * source_.stride_h + w_ * source_.stride_w;
    if constexpr (kSame<S, T>)
      if (in_place_) return from;
    const int64_t C = source_.C;
    const int64_t begin = clamped(-w_, 0, columns_), end = clamped(source_.W - w_, begin, columns_);
    T* to = memory;
    for (int64_t h = first; h < first + source_rows(i_end - i); ++h) {
      if (h < 0 || h >= source_.H) {
        clear_run(to, pitch_);
      } else {
        clear_run(to, begin * C);
        copy_run(to + begin * C, from + begin * C, 1, (end - begin) * C);
        clear_run(to + end * C, (columns_ - end) * C);
      }
      to += pitch_, from += source_.stride_h;
    }
    return memory;
  }

 private:
  FASTCONV_INLINE int64_t source_rows(int64_t target_rows) const {
    return (target_rows - 1) * source_.step_h + reach_;
  }
  FASTCONV_INLINE static int64_t clamped(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
  }

  const PixelSource<S>& source_;
  int64_t h_, w_;    // the first row and column of the window
  int64_t reach_;    // rows of the window
  int64_t columns_;  // of the source that a target row reads
  int64_t pitch_, strips_;
  bool in_place_;
};

// Operand a of a strip's row.
template <class T>
struct PaddedRows {
  const T* data;
  int64_t row_stride;
  const int64_t* offsets;
  int64_t begin = 0;

  FASTCONV_INLINE void prepare(int64_t from, int64_t) { begin = from; }
  FASTCONV_INLINE ShiftedRows<T> rows(int64_t i) const {
    return {data + i * row_stride, row_stride, offsets + begin};
  }
};

// Rows shorter than two tiles are better joined.
template <class S>
bool padding_pays(const Product<S>& p) {
  const PixelSource<S>& source = p.source;
  return p.G == 1 && source.tap_count > 1 && source.C > 0 && source.C <= kFewChannels &&
         source.stride_c == 1 && source.stride_w == source.C && source.grid.count() > 0 &&
         source.grid.J >= 2 * kTileRows && PaddedStrip<S>(source).is_small();
}

// `weight`: panels.
template <class S, class Store>
void run_padded(const Product<S>& p, const Compute<S>* weight) {
  using T = Compute<S>;
  const PaddedStrip<S> strip(p.source);
  const int64_t depth = p.source.depth(), I = p.source.grid.I, J = p.source.grid.J;
  Scratch<int64_t> offsets(depth);
  strip.set_offsets(offsets.data());
  const int64_t strips = strip.strips();
  parallel_for(p.source.grid.N * strips, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> memory(strip.size());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / strips, first = part_begin(I, strips, task % strips);
      const int64_t last = part_begin(I, strips, task % strips + 1);
      const T* from = strip.rows(n, first, last, memory.data());
      for (int64_t i = first; i < last; ++i, from += p.source.step_h * strip.pitch()) {
        PaddedRows<T> rows{from, p.source.step_w * p.source.C, offsets.data()};
        for (int64_t k = 0; k < p.K; k += kChannelBlock) {
          PackedPanels<T> panels{weight + k * depth, depth};
          const Store store{p, k, (n * I + i) * J};
          multiply_block<T>(J, smaller(p.K - k, kChannelBlock), depth, rows, panels, store);
        }
      }
    }
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
