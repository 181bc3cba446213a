// Values with indices or taps, small windows: every output walks its taps in their order.
//
// The taps of an output are numbered r * row_step + s, which is what is written as a tap, and with
// the row's pitch for row_step the offset in the window that makes an index. The numbers are
// constants in registers: an offered element costs a comparison and two selections.
#pragma once
#include "max_pool2d_places.h"
#include "max_pool2d_row.h"
#include "max_pool2d_stream.h"

namespace fastconv::cpu::FASTCONV_ISA {

// The best of the taps so far, and its number.
template <class L>
struct Numbered {
  using Place = Signed<typename L::Lane>;
  Vec<typename L::Lane> value;
  Vec<Place> number;

  FASTCONV_INLINE void offer(Vec<typename L::Lane> other, Vec<Place> other_number) {
    const auto stays = L::stays(value, other);
    value = select(stays, value, other);
    number = select(stays, number, other_number);
  }
  FASTCONV_INLINE void offer(Vec<typename L::Lane> other, Place at) {
    offer(other, Vec<Place>::broadcast(at));
  }
};

// Where: int64_t for indices, uint8_t for taps.
template <class L, class Where>
struct WalkedRow {
  using S = typename L::Storage;
  const S* input;  // the first row inside
  int64_t step, count, width, pad;
  S* output;
  Where* where;
  int64_t outputs;
  Signed<typename L::Lane> first, row_step;  // the number of the first row inside, of one row
  int64_t corner;                            // the index of the window's first element

  template <int kStride>
  FASTCONV_INLINE void write(int64_t q, int64_t lanes, const Numbered<L>& found) const {
    store_first<L>(output + q, found.value, lanes);
    if constexpr (kSame<Where, uint8_t>)
      store_low_bytes(where + q, found.number, lanes);
    else
      write_indices(where + q, found.number, lanes, corner + q * kStride, kStride);
  }
};

// Any rows: loads every tap, those outside the row as lowest.
template <class L, class Where, int kStride, int kTaps>
struct TapWalk {
  using S = typename L::Storage;
  using Lane = typename L::Lane;
  using Lanes = Vec<Lane>;
  using Place = Signed<Lane>;
  using Row = WalkedRow<L, Where>;
  using Found = Numbered<L>;
  static constexpr int64_t kLanes = Lanes::kLanes;
  static constexpr int64_t kSpan = (kTaps - 1) / kStride * kStride + kLanes * kStride;

  static void run(const Row& row) {
    for_blocks<kLanes>(row.outputs, [&](int64_t q, int64_t count) {
      const int64_t start = q * kStride - row.pad;
      Found found = start >= 0 && start + kSpan <= row.width ? walk<true>(row, start)
                                                             : walk<false>(row, start);
      if (start < 0) found.number = larger_of(found.number, first_inside(row, start));
      row.template write<kStride>(q, count, found);
    });
  }

  // The number of each lane's first tap inside: it is taken where nothing but padding is larger
  // than -infinity.
  FASTCONV_INLINE static Vec<Place> first_inside(const Row& row, int64_t start) {
    Place first[kLanes];
    for (int64_t l = 0; l < kLanes; ++l, start += kStride)
      first[l] = static_cast<Place>(row.first + (start < 0 ? -start : 0));
    return Vec<Place>::load(first);
  }

  template <bool kInside>
  FASTCONV_INLINE static Found walk(const Row& row, int64_t start) {
    Found found;
    const int64_t count = row.count;
    const S* from = row.input;
    Place number = row.first;
    for (int64_t r = 0; r < count; ++r, from += row.step, number += row.row_step) {
      Lanes v[kStride];
      load<kInside>(v, row, from, start);
      if (r == 0)
        found = {phase_of<0>(v), Vec<Place>::broadcast(number)};
      else
        found.offer(phase_of<0>(v), number);
      tap<kInside, 1>(found, v, row, from, start, number);
      if constexpr (kTaps > 2) tap<kInside, 2>(found, v, row, from, start, number);
      static_assert(kTaps <= 3);
    }
    return found;
  }

