// The code of conv2d_depthwise_weight_sums.h: blocks of taps, of every kind that a window is made of.
#pragma once
#include "conv2d_depthwise_weight_sums.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Taps of a row, and rows of them, in registers at once; pixels of a tile.
constexpr int kSumTaps = 7, kSumPixels = 4;

// kStep: 1, 2: of the pixels, in x, taps being neighbours; 0: any, and any dilation.
template <class E, int kRows, int kTaps, int kStep>
class WeightSums {
  using T = Compute<E>;
  using V = Vec<T>;

 public:
  // Taps (r, s) on.
  FASTCONV_INLINE WeightSums(const WeightSumsTask<E>& task, int64_t r, int64_t s)
      : task_(task), r_(r), s_(s) {
    each([&](int t, int u) { sums_[t][u] = V::load(at(t, u)); });
  }

  FASTCONV_INLINE void store() const {
    each([&](int t, int u) { sums_[t][u].store(at(t, u)); });
  }

  // Row i of grad, whose source rows lie inside.
  FASTCONV_INLINE void add_row(int64_t i) {
    const int64_t begin = smaller(inside_from(), task_.pixels);
    const int64_t end = larger(smaller(inside_until(), task_.pixels), begin);
    const E* grad = task_.grad + i * task_.grad_row;
    const E* source = task_.source +
                      (task_.h + i * task_.step_h + r_ * task_.dilation_h) * task_.source_row +
                      s_ * task_.dilation * task_.pitch;
    int64_t j = 0;
    for (; j < begin; ++j) add_pixel<false>(grad, source, j);
    for (; j + kSumPixels <= end; j += kSumPixels) add_tile(grad, source, j);
    for (; j < end; ++j) add_pixel<true>(grad, source, j);
    for (; j < task_.pixels; ++j) add_pixel<false>(grad, source, j);
  }

 private:
  template <class Body>
  FASTCONV_INLINE static void each(const Body& body) {
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t)
#pragma GCC unroll 8
      for (int u = 0; u < kTaps; ++u) body(t, u);
  }

  FASTCONV_INLINE T* at(int t, int u) const {
    return task_.sums + ((r_ + t) * task_.window_columns + s_ + u) * V::kLanes;
  }

  // The pixels all of whose taps lie inside.
  FASTCONV_INLINE int64_t inside_from() const {
    const int64_t x = task_.x_begin - s_ * task_.dilation;
    return x <= 0 ? 0 : divide_up(x, task_.step);
  }
  FASTCONV_INLINE int64_t inside_until() const {
    const int64_t x = task_.x_end - (s_ + kTaps - 1) * task_.dilation;
    return x <= 0 ? 0 : divide_up(x, task_.step);
  }

  template <bool kInside>
  FASTCONV_INLINE void add_pixel(const E* grad, const E* source, int64_t j) {
    const V factor = load_as_compute(grad + j * task_.grad_step);
    const int64_t row = task_.dilation_h * task_.source_row;
    each([&](int t, int u) {
      const int64_t x = j * task_.step + u * task_.dilation;
      const int64_t from_first = x + s_ * task_.dilation;
      if (kInside || (from_first >= task_.x_begin && from_first < task_.x_end))
        sums_[t][u] = sums_[t][u] + load_as_compute(source + t * row + x * task_.pitch) * factor;
    });
  }

  FASTCONV_INLINE void add_tile(const E* grad, const E* source, int64_t j) {
    V factor[kSumPixels];
    const E* from = grad + j * task_.grad_step;
#pragma GCC unroll 4
    for (int q = 0; q < kSumPixels; ++q, from += task_.grad_step) {
      factor[q] = load_as_compute(from);
      keep_in_register(factor[q]);
    }
    source += j * task_.step * task_.pitch;
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t, source += task_.dilation_h * task_.source_row) {
      if constexpr (kStep > 0)
        add_columns(source, factor, sums_[t]);
      else
        add_columns_apart(source, factor, sums_[t]);
    }
  }

  FASTCONV_INLINE void add_columns(const E* source, const V (&factor)[kSumPixels],
                                   V (&sums)[kTaps]) {
    const int64_t pitch = task_.pitch;
#pragma GCC unroll 32
    for (int x = 0; x < (kSumPixels - 1) * kStep + kTaps; ++x, source += pitch) {
      V column = load_as_compute(source);
      keep_in_register(column);
#pragma GCC unroll 8
      for (int u = 0; u < kTaps; ++u)
        if (x - u >= 0 && (x - u) % kStep == 0 && (x - u) / kStep < kSumPixels)
          sums[u] = sums[u] + column * factor[(x - u) / kStep];
    }
  }

  FASTCONV_INLINE void add_columns_apart(const E* source, const V (&factor)[kSumPixels],
                                         V (&sums)[kTaps]) {
    const int64_t step = task_.step * task_.pitch, tap = task_.dilation * task_.pitch;
#pragma GCC unroll 4
    for (int q = 0; q < kSumPixels; ++q, source += step) {
      const E* from = source;
#pragma GCC unroll 8
      for (int u = 0; u < kTaps; ++u, from += tap)
        sums[u] = sums[u] + load_as_compute(from) * factor[q];
    }
  }

  const WeightSumsTask<E>& task_;
  int64_t r_, s_;
  V sums_[kRows][kTaps];
};

