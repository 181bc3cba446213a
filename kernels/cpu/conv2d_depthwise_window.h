// The window of a depthwise convolution as a grid, and the source rows and columns that a block of
// target pixels reads through it.
//
//   tap (r, s) of target pixel (i, j) reads source row     i * step_h + h + r * dilation_h,
//                                            source column  j * step_w + w + s * dilation_w
//
// with r and s ascending in the source, whichever way the taps of the product are listed (forward
// they ascend, for the input's gradient they descend).
#pragma once
#include "conv2d_pixels.h"
#include "simd_memory.h"

namespace fastconv::cpu::FASTCONV_ISA {

FASTCONV_INLINE int64_t common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

struct DepthwiseWindow {
  int64_t R, S;
  int64_t h, w;
  int64_t dilation_h, dilation_w;  // 1 where there is but one row or column
  bool rows_descend, columns_descend;

  // The taps of a product are a grid, row by row: each row has the columns of the first.
  template <class Storage>
  explicit DepthwiseWindow(const PixelSource<Storage>& source) {
    const Tap* taps = source.taps;
    S = 1;
    while (S < source.tap_count && taps[S].h == taps[0].h) ++S;
    R = source.tap_count / S;
    const Tap& last = taps[source.tap_count - 1];
    rows_descend = last.h < taps[0].h, columns_descend = last.w < taps[0].w;
    h = smaller(taps[0].h, last.h), w = smaller(taps[0].w, last.w);
    dilation_h = R == 1 ? 1 : larger(taps[S].h - taps[0].h, taps[0].h - taps[S].h);
    dilation_w = S == 1 ? 1 : larger(taps[1].w - taps[0].w, taps[0].w - taps[1].w);
  }

  // The number of tap (r, s) in the product's list.
  FASTCONV_INLINE int64_t number(int64_t r, int64_t s) const {
    return (rows_descend ? R - 1 - r : r) * S + (columns_descend ? S - 1 - s : s);
  }
  FASTCONV_INLINE int64_t taps() const { return R * S; }
};

// Target rows that a block of sums holds at most.
constexpr int kBlockRows = 4;

// Which rows a block of target rows reads. If the window slides by its own dilation, or by a divisor
// of it, the rows of targets that lie `spacing` apart coincide: row k of the block is tap row k - o
// of its o-th target row. Else every tap row of every target row is one of its own, k = o * R + r.
struct DepthwiseRows {
  bool shared;
  int64_t spacing;     // between the target rows of a block
  int64_t h, step, R;  // of the window
  int64_t dilation;

  template <class Storage>
  DepthwiseRows(const DepthwiseWindow& window, const PixelSource<Storage>& source)
      : h(window.h), step(source.step_h), R(window.R), dilation(window.dilation_h) {
    constexpr int64_t kMostSpacing =
        4;  // further apart, the rows between would push others out of L1
    shared = R > 1 && dilation % step == 0 && dilation / step <= kMostSpacing;
    spacing = shared ? dilation / step : 1;
  }

  // Target rows that are computed in turn before the next ones: `spacing` blocks.
  FASTCONV_INLINE int64_t group() const { return spacing * kBlockRows; }
  // Source rows from the first to the last that a group reads.
  FASTCONV_INLINE int64_t reach() const { return (group() - 1) * step + (R - 1) * dilation + 1; }
  // Rows of a block of `count` target rows, and where row k of that at i lies.
  FASTCONV_INLINE int64_t count(int64_t targets) const {
    return shared ? targets + R - 1 : targets * R;
  }
  FASTCONV_INLINE int64_t source_row(int64_t i, int64_t k) const {
    return i * step + h + (shared ? k * dilation : k / R * step + k % R * dilation);
  }
};

// Which source columns a row of pixels reads: of all from `first` on every `unit`-th, so that pixel j
// and tap s meet element j * step + s * dilation.
struct DepthwiseColumns {
  int64_t first, unit, step, dilation, S;

  template <class Storage>
  DepthwiseColumns(const DepthwiseWindow& window, const PixelSource<Storage>& source)
      : first(window.w), S(window.S) {
    unit = common_divisor(source.step_w, S > 1 ? window.dilation_w : 0);
    step = source.step_w / unit, dilation = S > 1 ? window.dilation_w / unit : 1;
  }

  FASTCONV_INLINE int64_t count(int64_t pixels) const {
    return (pixels - 1) * step + (S - 1) * dilation + 1;
  }
  // Elements [begin, end) of `count` that lie inside a source of W columns, the first of all being
  // that of pixel j.
  FASTCONV_INLINE void inside(int64_t j, int64_t W, int64_t count, int64_t& begin,
                              int64_t& end) const {
    const int64_t column = first + j * step * unit;
    begin = smaller(column >= 0 ? 0 : divide_up(-column, unit), count);
    end = larger(smaller(column >= W ? 0 : divide_up(W - column, unit), count), begin);
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