  template <bool kInside>
  FASTCONV_INLINE static void load(Lanes (&v)[kStride], const Row& row, const S* from,
                                   int64_t position) {
    for (int j = 0; j < kStride; ++j, position += kLanes)
      v[j] = kInside ? L::load(from + position)
                     : load_inside<L>(from + position, -position, row.width - position);
  }

  template <bool kInside, int kTap>
  FASTCONV_INLINE static void tap(Found& found, Lanes (&v)[kStride], const Row& row, const S* from,
                                  int64_t start, Place number) {
    if (kTap % kStride == 0) load<kInside>(v, row, from, start + kTap);
    found.offer(phase_of<kTap % kStride>(v), static_cast<Place>(number + kTap));
  }
};

// As many rows as taps, all inside: each register is loaded once, neighbours are lanes moved between
// registers, as in max_pool2d_stream.h.
template <class L, class Where, int kStride, int kTaps, int kPad>
struct TapStream {
  using S = typename L::Storage;
  using Lane = typename L::Lane;
  using Lanes = Vec<Lane>;
  using Place = Signed<Lane>;
  using Row = WalkedRow<L, Where>;
  static constexpr int kLanes = Lanes::kLanes;
  // Columns of a block are those of the taps of its outputs but for taps that reach into the block
  // before or behind.
  static constexpr bool kLooksBack = kPad > 0, kLooksAhead = kTaps - kPad > kStride;

  struct Block {
    Lanes phase[kStride];
  };

  FASTCONV_INLINE static Block load(const S* from, int64_t w, int64_t width) {
    Lanes v[kStride];
    for (int j = 0; j < kStride; ++j, w += kLanes)
      v[j] = w + kLanes <= width ? L::load(from + w) : load_inside<L>(from + w, 0, width - w);
    Block block;
    block.phase[0] = phase_of<0>(v);
    if constexpr (kStride == 2) block.phase[1] = phase_of<1>(v);
    return block;
  }

  // Tap s of the window: element kStride * q + s - kPad.
  template <int kTap>
  FASTCONV_INLINE static Lanes tap(const Block& before, const Block& here, const Block& behind) {
    constexpr int kAt = kTap - kPad + kStride * kTaps;  // not negative
    constexpr int kPhase = kAt % kStride, kBy = kAt / kStride - kTaps;
    if constexpr (kBy < 0)
      return moved_lanes<kLanes + kBy>(before.phase[kPhase], here.phase[kPhase]);
    else
      return moved_lanes<kBy>(here.phase[kPhase], behind.phase[kPhase]);
  }

  static void run(const Row& row) {
    Block before[kTaps], here[kTaps], behind[kTaps];
    for (int r = 0; r < kTaps; ++r) {
      for (int i = 0; i < kStride; ++i) before[r].phase[i] = Lanes::broadcast(L::lowest());
      here[r] = load(row.input + r * row.step, 0, row.width);
    }
    const int64_t outputs = row.outputs, width = row.width;
    for (int64_t q = 0; q < outputs; q += kLanes) {
      const int64_t ahead = (q + kLanes) * kStride;
      Numbered<L> found;
      for (int r = 0; r < kTaps; ++r) {  // a row for itself: comparisons that wait for few others
        if (kLooksAhead) behind[r] = load(row.input + r * row.step, ahead, width);
        const auto number = static_cast<Place>(row.first + r * row.row_step);
        Numbered<L> best{tap<0>(before[r], here[r], behind[r]), Vec<Place>::broadcast(number)};
        best.offer(tap<1>(before[r], here[r], behind[r]), static_cast<Place>(number + 1));
        if constexpr (kTaps > 2)
          best.offer(tap<2>(before[r], here[r], behind[r]), static_cast<Place>(number + 2));
        if (r == 0)
          found = best;
        else
          found.offer(best.value, best.number);
      }
      if (kPad > 0 && q == 0) found.number = larger_of(found.number, first_inside(row));
      row.template write<kStride>(q, smaller(outputs - q, int64_t{kLanes}), found);
      if (ahead >= outputs * kStride) return;
      for (int r = 0; r < kTaps; ++r) {
        before[r] = here[r];
        here[r] = kLooksAhead ? behind[r] : load(row.input + r * row.step, ahead, width);
      }
    }
  }

