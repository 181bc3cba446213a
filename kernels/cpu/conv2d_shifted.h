// Dense convolution over rows without gaps (NCHW; every phase of an input's gradient): a strip of the
// source is copied once, with its padding, and pixel m of a grid as wide as the padded rows reads tap
// t of channel c at m + offset(c, t). Nothing is unfolded; the few pixels between two rows are
// computed in vain. A window that moves by more than one splits rows and columns into as many
// phases, so that neighbours of a phase are neighbours in the strip.
//
// One task = a strip of target rows of one image and group. Cost: 2 * N*K*I*width * C*taps flops.
#pragma once
#include "conv2d_weights.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int64_t kLongestStrip = 512;               // rows or columns
constexpr int64_t kLargestStrip = int64_t{1} << 20;  // elements of all channels
constexpr int64_t kUsualStrip = int64_t{1} << 14;  // as many as stay near: rows are added up to it
constexpr int64_t kMostPhases = 16;

// What a strip of target rows reads, [c][phase][rows + halo][width] of type T: element (i, j) of a
// phase is source row i * step_h + phase.h, column j * step_w + phase.w.
template <class S, class T = Packed<S>>
class ShiftedStrip {
 public:
  explicit ShiftedStrip(const PixelSource<S>& source) : padded_(source) {
    h_ = source.taps[0].h, w_ = source.taps[0].w;
    int64_t last_h = h_, last_w = w_;
    for (int64_t t = 1; t < source.tap_count; ++t) {
      const Tap& tap = source.taps[t];
      h_ = smaller(h_, tap.h), w_ = smaller(w_, tap.w);
      last_h = larger(last_h, tap.h), last_w = larger(last_w, tap.w);
    }
    phases_w_ = smaller(source.step_w, last_w - w_ + 1);
    const int64_t phases_h = smaller(source.step_h, last_h - h_ + 1);
    has_few_phases_ = phases_w_ <= kMostPhases && phases_h <= kMostPhases / phases_w_;
    halo_ = (last_h - h_) / source.step_h;
    padded_.grid.I += halo_;
    padded_.grid.J += (last_w - w_) / source.step_w;
    padded_.tap_count = has_few_phases_ ? phases_h * phases_w_ : 1;
    for (int64_t t = 0; t < padded_.tap_count; ++t) {
      phases_[t] = {h_ + t / phases_w_, w_ + t % phases_w_, 0, 0, 0};
      set_columns_inside(phases_[t], padded_);
    }
    const int64_t near = kUsualStrip / (width() * planes() + 1) - halo_;
    const int64_t rows = larger(larger(kPixelBlock / width(), near), int64_t{1});
    strips_ = divide_up(source.grid.I, rows);
    rows_ = divide_up(source.grid.I, strips_);
  }

  FASTCONV_INLINE int64_t width() const { return padded_.grid.J; }
  FASTCONV_INLINE int64_t strips() const { return strips_; }  // of an image
  FASTCONV_INLINE int64_t rows() const { return rows_; }      // target rows of the longest strip
  FASTCONV_INLINE int64_t plane() const { return (rows_ + halo_) * width(); }
  FASTCONV_INLINE int64_t phases() const { return padded_.tap_count; }
  // Whether it stays in cache: no row is long, and dilation does not spread the rows far.
  FASTCONV_INLINE bool is_small() const {
    return has_few_phases_ && width() <= kLongestStrip && rows_ + halo_ <= kLongestStrip &&
           planes() <= kLargestStrip / plane();
  }
  FASTCONV_INLINE int64_t planes() const { return padded_.template elements<T>(); }
  FASTCONV_INLINE int64_t size() const { return planes() * plane() + kTileColumns<T>; }

  void set_offsets(const PixelSource<S>& source, int64_t* offsets) const {
    for (int64_t c = 0; c < source.template channels<T>(); ++c)
      for (int64_t t = 0; t < source.tap_count; ++t) {
        const int64_t y = source.taps[t].h - h_, x = source.taps[t].w - w_;
        const int64_t phase = y % source.step_h * phases_w_ + x % source.step_w;
        *offsets++ =
            (c * phases() + phase) * plane() + y / source.step_h * width() + x / source.step_w;
      }
  }

  // Copies what target rows [i, i_end) of image n of a group read.
  void fill(const S* group, int64_t n, int64_t i, int64_t i_end, T* strip) const {
    PixelSource<S> padded = padded_;
    padded.data = group;
    padded.taps = phases_;
    const int64_t row = n * padded.grid.I + i;
    clear_run(strip + planes() * plane(), kTileColumns<T>);
    padded.pack_along_pixels(row * width(), (row + i_end - i + halo_) * width(), 0, planes(), strip,
                             plane());
  }

 private:
  PixelSource<S> padded_;
  Tap phases_[kMostPhases];
  int64_t h_, w_;  // the first row and column of the window
  int64_t phases_w_, halo_, rows_, strips_;
  bool has_few_phases_;
};

