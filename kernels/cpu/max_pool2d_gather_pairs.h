// The gather of max_pool2d_gather.h for square windows of two or three that move by two: two rows of
// grad_input at a time, from the two rows of grad_output over them.
//
// Rows 2 * m - pad + j, j = 0 and 1, are held by output row m with tap r = j, and by output row m - 1
// with r = j + 2. So are columns: those of a phase are held by the same taps, and the two phases are
// interleaved in registers. Rows of grad_output that do not exist took nothing.
#pragma once
#include "../scratch.h"
#include "max_pool2d_gather.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class S, int kTaps, int kPad>
struct GatherPair {
  using T = Compute<S>;
  static constexpr int kLanes = Vec<T>::kLanes;

  struct Rows {
    const S* gradients[2];  // of output rows m - 1 and m
    const uint8_t* taps[2];
    S* to[2];  // null for a row outside
    int64_t outputs, width;
  };
  // Column 2 * l + phase is held by outputs l + (phase + pad - s) / 2.
  static constexpr int kFirst = kPad == 0 && kTaps == 3 ? -1 : 0, kLast = kPad;

  struct Sums {
    Vec<T> phase[2];
  };

  static void run(const Rows& rows) {
    const bool single = kTaps == 2;
    TapLanes<T> numbers[kTaps * kTaps];
    for (int i = 0; i < kTaps * kTaps; ++i) numbers[i] = TapLanes<T>::of(i);
    for (int64_t l = 0, w = 0; w < rows.width; l += kLanes, w += 2 * kLanes) {
      Sums sums[2] = {{Vec<T>::zero(), Vec<T>::zero()}, {Vec<T>::zero(), Vec<T>::zero()}};
      if (l + kFirst >= 0 && l + kLast + kLanes <= rows.outputs)
        add_all<true>(rows, l, numbers, sums);
      else
        add_all<false>(rows, l, numbers, sums);
      for (int j = 0; j < 2; ++j)
        if (S* to = rows.to[j]) {
          store(to, w, rows.width, interleaved<0>(sums[j].phase[0], sums[j].phase[1]), single);
          store(to, w + kLanes, rows.width, interleaved<1>(sums[j].phase[0], sums[j].phase[1]),
                single);
        }
    }
  }

  FASTCONV_INLINE static void store(S* to, int64_t w, int64_t width, Vec<T> sums, bool single) {
    if (w + kLanes <= width)
      store_sums(to + w, sums, single);
    else if (w < width)
      store_some_from_compute(to + w, sums, width - w);
  }

  template <bool kInside>
  FASTCONV_INLINE static void add_all(const Rows& rows, int64_t l, const TapLanes<T>* numbers,
                                      Sums (&sums)[2]) {
    Inside inside;
    for (int by = kFirst; !kInside && by <= kLast; ++by)
      inside.lanes[by - kFirst] = LaneRange<T>::of(-(l + by), rows.outputs - (l + by));
    if constexpr (kTaps == 3) add_row<kInside, 2>(rows, 0, l, inside, numbers, sums[0]);
    add_row<kInside, 0>(rows, 1, l, inside, numbers, sums[0]);
    add_row<kInside, 1>(rows, 1, l, inside, numbers, sums[1]);
  }

  // Lanes of outputs that exist, from l + kFirst on.
  struct Inside {
    LaneRange<T> lanes[kLast - kFirst + 1];
  };

  // Outputs of one row that hold the row by tap kRow: the first ones first.
  template <bool kInside, int kRow>
  FASTCONV_INLINE static void add_row(const Rows& rows, int which, int64_t l, const Inside& inside,
                                      const TapLanes<T>* numbers, Sums& sums) {
    const S* from = rows.gradients[which] + l;
    const uint8_t* taps = rows.taps[which] + l;
    add<kInside, kTaps - 1>(from, taps, inside, numbers + kRow * kTaps, sums);
    add<kInside, kTaps - 2>(from, taps, inside, numbers + kRow * kTaps, sums);
    if constexpr (kTaps == 3) add<kInside, 0>(from, taps, inside, numbers + kRow * kTaps, sums);
  }

