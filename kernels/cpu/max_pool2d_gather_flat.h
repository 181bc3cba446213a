// The gather of max_pool2d_gather.h where output and input are of one size: windows that move by one.
//
// A plane is one row of H * W elements, and tap r, s of a window lies always equally far from it: by
// (r * dilation_h - pad_h) * W + s * dilation_w - pad_w. Lanes run over the ends of rows: an output
// beyond the end belongs to another row, whose taps are its own.
#pragma once
#include "../scratch.h"
#include "max_pool2d_gather.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class S, class Where>
struct GatherFlat {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const MaxPool2dShape& s;
  const S* grad_output;
  const Where* where;
  S* grad_input;

  const Axis rows = window_rows(s), columns = window_columns(s);
  const int64_t plane_size = s.H * s.W, entries = rows.taps * columns.taps;

  // The outputs that took an element by a tap lie `offset` behind it.
  struct Entry {
    int64_t offset;
    TapLanes<T> tap;
  };

  static bool serves(const MaxPool2dShape& s) {
    const bool dense = s.input.s[3] == 1 && s.output.s[3] == 1 && s.indices.s[3] == 1 &&
                       s.input.s[2] == s.W && s.output.s[2] == s.W && s.indices.s[2] == s.W;
    const bool ones = s.window.stride_h == 1 && s.window.stride_w == 1;
    return dense && ones && s.P == s.H && s.Q == s.W;
  }

  void run() const {
    parallel_for(s.N * s.C * s.H, kTaskElements / (2 * s.W) + 1, [&](int64_t begin, int64_t end) {
      const Scratch<Entry> list(entries);
      list_entries(list.data());
      const Scratch<uint8_t> taps(kSame<Where, uint8_t> ? 0 : plane_size);
      for (int64_t i = begin; i < end;) {
        const int64_t h = i % s.H, h_end = smaller(s.H, h + end - i);
        plane(i / s.H, h, h_end, list.data(), taps.data());
        i += h_end - h;
      }
    });
  }

  // In the order of the outputs: the last tap first.
  void list_entries(Entry* list) const {
    for (int64_t r = rows.taps - 1; r >= 0; --r)
      for (int64_t t = columns.taps - 1; t >= 0; --t)
        *list++ = {(rows.pad - r * rows.dilation) * s.W + columns.pad - t * columns.dilation,
                   TapLanes<T>::of(r * columns.taps + t)};
  }

  void plane(int64_t nc, int64_t h, int64_t h_end, const Entry* list, uint8_t* converted) const {
    const int64_t n = nc / s.C, c = nc % s.C;
    const S* from = grad_output + n * s.output.s[0] + c * s.output.s[1];
    const Where* at = where + n * s.indices.s[0] + c * s.indices.s[1];
    S* to = grad_input + n * s.input.s[0] + c * s.input.s[1];
    const uint8_t* taps = converted;
    if constexpr (kSame<Where, uint8_t>) {
      taps = at;
    } else {
      const int64_t first = larger(h + rows.pad - rows.reach(), int64_t{0});
      const int64_t last = smaller(h_end + rows.pad, s.H);
      for (int64_t p = first; p < last; ++p)
        taps_of_indices(s, rows.start(p), -columns.pad, 1, at + p * s.W, 1, s.W,
                        converted + p * s.W);
    }
    // Two registers at a time, as long as all windows over them lie in the plane
    const int64_t lowest = list[0].offset, highest = list[entries - 1].offset;
    int64_t e = h * s.W;
    const int64_t end = h_end * s.W;
    while (e < end) {
      const bool inside = e + smaller(lowest, highest) >= 0 &&
                          e + larger(lowest, highest) + 2 * kLanes <= plane_size;
      if (inside && e + 2 * kLanes <= end) {
        Vec<T> sums[2] = {Vec<T>::zero(), Vec<T>::zero()};
        for (int64_t i = 0; i < entries; ++i) {
          const int64_t o = e + list[i].offset;
          sums[0] = add_taken(sums[0], load_as_compute(from + o), taps + o, list[i].tap);
          sums[1] = add_taken(sums[1], load_as_compute(from + o + kLanes), taps + o + kLanes,
                              list[i].tap);
        }
        store_sums(to + e, sums[0], entries == 1);
        store_sums(to + e + kLanes, sums[1], entries == 1);
        e += 2 * kLanes;
      } else {
        const Vec<T> sum = sum_near_edge(from, taps, e, list);
        if (e + kLanes <= end)
          store_sums(to + e, sum, entries == 1);
        else
          store_some_from_compute(to + e, sum, end - e);
        e += kLanes;
      }
    }
  }

  FASTCONV_INLINE Vec<T> sum_near_edge(const S* from, const uint8_t* taps, int64_t e,
                                       const Entry* list) const {
    Vec<T> sum = Vec<T>::zero();
    for (int64_t i = 0; i < entries; ++i) {
      const int64_t o = e + list[i].offset;
      const auto inside = LaneRange<T>::of(-o, plane_size - o);
      sum = add_taken(sum, load_range_as_compute(from + o, inside), taps + o, list[i].tap, inside);
    }
    return sum;
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
