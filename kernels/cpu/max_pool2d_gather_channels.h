// The gather of max_pool2d_gather.h, channels_last: lanes are channels of one input pixel.
//
// A task is some input rows. The windows over a pixel are the same for all its channels; two registers
// of them are summed at a time.
#pragma once
#include "../scratch.h"
#include "max_pool2d_gather.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class S, class Where>
struct GatherChannels {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const MaxPool2dShape& s;
  const S* grad_output;
  const Where* where;
  S* grad_input;

  const Axis rows = window_rows(s), columns = window_columns(s);
  const int64_t most_rows = rows.reach() / rows.stride + 1;
  const int64_t most_columns = columns.reach() / columns.stride + 1;

  // A window over a pixel: its output's channels, and the tap that is the pixel.
  struct Entry {
    const S* gradients;
    const uint8_t* taps;
    TapLanes<T> tap;
  };
  struct Memory {
    Holder* columns_over;  // of every input column, most_columns of them
    int64_t* counts;
    Entry* entries;
    uint8_t* converted;  // taps of the output rows over a row, each in its place
  };

  static bool serves(const MaxPool2dShape& s) {
    return s.C > 1 && s.input.s[1] == 1 && s.output.s[1] == 1 && s.indices.s[1] == 1;
  }

  void run() const {
    parallel_for(
        s.N * s.H, kTaskElements / ((s.W + s.Q) * s.C) + 1, [&](int64_t begin, int64_t end) {
          const Scratch<Holder> columns_over(s.W * most_columns);
          const Scratch<int64_t> counts(s.W);
          const Scratch<Entry> entries(most_rows * most_columns);
          const Scratch<uint8_t> converted(kSame<Where, uint8_t> ? 0 : most_rows * s.Q * s.C);
          const Memory m{columns_over.data(), counts.data(), entries.data(), converted.data()};
          WindowsOver windows(columns, 0);
          for (int64_t w = 0; w < s.W; ++w)
            m.counts[w] = windows.list(w, m.columns_over + w * most_columns);
          const Scratch<Holder> rows_over(most_rows);
          for (int64_t i = begin; i < end;) {
            const int64_t h = i % s.H, h_end = smaller(s.H, h + end - i);
            image(m, i / s.H, h, h_end, rows_over.data());
            i += h_end - h;
          }
        });
  }

  void image(const Memory& m, int64_t n, int64_t h, int64_t h_end, Holder* rows_over) const {
    WindowsOver windows(rows, h);
    int64_t converted = 0;  // output rows whose taps are known
    for (; h < h_end; ++h) {
      const int64_t count = windows.list(h, rows_over);
      // All that begin up to here: with dilation not every one of them holds this row
      const int64_t begun = smaller((h + rows.pad) / rows.stride + 1, s.P);
      for (converted = larger(converted, windows.first); converted < begun; ++converted)
        convert(m, n, converted);
      S* to = grad_input + n * s.input.s[0] + h * s.input.s[2];
      for (int64_t w = 0; w < s.W; ++w)
        gather(m.entries, list(m, n, rows_over, count, w), to + w * s.input.s[3]);
    }
  }

  void convert(const Memory& m, int64_t n, int64_t p) const {
    if constexpr (!kSame<Where, uint8_t>)
      for (int64_t q = 0; q < s.Q; ++q)
        taps_of_indices(s, rows.start(p), columns.start(q), 0,
                        where + n * s.indices.s[0] + p * s.indices.s[2] + q * s.indices.s[3], 1,
                        s.C, m.converted + (p % most_rows * s.Q + q) * s.C);
  }

  // The windows over pixel w of a row that `count` windows hold.
  FASTCONV_INLINE int64_t list(const Memory& m, int64_t n, const Holder* rows_over, int64_t count,
                               int64_t w) const {
    const Holder* over = m.columns_over + w * most_columns;
    int64_t entries = 0;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < m.counts[w]; ++j) {
        const int64_t p = rows_over[i].output, q = over[j].output;
        const uint8_t* taps;
        if constexpr (kSame<Where, uint8_t>)
          taps = where + n * s.indices.s[0] + p * s.indices.s[2] + q * s.indices.s[3];
        else
          taps = m.converted + (p % most_rows * s.Q + q) * s.C;
        m.entries[entries++] = {
            grad_output + n * s.output.s[0] + p * s.output.s[2] + q * s.output.s[3], taps,
            TapLanes<T>::of(rows_over[i].tap * columns.taps + over[j].tap)};
      }
    return entries;
  }

  FASTCONV_INLINE void gather(const Entry* entries, int64_t count, S* to) const {
    int64_t c = 0;
    for (; c + 2 * kLanes <= s.C; c += 2 * kLanes) gather_lanes<2>(entries, count, c, to);
    for (; c + kLanes <= s.C; c += kLanes) gather_lanes<1>(entries, count, c, to);
    if (c == s.C) return;
    if (c > 0) return gather_lanes<1>(entries, count, s.C - kLanes, to);
    Vec<T> sum = Vec<T>::zero();
    const auto inside = LaneRange<T>::of(0, s.C);
    for (int64_t e = 0; e < count; ++e)
      sum = add_taken(sum, load_range_as_compute(entries[e].gradients, inside), entries[e].taps,
                      entries[e].tap, inside);
    store_some_from_compute(to, sum, s.C);
  }

  template <int kBlocks>
  FASTCONV_INLINE void gather_lanes(const Entry* entries, int64_t count, int64_t c, S* to) const {
    Vec<T> sums[kBlocks];
    for (int i = 0; i < kBlocks; ++i) sums[i] = Vec<T>::zero();
    for (int64_t e = 0; e < count; ++e)
      for (int i = 0; i < kBlocks; ++i)
        sums[i] = add_taken(sums[i], load_as_compute(entries[e].gradients + c + i * kLanes),
                            entries[e].taps + c + i * kLanes, entries[e].tap);
    for (int i = 0; i < kBlocks; ++i) store_sums(to + c + i * kLanes, sums[i], count <= 1);
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
