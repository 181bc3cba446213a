// The gather of max_pool2d_gather.h, plane by plane: lanes are columns of one input row.
//
// A task is some input rows. The rows of grad_output and of taps over a tile are copied between
// margins that add nothing, so that no window is a case of its own. With a stride of d columns the
// columns w = d * l + e of phase e are found together: the same taps hold them. Two phases are
// interleaved in registers, more on their way through a buffer.
#pragma once
#include "../scratch.h"
#include "max_pool2d_gather.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int64_t kMostGatherTaps = 36;  // per element of grad_input: then scattering is cheaper

template <class S, class Where>
struct GatherPlanes {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const MaxPool2dShape& s;
  const S* grad_output;
  const Where* where;
  S* grad_input;

  const Axis rows = window_rows(s), columns = window_columns(s);
  const int64_t phase_length = (s.W + columns.stride - 1) / columns.stride;
  // How far windows over column d * l + e lie from output l, to either side.
  const int64_t before = (columns.reach() + columns.stride - 1) / columns.stride;
  const int64_t behind = (columns.pad + columns.stride - 1) / columns.stride + 1;
  // A staged row: margins, and what the last block of lanes reaches over.
  const int64_t pitch = before + larger(s.Q, phase_length + behind) + 4 * kLanes;

  // Windows that hold a column of some phase by `tap`: staged elements from `offset` on.
  struct Entry {
    int64_t offset;
    TapLanes<T> tap;
  };
  struct Memory {
    T* gradients;  // staged rows of outputs, one behind the other
    uint8_t* taps;
    Holder* rows_over;
    Holder* columns_over;  // of every phase, axis.taps of them
    Entry* entries;        // of a row, phase by phase
    int64_t* counts;       // of a phase: of columns_over, then of entries
    S* phases;             // of a row, that are not interleaved in registers
  };

  // Output rows over the input rows [h, h_end).
  TapRange outputs_over(int64_t h, int64_t h_end) const {
    const int64_t last = h_end - 1 + rows.pad, behind_first = h + rows.pad - rows.reach();
    const int64_t begin = behind_first <= 0 ? 0 : (behind_first + rows.stride - 1) / rows.stride;
    return {smaller(begin, s.P), smaller(last / rows.stride + 1, s.P)};
  }

  void run() const {
    const int64_t row_bytes = pitch * int64_t{sizeof(T) + 1};
    const int64_t fit = larger(kTileBytes / row_bytes, int64_t{1}) * rows.stride;
    const int64_t tile = smaller(larger(fit, rows.reach() + 1), s.H), staged = outputs_staged(tile);
    const int64_t most_rows = rows.reach() / rows.stride + 1, phases = columns.stride;
    parallel_for(s.N * s.C * s.H, kTaskElements / (s.W + s.Q) + 1, [&](int64_t begin, int64_t end) {
      const Scratch<T> gradients(staged * pitch);
      const Scratch<uint8_t> taps(staged * pitch);
      const Scratch<Holder> rows_over(most_rows), columns_over(phases * columns.taps);
      const Scratch<Entry> entries(most_rows * columns.taps);
      const Scratch<int64_t> counts(2 * phases);
      const Scratch<S> apart(phases * padded_length());
      const Memory m{gradients.data(), taps.data(),   rows_over.data(), columns_over.data(),
                     entries.data(),   counts.data(), apart.data()};
      for (int64_t i = 0; i < staged * pitch; ++i) m.gradients[i] = 0, m.taps[i] = kNoTap;
      list_columns(m);
      for (int64_t i = begin; i < end;) {
        const int64_t h = i % s.H, h_end = smaller(smaller(h + tile, s.H), h + end - i);
        gather_tile(m, i / s.H, h, h_end);
        i += h_end - h;
      }
    });
  }

  // With what the last blocks of a phase reach over.
  int64_t padded_length() const { return phase_length + 2 * kLanes; }

  int64_t outputs_staged(int64_t tile) const {
    return smaller((tile + rows.reach()) / rows.stride + 2, s.P);
  }

  void gather_tile(const Memory& m, int64_t nc, int64_t h, int64_t h_end) const {
    const int64_t n = nc / s.C, c = nc % s.C;
    const TapRange outputs = outputs_over(h, h_end);
    for (int64_t p = outputs.begin; p < outputs.end; ++p)
      stage(n, c, p, m.gradients + (p - outputs.begin) * pitch + before,
            m.taps + (p - outputs.begin) * pitch + before);
    S* to = grad_input + n * s.input.s[0] + c * s.input.s[1];
    WindowsOver windows(rows, h);
    for (; h < h_end; ++h) {
      const int64_t count = windows.list(h, m.rows_over);
      for (int64_t i = 0; i < count; ++i) m.rows_over[i].output -= outputs.begin;
      gather_row(m, count, to + h * s.input.s[2]);
    }
  }