template <int kRows, int kTaps, int kStep, class E>
__attribute__((noinline)) void weight_sums_tile(const WeightSumsTask<E>& task, int64_t r, int64_t s,
                                                int64_t i, int64_t i_end) {
  WeightSums<E, kRows, kTaps, kStep> sums(task, r, s);
  for (; i < i_end; ++i) sums.add_row(i);
  sums.store();
}

// kRows rows of taps from r on, all columns.
template <int kRows, int kStep, int kTaps = kSumTaps, class E>
FASTCONV_INLINE void add_weight_columns(const WeightSumsTask<E>& task, int64_t r, int64_t s,
                                        int64_t i, int64_t i_end) {
  if constexpr (kTaps > 1)
    if (task.window_columns - s < kTaps)
      return add_weight_columns<kRows, kStep, kTaps - 1>(task, r, s, i, i_end);
  weight_sums_tile<kRows, kTaps, kStep>(task, r, s, i, i_end);
}

template <int kStep, class E>
void add_weight_rows(const WeightSumsTask<E>& task, int64_t i, int64_t i_end) {
  // The rows of grad whose source row for tap row r lies inside: [first(r), until(r)).
  const auto first = [&](int64_t r) {
    const int64_t h = task.h + r * task.dilation_h;
    return larger(i, h >= 0 ? int64_t{0} : divide_up(-h, task.step_h));
  };
  const auto until = [&](int64_t r) {
    const int64_t rows = task.H - task.h - r * task.dilation_h;
    return smaller(i_end, rows <= 0 ? int64_t{0} : divide_up(rows, task.step_h));
  };
  const auto alone = [&](int64_t r, int64_t begin, int64_t end) {
    for (int64_t s = 0; begin < end && s < task.window_columns; s += kSumTaps)
      add_weight_columns<1, kStep>(task, r, s, begin, end);
  };
  if (task.window_rows == 3 && task.window_columns == 3) {
    // Three sums alone would wait for each other.
    const int64_t begin = larger(first(0), first(2)), end = smaller(until(0), until(2));
    for (int64_t r = 0; r < 3; ++r) alone(r, first(r), smaller(until(r), larger(begin, first(r))));
    if (begin < end) weight_sums_tile<3, 3, kStep>(task, 0, 0, begin, end);
    for (int64_t r = 0; r < 3; ++r) alone(r, larger(first(r), larger(end, begin)), until(r));
  } else {
    for (int64_t r = 0; r < task.window_rows; ++r) alone(r, first(r), until(r));
  }
}

template <class E>
void run_weight_sums(const WeightSumsTask<E>& task, int64_t i, int64_t i_end) {
  if (task.dilation == 1 && task.step == 1)
    add_weight_rows<1>(task, i, i_end);
  else if (task.dilation == 1 && task.step == 2)
    add_weight_rows<2>(task, i, i_end);
  else
    add_weight_rows<0>(task, i, i_end);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