  // The number of each lane's first tap inside, where nothing but padding is larger than -infinity.
  FASTCONV_INLINE static Vec<Place> first_inside(const Row& row) {
    return first_inside(row, typename CountLanes<kLanes>::List());
  }
  template <int... lane>
  FASTCONV_INLINE static Vec<Place> first_inside(const Row& row, LaneList<lane...>) {
    return {typename Vec<Place>::Raw{larger(kPad - lane * kStride, 0)...} + row.first};
  }
};

template <class L, class Where>
struct TapPlanes {
  using S = typename L::Storage;
  using Place = Signed<typename L::Lane>;
  using Row = void (*)(const WalkedRow<L, Where>&);

  const MaxPool2dShape& s;
  const S* input;
  S* output;
  Where* where;

  const ClippedAxis rows = rows_of(s), columns = columns_of(s);
  const int64_t row_step = kSame<Where, uint8_t> ? s.window.S : s.W * rows.dilation;
  // The kernel of output rows of whose window all rows are inside, and that of the others.
  Row whole = nullptr, part = nullptr;

  TapPlanes(const MaxPool2dShape& shape, const S* input, S* output, Where* where)
      : s(shape), input(input), output(output), where(where) {
    const double numbers = static_cast<double>(rows.taps) * static_cast<double>(row_step);
    if (s.input.s[3] != 1 || s.output.s[3] != 1 || s.indices.s[3] != 1 || columns.dilation != 1 ||
        rows.taps > 3 || rows.lead + columns.lead > 0 || rows.has_empty_window() ||
        columns.has_empty_window() || numbers >= (sizeof(Place) == 2 ? 0x1p15 : 0x1p31))
      return;
    choose<1, 2, 0>();
    choose<1, 2, 1>();
    choose<1, 3, 0>();
    choose<1, 3, 1>();
    choose<2, 2, 0>();
    choose<2, 2, 1>();
    choose<2, 3, 0>();
    choose<2, 3, 1>();
  }

  template <int kStride, int kTaps, int kPad>
  void choose() {
    if (columns.stride != kStride || columns.taps != kTaps || columns.pad != kPad) return;
    part = TapWalk<L, Where, kStride, kTaps>::run;
    whole = rows.taps == kTaps ? TapStream<L, Where, kStride, kTaps, kPad>::run : part;
  }

  bool serves() const { return whole != nullptr; }

  void run() const {
    for_output_rows(s, rows, [&](int64_t nc, int64_t p, int64_t p_end) { plane(nc, p, p_end); });
  }

  void plane(int64_t nc, int64_t p, int64_t p_end) const {
    const int64_t n = nc / s.C, c = nc % s.C;
    const S* in = input + n * s.input.s[0] + c * s.input.s[1];
    S* out = output + n * s.output.s[0] + c * s.output.s[1];
    Where* at = where + n * s.indices.s[0] + c * s.indices.s[1];
    for (; p < p_end; ++p) {
      const TapRange taps = rows.inside(p);
      const int64_t start = rows.start(p), h = start + taps.begin * rows.dilation;
      const WalkedRow<L, Where> row{in + h * s.input.s[2],
                                    rows.dilation * s.input.s[2],
                                    taps.end - taps.begin,
                                    s.W,
                                    columns.pad,
                                    out + p * s.output.s[2],
                                    at + p * s.indices.s[2],
                                    s.Q,
                                    static_cast<Place>(taps.begin * row_step),
                                    static_cast<Place>(row_step),
                                    start * s.W - columns.pad};
      row.count == rows.taps ? whole(row) : part(row);
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
