// What avg_pool2d and adaptive_avg_pool2d are to their kernels: sums over spans of rows and columns,
// and divisors.
//
//   forward   written[i,j] = sum_{a in rows(i), b in columns(j)} read[a,b]  /  divisor[i,j]
//   backward  written[i,j] = sum_{a in rows(i), b in columns(j)} read[a,b]  /  divisor[a,b]
//
// for every n, c. rows(i) is the span of input rows under output row i (forward), or the span of
// output rows whose windows hold input row i (backward); columns likewise.
#pragma once
#include "adaptive_avg_pool2d.h"
#include "avg_pool2d.h"

namespace fastconv {

// The windows along one axis.
struct PoolAxis {
  int64_t inputs, outputs;
  int64_t taps, stride, pad;  // not of an adaptive axis
  bool adaptive;              // see adaptive_avg_pool2d.h
  bool counts_padding;
};

struct Span {
  int64_t begin, end;
};

// What window o holds.
static inline constexpr Span window_at(const PoolAxis& axis, int64_t o) {
  if (axis.adaptive)
    return {adaptive_begin(o, axis.inputs, axis.outputs),
            adaptive_end(o, axis.inputs, axis.outputs)};
  const int64_t start = o * axis.stride - axis.pad, end = start + axis.taps;
  return {start < 0 ? 0 : start, end < axis.inputs ? end : axis.inputs};
}

// The windows that hold input i: of an adaptive axis those of the mirrored problem.
static inline constexpr Span windows_over(const PoolAxis& axis, int64_t i) {
  if (axis.adaptive)
    return {adaptive_begin(i, axis.outputs, axis.inputs),
            adaptive_end(i, axis.outputs, axis.inputs)};
  const int64_t behind = i + axis.pad - axis.taps;  // the first window begins behind this
  const int64_t begin = behind < 0 ? 0 : behind / axis.stride + 1;
  const int64_t last = (i + axis.pad) / axis.stride + 1;
  const int64_t end = last < axis.outputs ? last : axis.outputs;
  return {begin < end ? begin : end, end};  // a gap between windows is in none
}

// How many elements window o counts.
static inline constexpr int64_t count_at(const PoolAxis& axis, int64_t o) {
  const Span span = window_at(axis, o);
  if (!axis.counts_padding) return span.end - span.begin;
  const int64_t start = o * axis.stride - axis.pad, end = start + axis.taps;
  return (end < axis.inputs + axis.pad ? end : axis.inputs + axis.pad) - start;
}

// What every window counts; 0 if they differ. The count is a concave function of the window's
// number, so that both ends and the middle tell.
static inline constexpr int64_t common_count(const PoolAxis& axis) {
  if (axis.outputs == 0) return 1;
  const int64_t first = count_at(axis, 0);
  if (axis.adaptive)
    return axis.inputs % axis.outputs == 0 || axis.outputs % axis.inputs == 0 ? first : 0;
  const int64_t middle = count_at(axis, axis.outputs / 2), last = count_at(axis, axis.outputs - 1);
  return first == middle && first == last ? first : 0;
}

struct Average {
  DType dtype;
  int64_t N, C;
  PoolAxis rows, columns;
  double divisor;  // of every window; 0: that of a window is what it counts, rows times columns
  bool backward;
  Strides4 read, written;  // [n, c, row, column]
};

static inline constexpr int64_t read_extent(const Average& average, const PoolAxis& axis) {
  return average.backward ? axis.outputs : axis.inputs;
}
static inline constexpr int64_t written_extent(const Average& average, const PoolAxis& axis) {
  return average.backward ? axis.inputs : axis.outputs;
}
static inline constexpr Span span_of(const Average& average, const PoolAxis& axis, int64_t i) {
  return average.backward ? windows_over(axis, i) : window_at(axis, i);
}

static inline constexpr Average with_common_divisor(Average average) {
  if (average.divisor == 0)
    average.divisor = static_cast<double>(common_count(average.rows)) *
                      static_cast<double>(common_count(average.columns));
  return average;
}

static inline constexpr Average average_of(const AvgPool2dShape& s, bool backward) {
  const Window2d& w = s.window;
  return with_common_divisor({s.dtype,
                              s.N,
                              s.C,
                              {s.H, s.P, w.R, w.stride_h, w.pad_h, false, s.count_include_pad},
                              {s.W, s.Q, w.S, w.stride_w, w.pad_w, false, s.count_include_pad},
                              static_cast<double>(s.divisor_override),
                              backward,
                              backward ? s.output : s.input,
                              backward ? s.input : s.output});
}

// Windows of one size that do not meet are sliding ones.
static inline constexpr PoolAxis adaptive_axis(int64_t inputs, int64_t outputs) {
  if (outputs == 0 || inputs % outputs != 0) return {inputs, outputs, 0, 0, 0, true, false};
  return {inputs, outputs, inputs / outputs, inputs / outputs, 0, false, false};
}

static inline constexpr Average average_of(const AdaptiveAvgPool2dShape& s, bool backward) {
  return with_common_divisor({s.dtype, s.N, s.C, adaptive_axis(s.H, s.P), adaptive_axis(s.W, s.Q),
                              0.0, backward, backward ? s.output : s.input,
                              backward ? s.input : s.output});
}

}  // namespace fastconv