// Operand b of a strip.
template <class T>
struct ShiftedPanels {
  const T* strip;
  const int64_t* offsets;
  int64_t begin = 0;

  FASTCONV_INLINE void prepare(int64_t from, int64_t) { begin = from; }
  FASTCONV_INLINE ShiftedPanel<T> panel(int64_t j) const {
    return {strip + j * kTileColumns<T>, offsets + begin};
  }
};

template <class S>
bool shifting_is_possible(const Product<S>& p) {
  const PixelSource<S>& source = p.source;
  return source.stride_w == 1 && source.tap_count > 0 && source.C > 0 &&
         ShiftedStrip<S>(source).is_small();
}

// Unfolding costs about as much as 16 of the K products that each unfolded element takes part in;
// a strip that leaves L2 costs more, and so does one of phases that leaves L1 far behind (measured on
// a Xeon with AVX-512, 2026-11).
template <class S>
bool shifting_pays(const Product<S>& p) {
  if (p.source.tap_count < 2 || !shifting_is_possible(p)) return false;
  const int64_t J = p.source.grid.J;
  const ShiftedStrip<S> strip(p.source);
  return (strip.phases() == 1 || strip.size() <= 2 * kUsualStrip) &&
         strip.phases() < p.source.tap_count && (strip.width() - J) * p.K <= 16 * J;
}

// Tiles [k][m] of a grid of rows `width` long, of which the first J pixels are wanted.
template <class S>
struct StoreShifted {
  using T = Compute<S>;
  const Product<S>& product;
  int64_t channel;  // of the task's first tile
  S* data;          // of its first channel and row
  int64_t J, width;
  const Target<S>& target = product.target;
  const T* bias = product.bias ? product.bias + channel : nullptr;

  // In place where the pixels lie in one row.
  EndOf<S> end(int64_t k, int64_t, int64_t m, int64_t columns) const {
    EndOf<S> end{nullptr, target.stride_k, columns, bias ? bias + k : nullptr};
    const int64_t j = m % width;
    if (!product.finish && target.stride_j == 1 && j < J && j + columns <= width &&
        end_in(end, data + m / width * target.stride_i + j + k * target.stride_k))
      end.columns = smaller(columns, J - j);
    return end;
  }

  void operator()(int64_t k, int64_t rows, int64_t m, int64_t columns, const T* tile,
                  int64_t stride) const {
    for_each_run({1, (m + columns) / width + 1, width}, m, m + columns,
                 [&](int64_t, int64_t i, int64_t j, int64_t length, int64_t offset) {
                   S* to = data + k * target.stride_k + i * target.stride_i + j * target.stride_j;
                   for (int64_t r = 0; r < rows && j < J; ++r)
                     product.store_pixels(to + r * target.stride_k, tile + r * stride + offset,
                                          smaller(length, J - j), channel + k + r);
                 });
  }
};

template <class S>
void run_shifted(const Product<S>& p, const Packed<S>* prepared) {
  using T = Packed<S>;
  const ShiftedStrip<S> strip(p.source);
  const int64_t depth = p.source.template elements<T>(), I = p.source.grid.I, J = p.source.grid.J;
  const WeightRows<S> weight(p, prepared);
  Scratch<int64_t> offsets(depth);
  strip.set_offsets(p.source, offsets.data());
  const int64_t strips = strip.strips();
  // Rows one by one, if what a panel holds in vain is less than what lies between the rows.
  const bool by_rows =
      divide_up(J, int64_t{Vec<T>::kLanes}) * Vec<T>::kLanes <= strip.width() + J / 16;
  parallel_for(p.source.grid.N * p.G * strips, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> memory(strip.size());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = part_begin(I, strips, task % strips);
      const int64_t i_end = part_begin(I, strips, task % strips + 1);
      const int64_t g = task / strips % p.G, n = task / strips / p.G;
      strip.fill(p.source.data + g * p.source.C * p.source.stride_c, n, i, i_end, memory.data());
      for (int64_t k = 0; k < p.K; k += kChannelBlock) {
        const int64_t channel = g * p.K + k;
        StagedRows<T> rows = weight.rows(g, k);
        const int64_t grid_rows = by_rows ? i_end - i : 1;
        const int64_t columns = by_rows ? J : (i_end - i - 1) * strip.width() + J;
        for (int64_t row = 0; row < grid_rows; ++row) {
          ShiftedPanels<T> panels{memory.data() + row * strip.width(), offsets.data()};
          S* to = p.target.data + n * p.target.stride_n + (i + row) * p.target.stride_i +
                  channel * p.target.stride_k;
          const StoreShifted<S> store{p, channel, to, J, strip.width()};
          multiply_block<T>(smaller(p.K - k, kChannelBlock), columns, depth, rows, panels, store);
        }
      }
    }
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
