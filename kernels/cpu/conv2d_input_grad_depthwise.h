// Depthwise conv2d's gradient by its input where windows move by more than one, and so the upsampling
// that conv_transpose2d does channel by channel (bilinear interpolation is one):
//
//   grad_input[n, g, h, w] = sum_{r,s} grad_output[n, g, p, q] * weight[g, r, s]
//     with  h = p * stride_h - pad_h + r * dilation_h,  w = q * stride_w - pad_w + s * dilation_w
//
// Columns w of one phase, b + j * stride_w, meet the same taps s, at q = j + shift(s). Two arrangements:
//   lanes are channels (NHWC)  per phase, the weights of its taps stay in registers along the row
//   lanes are columns (NCHW)   rows of grad_output are widened and padded once per band; a vector of
//                              each phase is summed, and the phases are interleaved into the row
// One task = a band of rows h of one image or plane.
// Cost: 2 flops per pixel and tap that meet; every element of the result is written once.
#pragma once
#include "../parallel.h"
#include "conv2d_input_grad_axis.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {  // of conv2d.cpp alone

constexpr int64_t kPhaseTaps = 64;     // of a window's row, and of its column
constexpr int64_t kMostStride = 16;    // columns
constexpr int64_t kRowsOfBand = 16;
constexpr int64_t kLongestRow = 1 << 16;

template <class S>
class InputGradDepthwise {
 public:
  using T = Compute<S>;
  using V = Vec<T>;

  InputGradDepthwise(const Conv2dShape& s, const S* grad_output, const S* weight, const T* bias,
                     S* grad_input)
      : s_(s), grad_(grad_output), weight_(weight), bias_(bias), result_(grad_input) {
    const Window2d& w = s.window;
    set_axis_taps(w.R, w.stride_h, w.pad_h, w.dilation_h, s.P, s.H, rows_);
    set_axis_taps(w.S, w.stride_w, w.pad_w, w.dilation_w, s.Q, s.W, columns_);
    // Taps by phase: those of phase b are [first_[b], first_[b + 1]).
    int64_t count = 0;
    for (int64_t b = 0; b < w.stride_w; ++b) {
      first_[b] = count;
      for (int64_t t = 0; t < w.S; ++t)
        if (columns_[t].count() > 0 && (columns_[t].offset - b) % w.stride_w == 0) {
          taps_[count] = t;
          shifts_[count] = (b - columns_[t].offset) / w.stride_w;
          left_ = larger(left_, -shifts_[count]);
          right_ = larger(right_, shifts_[count]);
          ++count;
        }
    }
    first_[w.stride_w] = count;
  }

  static bool pays(const Conv2dShape& s) {
    const Window2d& w = s.window;
    if (s.G != s.C || s.G != s.K || s.G == 1 || w.stride_h * w.stride_w == 1) return false;
    if (w.R > kPhaseTaps || w.S > kPhaseTaps || w.stride_w > kMostStride) return false;
    if (w.pad_w > kLongestRow || w.dilation_w > kLongestRow || s.W > kLongestRow) return false;
    return lanes_are_channels(s) || (s.input.s[3] == 1 && s.Q >= V::kLanes / 2);
  }

  void run() const {
    if (lanes_are_channels(s_))
      run_channels();
    else
      run_columns();
  }

 private:
  static bool lanes_are_channels(const Conv2dShape& s) {
    return s.input.s[1] == 1 && s.output.s[1] == 1 && s.G >= V::kLanes / 2;
  }

  FASTCONV_INLINE int64_t columns_of(int64_t b) const {  // of a phase
    return b < s_.W ? (s_.W - 1 - b) / s_.window.stride_w + 1 : 0;
  }

  // Calls visit(r, p) for the taps of a column of the window that row h meets.
  template <class Visit>
  FASTCONV_INLINE void for_each_row_tap(int64_t h, const Visit& visit) const {
    for (int64_t r = 0; r < s_.window.R; ++r) {
      const int64_t from = h - rows_[r].offset;
      if (from % s_.window.stride_h != 0) continue;
      const int64_t p = from / s_.window.stride_h;
      if (p >= rows_[r].begin && p < rows_[r].end) visit(r, p);
    }
  }

