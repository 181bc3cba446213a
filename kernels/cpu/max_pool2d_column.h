// The windows of some output rows, from rows that were pooled along the row: kLanes neighbouring
// elements at a time.
//
//   best[p][q] = max_r pooled[p * stride - pad + r * dilation][q]
//
// Direct: every output walks its rows. With windows that overlap a lot, van Herk's scheme: rows are
// cut into segments as long as the window; a window is the end of one segment and the beginning of
// the next. The best of every end of a segment is found from behind, that of its beginnings on the
// way: three comparisons per row, however long the window.
#pragma once
#include "max_pool2d_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Pooled rows, row after row; with places, the columns beside the values.
template <class L, bool kPlaces>
struct PooledRows {
  using Lane = typename L::Lane;
  using Place = Signed<Lane>;
  using Found = Best<L, kPlaces>;
  Lane* values;
  Place* columns;
  int64_t pitch, first;  // the number of the first row

  FASTCONV_INLINE Found load(int64_t h, int64_t q) const {
    const int64_t at = (h - first) * pitch + q;
    Found found;
    found.value = Vec<Lane>::load(values + at);
    if constexpr (kPlaces) {
      found.column = Vec<Place>::load(columns + at);
      found.row = Vec<Place>::zero();
    }
    return found;
  }
  FASTCONV_INLINE void store(int64_t h, int64_t q, const Found& found) const {
    const int64_t at = (h - first) * pitch + q;
    found.value.store(values + at);
    if constexpr (kPlaces) found.column.store(columns + at);
  }
};

// Adds `count` to the numbers of rows.
template <class L>
FASTCONV_INLINE Best<L, true> moved_down(Best<L, true> found, int64_t count) {
  found.row.raw += static_cast<typename Best<L, true>::Place>(count);
  return found;
}
template <class L>
FASTCONV_INLINE Best<L, false> moved_down(Best<L, false> found, int64_t) {
  return found;
}
template <class L>
FASTCONV_INLINE Best<L, true> better_of(Best<L, true> above, const Best<L, true>& below) {
  above.offer(below.value, below.column, below.row);
  return above;
}
template <class L>
FASTCONV_INLINE Best<L, false> better_of(Best<L, false> above, const Best<L, false>& below) {
  above.offer_row(below, 0);
  return above;
}

// The window of output p: the best of its rows that load(h) gives, h inside.
template <class Load>
FASTCONV_INLINE auto best_of_rows(const Axis& axis, int64_t p, TapRange taps, const Load& load) {
  const int64_t start = axis.start(p);
  auto found = moved_down(load(start + taps.begin * axis.dilation), taps.begin);
  for (int64_t r = taps.begin + 1; r < taps.end; ++r)
    found.offer_row(load(start + r * axis.dilation), r);
  return found;
}

// Whether `outputs` windows are found with fewer comparisons by segments.
FASTCONV_INLINE bool worth_segments(const Axis& axis, int64_t outputs) {
  if (axis.dilation != 1 || axis.taps < 5) return false;
  const int64_t taps = smaller(axis.taps, axis.extent);
  return outputs * taps > 2 * (outputs * axis.stride + taps) + outputs;
}

// The windows of outputs [p, p_end), of the rows that load(h) gives, h inside; each is given to
// store(p, best). `ends` has room for axis.taps of them. The row of a window that begins before the input counts from the window's
// start, as all do; where nothing but -infinity is in it, it may be less than that of the first row
// inside.
template <class Found, class Load, class Store>
FASTCONV_INLINE void walk_segments(const Axis& axis, int64_t p, int64_t p_end, Found* ends,
                                   const Load& load, const Store& store) {
  const int64_t behind = axis.start(p_end - 1) + axis.taps;  // the last row of all, and one
  for (int64_t segment = axis.start(p); p < p_end; segment += axis.taps) {
    // Every end of the segment
    Found found = Found::none();
    for (int64_t i = axis.taps - 1; i >= 0; --i) {
      const int64_t h = segment + i;
      found = moved_down(found, 1);
      if (h >= 0 && h < axis.extent && h < behind) found = better_of(load(h), found);
      ends[i] = found;
    }
    // With every beginning of the next
    found = Found::none();
    for (int64_t i = 0; i < axis.taps && p < p_end; ++i) {
      if (i > 0) {
        const int64_t h = segment + axis.taps + i - 1;
        if (h >= 0 && h < axis.extent) found = better_of(found, moved_down(load(h), i - 1));
      }
      if (segment + i != axis.start(p)) continue;
      store(p, i == 0 ? ends[0] : better_of(ends[i], moved_down(found, axis.taps - i)));
      ++p;
    }
  }
}

// The row of a window of which nothing is larger than -infinity: the first inside, or that which it
// would have if it had one.
template <class L>
FASTCONV_INLINE Best<L, true> from_row(Best<L, true> found, int64_t first) {
  using Place = typename Best<L, true>::Place;
  found.row = larger_of(found.row, Vec<Place>::broadcast(static_cast<Place>(first)));
  return found;
}
template <class L>
FASTCONV_INLINE Best<L, false> from_row(Best<L, false> found, int64_t) {
  return found;
}

// Outputs [p, p_end) of pooled rows. for_lanes(body) calls body(i, ...) for blocks of lanes, and
// write(p, best, ...) gets the same behind i.
template <class L, bool kPlaces, class ForLanes, class Write>
FASTCONV_INLINE void pool_columns(const Axis& axis, const PooledRows<L, kPlaces>& rows, int64_t p,
                                  int64_t p_end, Best<L, kPlaces>* ends, const ForLanes& for_lanes,
                                  const Write& write) {
  using Found = Best<L, kPlaces>;
  if (worth_segments(axis, p_end - p)) {
    for_lanes([&](int64_t i, auto... lanes) {
      walk_segments(
          axis, p, p_end, ends, [&](int64_t h) { return rows.load(h, i); },
          [&](int64_t p, const Found& found) {
            write(p, from_row(found, axis.first_tap(p)), i, lanes...);
          });
    });
    return;
  }
  for (; p < p_end; ++p) {
    const TapRange taps = axis.inside(p);
    const Found nothing = from_row(Found::none(), axis.first_tap(p));
    for_lanes([&](int64_t i, auto... lanes) {
      const auto load = [&](int64_t h) { return rows.load(h, i); };
      write(p, taps.begin < taps.end ? best_of_rows(axis, p, taps, load) : nothing, i, lanes...);
    });
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
