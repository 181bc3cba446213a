// Values alone, small windows: rows first, then columns, in registers.
//
//   column[w] = max_r input[h + r][w]        output[q] = max_s column[q * stride - pad + s]
//
// A row of the output is found from left to right: each register of columns is loaded once per row
// of the window, its neighbours are those of the step before and after, and taps are lanes moved
// between them; with a stride of 2 from even and odd columns apart. Beyond the row columns are
// lowest: no output is a case of its own.
// Of equal elements the first of the first column is taken, not the first of the first row: only
// the sign of a zero can tell.
#pragma once
#include "max_pool2d_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Lanes [kBy, kBy + kLanes) of a and b, one behind the other.
template <int kBy, class T, int... lane>
FASTCONV_INLINE Vec<T> moved_lanes(Vec<T> a, Vec<T> b, LaneList<lane...>) {
  return shuffle<(lane + kBy)...>(a, b);
}
template <int kBy, class T>
FASTCONV_INLINE Vec<T> moved_lanes(Vec<T> a, Vec<T> b) {
  if constexpr (kBy == 0)
    return a;
  else
    return moved_lanes<kBy>(a, b, typename CountLanes<Vec<T>::kLanes>::List());
}

// What a row of an output needs: rows of the input, `count` of them `step` apart.
template <class S>
struct StreamedRow {
  const S* input;
  int64_t step, count, width;
  S* output;
  int64_t outputs;
};

// kRows 0: any.
template <class L, int kStride, int kTaps, int kPad, int kRows>
struct Stream {
  using S = typename L::Storage;
  using Lanes = Vec<typename L::Lane>;
  static constexpr int kLanes = Lanes::kLanes;

  // The largest of every column from w on.
  FASTCONV_INLINE static Lanes columns(const StreamedRow<S>& row, int64_t w) {
    if (w + kLanes <= row.width) return largest_of(row, [&](const S* p) { return L::load(p + w); });
    if (w >= row.width) return Lanes::broadcast(L::lowest());
    const int64_t inside = row.width - w;
    return largest_of(row, [&](const S* p) { return load_inside<L>(p + w, 0, inside); });
  }
  template <class Load>
  FASTCONV_INLINE static Lanes largest_of(const StreamedRow<S>& row, const Load& load) {
    Lanes largest = load(row.input);
    const int64_t count = kRows ? kRows : row.count;
    for (int64_t r = 1; r < count; ++r)
      largest = L::larger(largest, load(row.input + r * row.step));
    return largest;
  }

  static void run(const StreamedRow<S>& row) {
    if constexpr (kStride == 1)
      by_one(row);
    else
      by_two(row);
  }

  static void by_one(const StreamedRow<S>& row) {
    Lanes before = Lanes::broadcast(L::lowest()), here = columns(row, 0);
    for (int64_t q = 0; q < row.outputs; q += kLanes) {
      const Lanes behind = columns(row, q + kLanes);
      Lanes largest = tap<0>(before, here, behind);
      largest = L::larger(largest, tap<1>(before, here, behind));
      if constexpr (kTaps > 2) largest = L::larger(largest, tap<2>(before, here, behind));
      if constexpr (kTaps > 3) largest = L::larger(largest, tap<3>(before, here, behind));
      if constexpr (kTaps > 4) largest = L::larger(largest, tap<4>(before, here, behind));
      store_first<L>(row.output + q, largest, smaller(row.outputs - q, int64_t{kLanes}));
      before = here, here = behind;
    }
  }
  template <int kTap>
  FASTCONV_INLINE static Lanes tap(Lanes before, Lanes here, Lanes behind) {
    constexpr int kBy = kTap - kPad;
    if constexpr (kBy < 0)
      return moved_lanes<kLanes + kBy>(before, here);
    else
      return moved_lanes<kBy>(here, behind);
  }

