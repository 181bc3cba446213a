// Dense convolution of few channels, channels last (the first layer of a network): unfolding would
// cost as much as the products. A strip of source rows is copied once, with its padding, as
// [row][column][C]; pixel j of a target row reads number c of tap t at j * step_w * C + offset(t, c).
// Where nothing is padded the source itself is the strip.
//
// Pairs of bfloat16 are any two numbers that follow each other in a row of the window, also of two
// taps, so that few channels, if odd, do not leave half of them empty.
//
// One task = a strip of target rows of one image. Cost: 2 * N*K*I*J * C*taps flops.
#pragma once
#include "conv2d_weights.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int64_t kFewChannels = 16;
constexpr int64_t kPaddedStrip = int64_t{1} << 14;  // numbers: rows are added up to it
constexpr int64_t kLargestPaddedStrip = int64_t{1} << 18;

// Calls visit(t, c, count) for the elements of operands that a window reads: `count` numbers from
// number c of tap t on, which are one run of memory.
template <class S, class Visit>
FASTCONV_INLINE void for_each_window_element(const PixelSource<S>& source, const Visit& visit) {
  constexpr int64_t kPair = kNumbers<Packed<S>>;
  const int64_t C = source.C;
  for (int64_t t = 0, taps; t < source.tap_count; t += taps) {
    const Tap* tap = source.taps + t;
    for (taps = 1; kPair > 1 && t + taps < source.tap_count; ++taps)
      if (tap[taps].h != tap->h || tap[taps].w != tap->w + taps) break;
    for (int64_t x = 0; x < taps * C; x += kPair)
      visit(t + x / C, x % C, smaller(taps * C - x, kPair));
  }
}

template <class S>
FASTCONV_INLINE int64_t window_elements(const PixelSource<S>& source) {
  int64_t count = 0;
  for_each_window_element(source, [&](int64_t, int64_t, int64_t) { ++count; });
  return count;
}

// What a strip of target rows reads of one image.
template <class S>
class PaddedStrip {
 public:
  using Number = std::conditional_t<kNumbers<Packed<S>> == 1, Compute<S>, S>;

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
    bool whole = true;  // nothing is read behind the last number
    for_each_window_element(source, [&](int64_t, int64_t, int64_t count) {
      whole = whole && count == kNumbers<Packed<S>>;
    });
    in_place_ = kSame<S, Number> && whole && h_ >= 0 && w_ >= 0 && w_ + columns_ <= source.W &&
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
    return in_place_ ? 0 : source_rows(divide_up(source_.grid.I, strips_)) * pitch_ + kBehind;
  }
  FASTCONV_INLINE bool is_small() const {
    return columns_ <= kLargestPaddedStrip / source_.C &&
           source_rows(1) <= kLargestPaddedStrip / (columns_ * source_.C);
  }

  // Of the number at which an element begins.
  FASTCONV_INLINE int64_t offset(int64_t t, int64_t c) const {
    return (source_.taps[t].h - h_) * pitch_ + (source_.taps[t].w - w_) * source_.C + c;
  }

  // What target rows [i, i_end) of image n read, copied to `memory` if need be.
  const Number* rows(int64_t n, int64_t i, int64_t i_end, Number* memory) const {
    const int64_t first = i * source_.step_h + h_;
    const S* from =
        source_.data + n * source_.stride_n + first * source_.stride_h + w_ * source_.stride_w;
    if constexpr (kSame<S, Number>)
      if (in_place_) return from;
    const int64_t C = source_.C;
    const int64_t begin = clamped(-w_, 0, columns_), end = clamped(source_.W - w_, begin, columns_);
    Number* to = memory;
    for (int64_t h = first; h < first + source_rows(i_end - i); ++h) {
      if (h < 0 || h >= source_.H) {
        clear_numbers(to, pitch_);
      } else {
        clear_numbers(to, begin * C);
        copy_numbers(to + begin * C, from + begin * C, (end - begin) * C);
        clear_numbers(to + end * C, (columns_ - end) * C);
      }
      to += pitch_, from += source_.stride_h;
    }
    return memory;
  }

 private:
  static constexpr int64_t kBehind = kNumbers<Packed<S>> - 1;  // numbers that are read and not used

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
template <class Number>
struct PaddedRows {
  const Number* data;
  int64_t row_stride;
  const int64_t* offsets;
  const BFloat16Pair* kept;  // of pairs
  int64_t begin = 0;

