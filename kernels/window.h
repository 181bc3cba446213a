// Sliding-window geometry, shared by convolution and pooling.
//
//   h = p * stride_h - pad_h + r * dilation_h,  r in [0, R)
//
// are the input rows under the window of output row p (columns likewise: w, q, s, S). A row outside
// [0, H) is padding.
//
// pad_h and pad_w are what lies before the first row and column; what lies behind the last one is
// implied by the output's extent, so that asymmetric padding ('same' with an even window,
// ceil_mode) needs no case of its own.
#pragma once
#include <cstdint>

namespace fastconv {

// Strides of a 4-d tensor, in elements (not bytes), in the order of its axes; any sign, zero for
// expanded axes.
struct Strides4 {
  int64_t s[4];
};

struct Window2d {
  int64_t R, S;                    // rows and columns of the window, >= 1
  int64_t stride_h, stride_w;      // >= 1
  int64_t pad_h, pad_w;            // >= 0, rows above and columns to the left
  int64_t dilation_h, dilation_w;  // >= 1
};

// The half-open range of taps r whose row  start + r * dilation  lies in [0, extent).
struct TapRange {
  int64_t begin, end;  // begin == end: every tap lies in the padding
};

static inline constexpr TapRange taps_inside(int64_t start, int64_t dilation, int64_t taps,
                                             int64_t extent) {
  // A division takes longer than what a pooling does with some rows.
  int64_t begin = start >= 0 ? 0 : -start, end = start >= extent ? 0 : extent - start;
  if (dilation != 1) {
    begin = (begin + dilation - 1) / dilation;
    end = (end + dilation - 1) / dilation;
  }
  if (end > taps) end = taps;
  if (begin > end) begin = end;
  return {begin, end};
}

}  // namespace fastconv