  template <bool kInside, int kTap>
  FASTCONV_INLINE static void add(const S* from, const uint8_t* taps, const Inside& inside,
                                  const TapLanes<T>* numbers, Sums& sums) {
    constexpr int kPhase = (kTap - kPad + 2) % 2, kBy = (kPhase + kPad - kTap) / 2;
    Vec<T>& sum = sums.phase[kPhase];
    if constexpr (kInside) {
      sum = add_taken(sum, load_as_compute(from + kBy), taps + kBy, numbers[kTap]);
    } else {
      const LaneRange<T> lanes = inside.lanes[kBy - kFirst];
      sum = add_taken(sum, load_range_as_compute(from + kBy, lanes), taps + kBy, numbers[kTap],
                      lanes);
    }
  }
};

template <class S, class Where>
struct GatherPairs {
  using T = Compute<S>;

  const MaxPool2dShape& s;
  const S* grad_output;
  const Where* where;
  S* grad_input;

  const Axis rows = window_rows(s), columns = window_columns(s);
  // Pairs of input rows that begin at 2 * m - pad.
  const int64_t pairs = (s.H + rows.pad + 1) / 2;

  static bool serves(const MaxPool2dShape& s) {
    return moves_by_two(s.window) && s.input.s[3] == 1 && s.output.s[3] == 1 && s.indices.s[3] == 1;
  }

  void run() const {
    if (rows.taps == 2)
      run_all<GatherPair<S, 2, 0>>();
    else if (rows.pad == 0)
      run_all<GatherPair<S, 3, 0>>();
    else
      run_all<GatherPair<S, 3, 1>>();
  }

  template <class Pair>
  void run_all() const {
    parallel_for(s.N * s.C * pairs, kTaskElements / (2 * s.W + s.Q) + 1,
                 [&](int64_t begin, int64_t end) {
                   // Taps of a row that does not exist, and of the two rows over a pair, from their indices
                   const Scratch<uint8_t> taps(3 * s.Q);
                   __builtin_memset(taps.data(), kNoTap, static_cast<unsigned long>(s.Q));
                   for (int64_t i = begin; i < end;) {
                     const int64_t m = i % pairs, m_end = smaller(pairs, m + end - i);
                     plane<Pair>(i / pairs, m, m_end, taps.data());
                     i += m_end - m;
                   }
                 });
  }

  template <class Pair>
  void plane(int64_t nc, int64_t m, int64_t m_end, uint8_t* scratch) const {
    const int64_t n = nc / s.C, c = nc % s.C;
    const S* from = grad_output + n * s.output.s[0] + c * s.output.s[1];
    const Where* at = where + n * s.indices.s[0] + c * s.indices.s[1];
    S* to = grad_input + n * s.input.s[0] + c * s.input.s[1];
    typename Pair::Rows pair{};
    pair.outputs = s.Q, pair.width = s.W;
    set_row(pair, 1, m - 1, from, at, scratch);
    for (; m < m_end; ++m) {
      pair.gradients[0] = pair.gradients[1], pair.taps[0] = pair.taps[1];
      set_row(pair, 1, m, from, at, scratch);
      for (int64_t j = 0; j < 2; ++j) {
        const int64_t h = 2 * m - rows.pad + j;
        pair.to[j] = h >= 0 && h < s.H ? to + h * s.input.s[2] : nullptr;
      }
      Pair::run(pair);
    }
  }

  template <class Rows>
  FASTCONV_INLINE void set_row(Rows& pair, int which, int64_t p, const S* from, const Where* at,
                               uint8_t* scratch) const {
    if (p < 0 || p >= s.P) {
      pair.gradients[which] = from, pair.taps[which] = scratch;
      return;
    }
    pair.gradients[which] = from + p * s.output.s[2];
    if constexpr (kSame<Where, uint8_t>) {
      pair.taps[which] = at + p * s.indices.s[2];
    } else {
      uint8_t* taps = scratch + (1 + p % 2) * s.Q;
      taps_of_indices(s, rows.start(p), -columns.pad, 2, at + p * s.indices.s[2], 1, s.Q, taps);
      pair.taps[which] = taps;
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