  FASTCONV_INLINE void prepare(int64_t from, int64_t) { begin = from; }
  FASTCONV_INLINE auto rows(int64_t i) const {
    if constexpr (kSame<Number, BFloat16>)
      return ShiftedPairs{data + i * row_stride, row_stride, offsets + begin, kept + begin};
    else
      return ShiftedRows<Number>{data + i * row_stride, row_stride, offsets + begin};
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

// [panel][element][kTileColumns]: panels of operand b for run_padded.
template <class S>
void pack_window_panels(const Product<S>& p, Packed<S>* packed) {
  using T = Packed<S>;
  if constexpr (kNumbers<T> == 1) {
    pack_weight_panels(p, packed);
  } else {
    constexpr int64_t kColumns = kTileColumns<T>;
    const PixelSource<S>& source = p.source;
    for (int64_t k = 0; k < p.K; k += kColumns) {
      const int64_t lanes = smaller(kColumns, p.K - k);
      const S* panel = p.weight + k * p.weight_k;
      for_each_window_element(source, [&](int64_t t, int64_t c, int64_t count) {
        const int64_t first = source.taps[t].weight + c * p.weight_c;
        const int64_t second = c + 1 < source.C ? first + p.weight_c : source.taps[t + 1].weight;
        if (lanes < kColumns) clear_run(packed, kColumns);
        if (count == 2)
          copy_run(packed, PairsApart{panel + first, second - first}, p.weight_k, lanes);
        else
          copy_run(packed, PairsApart::lone(panel + first), p.weight_k, lanes);
        packed += kColumns;
      });
    }
  }
}

// `prepared`: panels, or null.
template <class S, class Store>
void run_padded(const Product<S>& p, const Packed<S>* prepared) {
  using T = Packed<S>;
  using Number = typename PaddedStrip<S>::Number;
  const PaddedStrip<S> strip(p.source);
  const int64_t depth = window_elements(p.source), I = p.source.grid.I, J = p.source.grid.J;
  Scratch<T> packed(prepared ? 0 : panels_size(p, depth));
  if (!prepared) pack_window_panels(p, packed.data());
  const T* const weight = prepared ? prepared : packed.data();
  Scratch<int64_t> offsets(depth);
  Scratch<BFloat16Pair> kept(depth);
  int64_t x = 0;
  for_each_window_element(p.source, [&](int64_t t, int64_t c, int64_t count) {
    constexpr BFloat16 kAll = {0xffff}, kNone = {0};
    offsets.data()[x] = strip.offset(t, c);
    kept.data()[x++] = {kAll, count == 2 ? kAll : kNone};
  });
  const int64_t strips = strip.strips();
  parallel_for(p.source.grid.N * strips, 1, [&](int64_t begin, int64_t end) {
    Scratch<Number> memory(strip.size());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / strips, first = part_begin(I, strips, task % strips);
      const int64_t last = part_begin(I, strips, task % strips + 1);
      const Number* from = strip.rows(n, first, last, memory.data());
      for (int64_t i = first; i < last; ++i, from += p.source.step_h * strip.pitch()) {
        PaddedRows<Number> rows{from, p.source.step_w * p.source.C, offsets.data(), kept.data()};
        for (int64_t k = 0; k < p.K; k += kChannelBlock) {
          PackedPanels<T> panels{weight + k * depth, depth};
          const Store store{p, k, (n * I + i) * J};
          multiply_block<T>(J, smaller(p.K - k, kChannelBlock), depth, rows, panels, store);
        }
      }
    }
  });
}

// The weight as operand b of the arrangement whose lanes are channels.
template <class S>
FASTCONV_INLINE int64_t channel_panels_size(const Product<S>& p) {
  return panels_size(
      p, padding_pays(p) ? window_elements(p.source) : p.source.template elements<Packed<S>>());
}
template <class S>
void pack_channel_panels(const Product<S>& p, Packed<S>* packed) {
  padding_pays(p) ? pack_window_panels(p, packed) : pack_weight_panels(p, packed);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
