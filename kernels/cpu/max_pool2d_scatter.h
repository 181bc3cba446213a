// max_pool2d backward as a scatter: outputs in row-major order add to the element that they took.
//
// For windows that hold each element so often that a gather would compare more than it adds, and where
// the window is not known. A task is a plane, or of channels_last kBlock channels, for which sums lie
// next to each other; if planes are few, a band of its rows, of which it alone adds what falls there.
#pragma once
#include "../scratch.h"
#include "max_pool2d_gather.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class S, class Where>
struct Scatter {
  using T = Compute<S>;
  static constexpr int64_t kBlock = 16;

  const MaxPool2dShape& s;
  const S* grad_output;
  const Where* where;
  S* grad_input;

  const Axis rows = window_rows(s), columns = window_columns(s);
  // Windows without an element: what their indices point at is no element of theirs.
  const bool has_empty = s.window.R > 0 && (rows.has_empty_window() || columns.has_empty_window());
  const bool channels_last = s.C > 1 && s.input.s[1] == 1;
  const int64_t block = channels_last ? smaller(kBlock, s.C) : 1;

  // Rows [h, h_end) of planes (n, c), ... (n, c + channels - 1).
  struct Band {
    int64_t n, c, channels, h, h_end;
  };

  void run() const {
    const int64_t blocks = (s.C + block - 1) / block, planes = s.N * blocks;
    const int64_t wanted = planes < num_threads() ? num_threads() : 1;
    const int64_t bands = smaller(wanted, s.H), band_rows = (s.H + bands - 1) / bands;
    const int64_t elements = block * (s.P * s.Q + s.H * s.W);
    parallel_for(planes * bands, kTaskElements / elements + 1, [&](int64_t begin, int64_t end) {
      int64_t offsets[256];
      if (kSame<Where, uint8_t>) list_offsets(offsets);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t plane = i / bands, h = smaller(i % bands * band_rows, s.H);
        const int64_t c = plane % blocks * block;
        scatter({plane / blocks, c, smaller(block, s.C - c), h, smaller(h + band_rows, s.H)},
                offsets);
      }
    });
  }

  void scatter(const Band& band, const int64_t* offsets) const {
    if (band.h == band.h_end) return;
    S* to = grad_input + band.n * s.input.s[0] + band.c * s.input.s[1] + band.h * s.input.s[2];
    const int64_t size = (band.h_end - band.h) * s.W;
    const bool in_place =
        kSame<S, T> && band.channels == 1 && s.input.s[3] == 1 && s.input.s[2] == s.W;
    const Scratch<T> scratch(in_place ? 0 : size * band.channels);
    T* sums = scratch.data();
    if constexpr (kSame<S, T>)
      if (in_place) sums = to;
    __builtin_memset(sums, 0, static_cast<unsigned long>(size * band.channels) * sizeof(T));
    if constexpr (kSame<Where, uint8_t>)
      add_taps(band, sums, offsets);
    else
      add_indices(band, sums);
    if (!in_place) store(band, scratch.data(), to);
  }

  // Sums of a band, rounded: lanes are a row's columns, or a pixel's channels.
  void store(const Band& band, const T* sums, S* to) const {
    const bool row_lanes = band.channels == 1;
    const int64_t count = row_lanes ? s.W : band.channels;
    const int64_t step = s.input.s[row_lanes ? 3 : 1];
    const int64_t pixels = row_lanes ? 1 : s.W;
    for (int64_t h = band.h; h < band.h_end; ++h, to += s.input.s[2])
      for (int64_t w = 0; w < pixels; ++w, sums += count) {
        S* pixel = to + w * s.input.s[3];
        constexpr int64_t kLanes = Vec<T>::kLanes;
        int64_t i = 0;
        for (; step == 1 && i + kLanes <= count; i += kLanes)
          store_from_compute(pixel + i, Vec<T>::load(sums + i));
        for (; i < count; ++i) pixel[i * step] = from_compute<S>(sums[i]);
      }
  }

  FASTCONV_INLINE bool is_empty(int64_t p, int64_t q) const {
    const TapRange down = rows.inside(p), across = columns.inside(q);
    return down.begin == down.end || across.begin == across.end;
  }

  // Calls body(output row, q, gradients, places) for the outputs of a band's channels.
  template <class Body>
  FASTCONV_INLINE void for_outputs(const Band& band, int64_t p_begin, int64_t p_end,
                                   const Body& body) const {
    for (int64_t p = p_begin; p < p_end; ++p) {
      const S* from =
          grad_output + band.n * s.output.s[0] + band.c * s.output.s[1] + p * s.output.s[2];
      const Where* at =
          where + band.n * s.indices.s[0] + band.c * s.indices.s[1] + p * s.indices.s[2];
      for (int64_t q = 0; q < s.Q; ++q) {
        if (!has_empty || !is_empty(p, q)) body(p, q, from, at);
        from += s.output.s[3], at += s.indices.s[3];
      }
    }
  }

  // An index outside the band is another task's, or nobody's.
  void add_indices(const Band& band, T* sums) const {
    const int64_t first = band.h * s.W;
    const auto size = static_cast<uint64_t>((band.h_end - band.h) * s.W);
    for_outputs(band, 0, s.P, [&](int64_t, int64_t, const S* from, const Where* at) {
      for (int64_t i = 0; i < band.channels; ++i) {
        const auto place = static_cast<uint64_t>(at[i * s.indices.s[1]] - first);
        if (place < size)
          sums[static_cast<int64_t>(place) * band.channels + i] +=
              to_compute(from[i * s.output.s[1]]);
      }
    });
  }

  // How far each tap lies from the first; no tap lies beyond every plane.
  void list_offsets(int64_t* offsets) const {
    for (int64_t tap = 0; tap < 256; ++tap)
      offsets[tap] = tap < rows.taps * columns.taps ? tap / columns.taps * rows.dilation * s.W +
                                                          tap % columns.taps * columns.dilation
                                                    : int64_t{1} << 60;
  }

  // A window that begins before the band may end in it.
  void add_taps(const Band& band, T* sums, const int64_t* offsets) const {
    const auto size = static_cast<uint64_t>((band.h_end - band.h) * s.W);
    for_outputs(band, 0, s.P, [&](int64_t p, int64_t q, const S* from, const Where* at) {
      const int64_t corner = (rows.start(p) - band.h) * s.W + columns.start(q);
      for (int64_t i = 0; i < band.channels; ++i) {
        const auto place = static_cast<uint64_t>(corner + offsets[at[i * s.indices.s[1]]]);
        if (place < size)
          sums[static_cast<int64_t>(place) * band.channels + i] +=
              to_compute(from[i * s.output.s[1]]);
      }
    });
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
