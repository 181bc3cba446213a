// The gather of max_pool2d_gather.h for square windows of two or three that move by two, channels_last:
// four pixels of grad_input at a time, from the four of grad_output over them. Lanes are channels.
//
// Pixels 2 * m - pad + j, 2 * l - pad + i, j and i = 0 and 1, are held by output m, l with tap j, i, and
// by output m - 1 with r = j + 2, l - 1 with s = i + 2. Outputs that do not exist took nothing.
#pragma once
#include "../scratch.h"
#include "max_pool2d_gather.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Outputs m - 1, l - 1; m - 1, l; m, l - 1; m, l. Pixels of no input are null.
template <class S>
struct PixelPairs {
  const S* gradients[4];
  const uint8_t* taps[4];
  S* to[2][2];
};

template <class S, int kTaps>
struct GatherPixelPairs {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  // Channels [c, c + kLanes), or those of the range.
  template <bool kAll>
  FASTCONV_INLINE static void run(const PixelPairs<S>& pixels, int64_t c, LaneRange<T> range,
                                  const TapLanes<T>* numbers) {
    Vec<T> gradients[4];
    for (int o = kTaps == 3 ? 0 : 3; o < 4; ++o)
      gradients[o] = kAll ? load_as_compute(pixels.gradients[o] + c)
                          : load_range_as_compute(pixels.gradients[o] + c, range);
    const auto add = [&](Vec<T>& sum, int output, int r, int s) {
      const uint8_t* taps = pixels.taps[output] + c;
      const TapLanes<T> number = numbers[r * kTaps + s];
      sum = kAll ? add_taken(sum, gradients[output], taps, number)
                 : add_taken(sum, gradients[output], taps, number, range);
    };
    for (int j = 0; j < 2; ++j)
      for (int i = 0; i < 2; ++i) {
        Vec<T> sum = Vec<T>::zero();
        if (kTaps == 3 && j == 0 && i == 0) add(sum, 0, 2, 2);
        if (kTaps == 3 && j == 0) add(sum, 1, 2, i);
        if (kTaps == 3 && i == 0) add(sum, 2, j, 2);
        add(sum, 3, j, i);
        S* to = pixels.to[j][i];
        if (to == nullptr) continue;
        if (kAll)
          store_sums(to + c, sum, kTaps == 2);
        else
          store_some_from_compute(to + c, sum, range_end(range));
      }
  }
};

template <class S, class Where>
struct GatherPixels {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const MaxPool2dShape& s;
  const S* grad_output;
  const Where* where;
  S* grad_input;

  const Axis rows = window_rows(s), columns = window_columns(s);
  const int64_t row_pairs = (s.H + rows.pad + 1) / 2, pixel_pairs = (s.W + columns.pad + 1) / 2;

  static bool serves(const MaxPool2dShape& s) {
    return moves_by_two(s.window) && s.C > 1 && s.input.s[1] == 1 && s.output.s[1] == 1 &&
           s.indices.s[1] == 1;
  }

  void run() const {
    parallel_for(s.N * row_pairs, kTaskElements / ((2 * s.W + s.Q) * s.C) + 1,
                 [&](int64_t begin, int64_t end) {
                   TapLanes<T> numbers[9];
                   for (int i = 0; i < 9; ++i) numbers[i] = TapLanes<T>::of(i);
                   // Taps of a pixel that does not exist, and of two output rows, from their indices
                   const int64_t row_taps = kSame<Where, uint8_t> ? 0 : s.Q * s.C;
                   const Scratch<uint8_t> taps(s.C + 2 * row_taps);
                   __builtin_memset(taps.data(), kNoTap, static_cast<unsigned long>(s.C));
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t n = i / row_pairs, m = i % row_pairs;
                     if constexpr (!kSame<Where, uint8_t>) {
                       if (i == begin || m == 0) convert(n, m - 1, taps.data() + s.C);
                       convert(n, m, taps.data() + s.C);
                     }
                     if (rows.taps == 3)
                       row<3>(n, m, taps.data(), numbers);
                     else
                       row<2>(n, m, taps.data(), numbers);
                   }
                 });
  }

  void convert(int64_t n, int64_t p, uint8_t* taps) const {
    if constexpr (!kSame<Where, uint8_t>) {
      if (p < 0 || p >= s.P) return;
      for (int64_t q = 0; q < s.Q; ++q)
        taps_of_indices(s, rows.start(p), columns.start(q), 0,
                        where + n * s.indices.s[0] + p * s.indices.s[2] + q * s.indices.s[3], 1,
                        s.C, taps + (p % 2 * s.Q + q) * s.C);
    }
  }

  // `scratch`: taps of no pixel, then of two output rows where they are converted.
  template <int kTaps>
  void row(int64_t n, int64_t m, const uint8_t* scratch, const TapLanes<T>* numbers) const {
    const auto inside = LaneRange<T>::of(0, s.C);
    for (int64_t l = 0; l < pixel_pairs; ++l) {
      PixelPairs<S> pixels;
      for (int o = 0; o < 4; ++o) set_output(pixels, o, n, m - 1 + o / 2, l - 1 + o % 2, scratch);
      for (int j = 0; j < 2; ++j)
        for (int i = 0; i < 2; ++i) {
          const int64_t h = 2 * m - rows.pad + j, w = 2 * l - columns.pad + i;
          const bool exists = h >= 0 && h < s.H && w >= 0 && w < s.W;
          pixels.to[j][i] =
              exists ? grad_input + n * s.input.s[0] + h * s.input.s[2] + w * s.input.s[3]
                     : nullptr;
        }
      if (s.C < kLanes)
        GatherPixelPairs<S, kTaps>::template run<false>(pixels, 0, inside, numbers);
      else
        for_blocks<kLanes>(s.C, [&](int64_t c, int64_t) {
          GatherPixelPairs<S, kTaps>::template run<true>(pixels, c, inside, numbers);
        });
    }
  }

  FASTCONV_INLINE void set_output(PixelPairs<S>& pixels, int o, int64_t n, int64_t p, int64_t q,
                                  const uint8_t* scratch) const {
    pixels.gradients[o] = grad_output, pixels.taps[o] = scratch;
    if (p < 0 || p >= s.P || q < 0 || q >= s.Q) return;
    pixels.gradients[o] += n * s.output.s[0] + p * s.output.s[2] + q * s.output.s[3];
    if constexpr (kSame<Where, uint8_t>)
      pixels.taps[o] = where + n * s.indices.s[0] + p * s.indices.s[2] + q * s.indices.s[3];
    else
      pixels.taps[o] = scratch + (1 + p % 2 * s.Q + q) * s.C;
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