  struct Halves {
    Lanes even, odd;
  };
  FASTCONV_INLINE static Halves halves(const StreamedRow<S>& row, int64_t w) {
    const Lanes a = columns(row, w), b = columns(row, w + kLanes);
    return {every_other<0>(a, b), every_other<1>(a, b)};
  }

  // Taps of windows without padding: even[q], odd[q], even[q + 1]; with: odd[q - 1], even[q],
  // odd[q].
  static void by_two(const StreamedRow<S>& row) {
    static_assert(kTaps <= 3 && kPad <= 1);
    constexpr bool kLooksAhead = kPad == 0 && kTaps == 3;
    Lanes odd_before = Lanes::broadcast(L::lowest());
    Halves here = halves(row, 0), behind = here;
    for (int64_t q = 0; q < row.outputs; q += kLanes) {
      if constexpr (kLooksAhead) behind = halves(row, 2 * (q + kLanes));
      Lanes largest = here.even;
      if constexpr (kPad == 1)
        largest = L::larger(largest, moved_lanes<kLanes - 1>(odd_before, here.odd));
      if constexpr (kTaps - kPad > 1) largest = L::larger(largest, here.odd);
      if constexpr (kTaps - kPad > 2)
        largest = L::larger(largest, moved_lanes<1>(here.even, behind.even));
      store_first<L>(row.output + q, largest, smaller(row.outputs - q, int64_t{kLanes}));
      odd_before = here.odd;
      if constexpr (!kLooksAhead)
        if (q + kLanes < row.outputs) behind = halves(row, 2 * (q + kLanes));
      here = behind;
    }
  }
};

template <class L>
struct StreamPlanes {
  using S = typename L::Storage;
  using Row = void (*)(const StreamedRow<S>&);

  const MaxPool2dShape& s;
  const S* input;
  S* output;

  const ClippedAxis rows = rows_of(s), columns = columns_of(s);
  // The kernel of output rows of whose window all rows are inside, and that of the others.
  Row whole = nullptr, part = nullptr;

  StreamPlanes(const MaxPool2dShape& shape, const S* input, S* output, void* = nullptr)
      : s(shape), input(input), output(output) {
    const bool few_rows = rows.taps <= 5 || rows.taps <= rows.stride;
    if (s.input.s[3] != 1 || s.output.s[3] != 1 || columns.dilation != 1 || !few_rows ||
        rows.has_empty_window())
      return;
    choose<1, 2, 0>();
    choose<1, 2, 1>();
    choose<1, 3, 0>();
    choose<1, 3, 1>();
    choose<1, 5, 2>();
    choose<2, 2, 0>();
    choose<2, 2, 1>();
    choose<2, 3, 0>();
    choose<2, 3, 1>();
  }

  template <int kStride, int kTaps, int kPad>
  void choose() {
    if (columns.stride != kStride || columns.taps != kTaps || columns.pad != kPad) return;
    part = Stream<L, kStride, kTaps, kPad, 0>::run;
    whole = rows.taps == kTaps ? Stream<L, kStride, kTaps, kPad, kTaps>::run : part;
  }

  bool serves() const { return whole != nullptr; }

  void run() const {
    for_output_rows(s, rows, [&](int64_t nc, int64_t p, int64_t p_end) { plane(nc, p, p_end); });
  }

  void plane(int64_t nc, int64_t p, int64_t p_end) const {
    const int64_t n = nc / s.C, c = nc % s.C;
    const S* in = input + n * s.input.s[0] + c * s.input.s[1];
    S* out = output + n * s.output.s[0] + c * s.output.s[1];
    const int64_t step = rows.dilation * s.input.s[2];
    for (; p < p_end; ++p) {
      const TapRange taps = rows.inside(p);
      const int64_t h = rows.start(p) + taps.begin * rows.dilation, count = taps.end - taps.begin;
      const StreamedRow<S> row{in + h * s.input.s[2],   step, count, s.W,
                               out + p * s.output.s[2], s.Q};
      count == rows.taps ? whole(row) : part(row);
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