  void stage(int64_t n, int64_t c, int64_t p, T* gradients, uint8_t* taps) const {
    const S* from = grad_output + n * s.output.s[0] + c * s.output.s[1] + p * s.output.s[2];
    const Where* at = where + n * s.indices.s[0] + c * s.indices.s[1] + p * s.indices.s[2];
    if (s.output.s[3] == 1) {
      int64_t q = 0;
      for (; q + kLanes <= s.Q; q += kLanes) load_as_compute(from + q).store(gradients + q);
      if (q < s.Q) store_some(gradients + q, load_some_as_compute(from + q, s.Q - q), s.Q - q);
    } else {
      for (int64_t q = 0; q < s.Q; ++q) gradients[q] = to_compute(from[q * s.output.s[3]]);
    }
    if constexpr (kSame<Where, uint8_t>) {
      if (s.indices.s[3] == 1)
        __builtin_memcpy(taps, at, static_cast<unsigned long>(s.Q));
      else
        for (int64_t q = 0; q < s.Q; ++q) taps[q] = at[q * s.indices.s[3]];
    } else {
      taps_of_indices(s, rows.start(p), columns.start(0), columns.stride, at, s.indices.s[3], s.Q,
                      taps);
    }
  }

  // The windows over the columns of every phase, first to last: how far from output l.
  void list_columns(const Memory& m) const {
    for (int64_t phase = 0; phase < columns.stride; ++phase) {
      int64_t count = 0;
      for (int64_t tap = columns.taps - 1; tap >= 0; --tap) {
        const int64_t distance = phase + columns.pad - tap * columns.dilation;
        if (distance % columns.stride == 0)
          m.columns_over[phase * columns.taps + count++] = {distance / columns.stride, tap};
      }
      m.counts[phase] = count;
    }
  }

  // The entries of a row that `rows_over` windows hold, in row-major order of outputs.
  void list_entries(const Memory& m, int64_t rows_over) const {
    Entry* entry = m.entries;
    for (int64_t phase = 0; phase < columns.stride; ++phase) {
      const Holder* over = m.columns_over + phase * columns.taps;
      for (int64_t i = 0; i < rows_over; ++i)
        for (int64_t j = 0; j < m.counts[phase]; ++j)
          *entry++ = {m.rows_over[i].output * pitch + before + over[j].output,
                      TapLanes<T>::of(m.rows_over[i].tap * columns.taps + over[j].tap)};
      m.counts[columns.stride + phase] = rows_over * m.counts[phase];
    }
  }

  template <int kBlocks>
  FASTCONV_INLINE void sum(const Memory& m, const Entry* entries, int64_t count, int64_t l,
                           Vec<T> (&sums)[kBlocks]) const {
    for (int i = 0; i < kBlocks; ++i) sums[i] = Vec<T>::zero();
    for (int64_t e = 0; e < count; ++e) {
      const int64_t at = entries[e].offset + l;
      for (int i = 0; i < kBlocks; ++i)
        sums[i] = add_taken(sums[i], Vec<T>::load(m.gradients + at + i * kLanes),
                            m.taps + at + i * kLanes, entries[e].tap);
    }
  }

  // Elements w, w + 1, ... of a row of `width`.
  FASTCONV_INLINE static void store(S* to, int64_t w, int64_t width, Vec<T> sums, bool single) {
    if (w + kLanes <= width)
      store_sums(to + w, sums, single);
    else if (w < width)
      store_some_from_compute(to + w, sums, width - w);
  }

  void gather_row(const Memory& m, int64_t rows_over, S* to) const {
    list_entries(m, rows_over);
    const int64_t stride = s.input.s[3];
    if (columns.stride == 1 && stride == 1) return gather_ones(m, to);
    if (columns.stride == 2 && stride == 1) return gather_pairs(m, to);
    const Entry* entries = m.entries;
    const int64_t length = padded_length();
    for (int64_t phase = 0; phase < columns.stride; ++phase) {
      const int64_t count = m.counts[columns.stride + phase];
      S* apart = m.phases + phase * length;
      for (int64_t l = 0; l < phase_length; l += kLanes) {
        Vec<T> sums[1];
        sum(m, entries, count, l, sums);
        store_sums(apart + l, sums[0], count <= 1);
      }
      entries += count;
      for (int64_t w = phase, l = 0; w < s.W; w += columns.stride) to[w * stride] = apart[l++];
    }
  }

  FASTCONV_INLINE void gather_ones(const Memory& m, S* to) const {
    constexpr int kBlocks = 2;
    const int64_t count = m.counts[1];
    for (int64_t w = 0; w < s.W; w += kBlocks * kLanes) {
      Vec<T> sums[kBlocks];
      sum(m, m.entries, count, w, sums);
      for (int i = 0; i < kBlocks; ++i) store(to, w + i * kLanes, s.W, sums[i], count <= 1);
    }
  }

  FASTCONV_INLINE void gather_pairs(const Memory& m, S* to) const {
    const int64_t even_count = m.counts[2], odd_count = m.counts[3];
    const bool single = even_count <= 1 && odd_count <= 1;
    for (int64_t l = 0; l < phase_length; l += kLanes) {
      Vec<T> even[1], odd[1];
      sum(m, m.entries, even_count, l, even);
      sum(m, m.entries + even_count, odd_count, l, odd);
      store(to, 2 * l, s.W, interleaved<0>(even[0], odd[0]), single);
      store(to, 2 * l + kLanes, s.W, interleaved<1>(even[0], odd[0]), single);
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