  // weights[tap][g], in the compute type.
  void run_channels() const {
    const int64_t *w = s_.weight.s, taps = s_.window.R * s_.window.S;
    Scratch<T> weights(taps * s_.G);
    for (int64_t t = 0; t < taps; ++t)
      copy_run(weights.data() + t * s_.G,
               weight_ + t / s_.window.S * w[2] + t % s_.window.S * w[3], w[0], s_.G);
    const int64_t grain = (int64_t{1} << 14) / (s_.W * s_.G) + 1;
    parallel_for(s_.N * s_.H, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t g = 0; g < s_.G; g += V::kLanes)
          add_channels(row / s_.H, row % s_.H, g, weights.data());
    });
  }

  // Row h of image n, channels g, g + 1, ... of a register.
  void add_channels(int64_t n, int64_t h, int64_t g, const T* weights) const {
    const int64_t *from = s_.output.s, *to = s_.input.s, stride = s_.window.stride_w;
    const int64_t lanes = smaller(s_.G - g, int64_t{V::kLanes});
    const V bias = bias_ ? load_some(bias_ + g, lanes) : V::zero();
    const S* sources[kPhaseTaps];
    const T* factors[kPhaseTaps];
    int64_t rows = 0;
    for_each_row_tap(h, [&](int64_t r, int64_t p) {
      sources[rows] = grad_ + n * from[0] + p * from[2] + g;
      factors[rows++] = weights + r * s_.window.S * s_.G + g;
    });
    for (int64_t b = 0; b < smaller(stride, s_.W); ++b) {
      S* row = result_ + n * to[0] + h * to[2] + b * to[3] + g;
      for (int64_t j = 0; j < columns_of(b); ++j) {
        V sum = bias;
        for (int64_t x = first_[b]; x < first_[b + 1]; ++x) {
          const int64_t q = j + shifts_[x];
          if (q < 0 || q >= s_.Q) continue;
          for (int64_t y = 0; y < rows; ++y)
            sum = sum + load_some_as_compute(sources[y] + q * from[3], lanes) *
                            load_some(factors[y] + taps_[x] * s_.G, lanes);
        }
        store_some_from_compute(row + j * stride * to[3], sum, lanes);
      }
    }
  }

  void run_columns() const {
    const int64_t bands = divide_up(s_.H, kRowsOfBand * s_.window.stride_h), R = s_.window.R;
    const int64_t reach = (R - 1) * s_.window.dilation_h;
    const int64_t most =
        smaller((divide_up(s_.H, bands) - 1 + reach) / s_.window.stride_h + 1, s_.P);
    const int64_t pitch = left_ + columns_of(0) + right_ + V::kLanes;
    parallel_for(s_.N * s_.G * bands, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> source(most * pitch);
      Scratch<T> weights(R * s_.window.S);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = task / bands, n = plane / s_.G, g = plane % s_.G;
        const int64_t h = part_begin(s_.H, bands, task % bands);
        const int64_t h_end = part_begin(s_.H, bands, task % bands + 1);
        const int64_t *w = s_.weight.s, *from = s_.output.s, *to = s_.input.s;
        for (int64_t r = 0; r < R; ++r)
          copy_run(weights.data() + r * s_.window.S, weight_ + g * w[0] + r * w[2], w[3],
                   s_.window.S);
        const int64_t above = h + s_.window.pad_h - reach;
        const int64_t p = above > 0 ? divide_up(above, s_.window.stride_h) : 0;
        const int64_t p_end = smaller((h_end - 1 + s_.window.pad_h) / s_.window.stride_h + 1, s_.P);
        for (int64_t i = p; i < p_end; ++i)
          pad_row(source.data() + (i - p) * pitch, pitch, grad_ + n * from[0] + g * from[1] + i * from[2]);
        for (int64_t i = h; i < h_end; ++i)
          add_columns(i, source.data() - p * pitch + left_, pitch, weights.data(),
                      bias_ ? bias_[g] : T{0}, result_ + n * to[0] + g * to[1] + i * to[2]);
      }
    });
  }

  void pad_row(T* to, int64_t pitch, const S* from) const {
    const int64_t count = smaller(s_.Q, pitch - left_);
    clear_run(to, left_);
    copy_run(to + left_, from, s_.output.s[3], count);
    clear_run(to + left_ + count, pitch - left_ - count);
  }

  // Row h: source + p * pitch is row p of grad_output.
  void add_columns(int64_t h, const T* source, int64_t pitch, const T* weights, T bias,
                   S* row) const {
    const T* sources[kPhaseTaps];
    const T* factors[kPhaseTaps];
    int64_t rows = 0;
    for_each_row_tap(h, [&](int64_t r, int64_t p) {
      sources[rows] = source + p * pitch;
      factors[rows++] = weights + r * s_.window.S;
    });
    const int64_t stride = s_.window.stride_w;
    alignas(64) T phases[kMostStride * V::kLanes];
    for (int64_t j = 0; j < columns_of(0); j += V::kLanes) {
      for (int64_t b = 0; b < stride; ++b) {
        V sum = V::broadcast(bias);
        for (int64_t x = first_[b]; x < first_[b + 1]; ++x)
          for (int64_t y = 0; y < rows; ++y)
            sum = sum + V::load(sources[y] + j + shifts_[x]) * V::broadcast(factors[y][taps_[x]]);
        sum.store(phases + b * V::kLanes);
      }
      store_phases(phases, row + j * stride, smaller(s_.W - j * stride, stride * V::kLanes));
    }
  }

  // to[j * stride + b] = phases[b][j], `count` elements.
  void store_phases(const T* phases, S* to, int64_t count) const {
    switch (s_.window.stride_w) {
      case 1:
        return store_interleaved<1>(phases, to, count);
      case 2:
        return store_interleaved<2>(phases, to, count);
      case 4:
        return store_interleaved<4>(phases, to, count);
      case 8:
        return store_interleaved<8>(phases, to, count);
    }
    const int64_t stride = s_.window.stride_w;
    for (int64_t i = 0, j = 0; i < count; ++j)
      for (int64_t b = 0; b < stride && i < count; ++b, ++i)
        to[i] = from_compute<S>(phases[b * V::kLanes + j]);
  }

  template <int kStride>
  static void store_interleaved(const T* phases, S* to, int64_t count) {
    V v[kStride];
#pragma GCC unroll 8
    for (int b = 0; b < kStride; ++b) v[b] = V::load(phases + b * V::kLanes);
    interleave<kStride>(v);
#pragma GCC unroll 8
    for (int b = 0; b < kStride; ++b) {
      const int64_t some = count - b * V::kLanes;
      if (some > 0) store_some_from_compute(to + b * V::kLanes, v[b], smaller(some, int64_t{V::kLanes}));
    }
  }

  // Lane j of register b becomes element j * kStride + b of all.
  template <int kStride>
  FASTCONV_INLINE static void interleave(V (&v)[kStride]) {
    if constexpr (kStride > 1) {
      V even[kStride / 2], odd[kStride / 2];
#pragma GCC unroll 8
      for (int i = 0; i < kStride / 2; ++i) even[i] = v[2 * i], odd[i] = v[2 * i + 1];
      interleave<kStride / 2>(even);
      interleave<kStride / 2>(odd);
#pragma GCC unroll 8
      for (int i = 0; i < kStride / 2; ++i)
        interleave_lanes(even[i], odd[i], v[2 * i], v[2 * i + 1]);
    }
  }

  const Conv2dShape& s_;
  const S* grad_;
  const S* weight_;
  const T* bias_;  // or null
  S* result_;
  AxisTap rows_[kPhaseTaps], columns_[kPhaseTaps];
  int64_t first_[kMostStride + 1], taps_[kPhaseTaps], shifts_[kPhaseTaps];
  int64_t left_ = 0, right_ = 0;  // how far taps reach over the ends of grad_output's rows, at most
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
