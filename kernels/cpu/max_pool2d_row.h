// The windows of one row of a plane: kLanes neighbouring outputs at a time.
//
//   best[q] = max_s row[q * stride - pad + s * dilation]
//
// NarrowRow loads every tap; with a stride of 2 to 4, taps that lie next to each other come from
// the same registers. Elements outside the row are loaded as lowest.
// WideRow copies rows into a buffer with their padding and makes of runs of a elements runs of up
// to 4a, until a run is a quarter of the window: ceil(log4 S) passes of at most four loads. Of one
// pass all rows are done before the next: a load that overlaps two stores waits until both are in
// the cache.
#pragma once
#include "max_pool2d_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Lanes l are elements l * kStride + kPhase of kStride registers.
template <int kStride, int kPhase, class T, int... lane>
FASTCONV_INLINE Vec<T> every_third(const Vec<T> (&v)[kStride], LaneList<lane...>) {
  constexpr int kLanes = Vec<T>::kLanes;
  const Vec<T> front = shuffle<((3 * lane + kPhase) % (2 * kLanes))...>(v[0], v[1]);
  return shuffle<(3 * lane + kPhase < 2 * kLanes ? lane : 3 * lane + kPhase - kLanes)...>(front,
                                                                                          v[2]);
}
template <int kPhase, int kStride, class T>
FASTCONV_INLINE Vec<T> phase_of(const Vec<T> (&v)[kStride]) {
  if constexpr (kStride == 1) {
    return v[0];
  } else if constexpr (kStride == 2) {
    return every_other<kPhase>(v[0], v[1]);
  } else if constexpr (kStride == 3) {
    return every_third<kStride, kPhase>(v, typename CountLanes<Vec<T>::kLanes>::List());
  } else {
    return every_other<kPhase / 2>(every_other<kPhase % 2>(v[0], v[1]),
                                   every_other<kPhase % 2>(v[2], v[3]));
  }
}

// kStride 0: any.
template <class L, bool kPlaces, int kStride>
struct NarrowRow {
  using S = typename L::Storage;
  using Lane = typename L::Lane;
  using Lanes = Vec<Lane>;
  using Found = Best<L, kPlaces>;
  static constexpr int64_t kLanes = Lanes::kLanes;

  const Axis& axis;

  // Outputs [q, q + count) of a row, to values and columns; whole registers are written.
  static void pool(const Axis& axis, const S* row, int64_t q, int64_t count, Lane* values,
                   Signed<Lane>* columns) {
    const NarrowRow narrow{axis};
    // Elements that the loads of a block reach over
    const int64_t last = axis.taps - 1;
    const int64_t span =
        (narrow.in_groups() ? last / kStride * kStride : axis.reach()) + kLanes * axis.stride;
    for_blocks<kLanes>(count, [&](int64_t i, int64_t) {
      const int64_t start = axis.start(q + i);
      const bool inside = start >= 0 && start + span <= axis.extent;
      const Found found =
          inside ? narrow.template walk<true>(row, start) : narrow.template walk<false>(row, start);
      found.value.store(values + i);
      if constexpr (kPlaces) found.column.store(columns + i);
    });
  }

  FASTCONV_INLINE bool in_groups() const { return kStride > 1 && axis.dilation == 1; }

  template <bool kInside>
  FASTCONV_INLINE Lanes load(const S* row, int64_t position) const {
    return kInside ? L::load(row + position)
                   : load_inside<L>(row + position, -position, axis.extent - position);
  }

  template <bool kInside>
  FASTCONV_INLINE Found walk(const S* row, int64_t start) const {
    if (in_groups()) return walk_groups<kInside>(row, start);
    Found found = Found::first(tap<kInside>(row, start));
    for (int64_t s = 1; s < axis.taps; ++s)
      found.offer_column(tap<kInside>(row, start + s * axis.dilation), s);
    return found;
  }

  template <bool kInside>
  FASTCONV_INLINE Lanes tap(const S* row, int64_t position) const {
    if constexpr (kStride == 0) {
      return gather(row, position);
    } else {
      Lanes v[kStride];
      for (int j = 0; j < kStride; ++j) v[j] = load<kInside>(row, position + j * kLanes);
      return phase_of<0>(v);
    }
  }

  // Taps s, s + 1, ... s + kStride - 1 are the phases of the same registers.
  template <bool kInside>
  FASTCONV_INLINE Found walk_groups(const S* row, int64_t start) const {
    Found found = Found::none();
    if constexpr (kStride > 1)
      for (int64_t s = 0; s < axis.taps; s += kStride) {
        Lanes v[kStride];
        for (int j = 0; j < kStride; ++j) v[j] = load<kInside>(row, start + s + j * kLanes);
        if (s == 0)
          found = Found::first(phase_of<0>(v));
        else
          found.offer_column(phase_of<0>(v), s);
        if (s + 1 < axis.taps) found.offer_column(phase_of<1>(v), s + 1);
        if constexpr (kStride > 2)
          if (s + 2 < axis.taps) found.offer_column(phase_of<2>(v), s + 2);
        if constexpr (kStride > 3)
          if (s + 3 < axis.taps) found.offer_column(phase_of<3>(v), s + 3);
      }
    return found;
  }

  FASTCONV_INLINE Lanes gather(const S* row, int64_t position) const {
    S lanes[kLanes];
    int64_t begin = 0, end = 0;
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t w = position + l * axis.stride;
      if (w < 0) begin = end = l + 1;
      if (w < 0 || w >= axis.extent) continue;
      lanes[l] = row[w];
      end = l + 1;
    }
    return load_inside<L>(lanes, begin, end);
  }
};

template <class L, bool kPlaces>
struct WideRow {
  using S = typename L::Storage;
  using Lane = typename L::Lane;
  using Lanes = Vec<Lane>;
  using Place = Signed<Lane>;
  using Found = Best<L, kPlaces>;
  static constexpr int64_t kLanes = Lanes::kLanes;

  Axis axis;
  int64_t length, pitch;  // of a row in the buffers: elements, and with what vectors reach beyond
  Lane* values;
  Place* columns;  // with places: the number of the tap in the run that begins at an element

  static int64_t length_of(const Axis& axis, int64_t outputs) {
    return (outputs - 1) * axis.stride + axis.reach() + 1;
  }
  static int64_t pitch_of(const Axis& axis, int64_t outputs) {
    return (length_of(axis, outputs) + kLanes * (axis.stride + 1)) / kLanes * kLanes;
  }

  // Makes of `rows` rows what at() reads: the outputs from q on.
  template <class RowAt>
  void prepare(const RowAt& row_at, int64_t rows, int64_t q) const {
    const int64_t start = axis.start(q);
    for (int64_t i = 0; i < rows; ++i) {
      const S* row = row_at(i);
      for (int64_t w = 0; w < pitch; w += kLanes) {
        const int64_t position = start + w;
        (position >= 0 && position + kLanes <= axis.extent
             ? L::load(row + position)
             : load_inside<L>(row + position, -position, axis.extent - position))
            .store(values + i * pitch + w);
      }
      if constexpr (kPlaces)
        for (int64_t w = 0; w < pitch; w += kLanes)
          Vec<Place>::zero().store(columns + i * pitch + w);
    }
    lengthen(rows, quarter(axis.taps));
  }

  // The runs from which four make one of `run` elements; 1 is an element itself.
  static int64_t quarter(int64_t run) { return (run + 3) / 4; }

  void lengthen(int64_t rows, int64_t run) const {
    if (run == 1) return;
    const int64_t part = quarter(run);
    lengthen(rows, part);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t w = 0; w + (run - 1) * axis.dilation < length; w += kLanes) {
        const int64_t at = i * pitch + w;
        const Found found = join<1>(at, part, run);
        found.value.store(values + at);
        if constexpr (kPlaces) found.column.store(columns + at);
      }
  }

  // The best of `run` elements, from runs of `part`.
  template <int kStride>
  FASTCONV_INLINE Found join(int64_t at, int64_t part, int64_t run) const {
    Found found = run_at<kStride>(at, 0);
    for (int64_t s = part; s < run; s += part) {
      const int64_t tap = smaller(s, run - part);
      const Found other = run_at<kStride>(at, tap);
      if constexpr (kPlaces)
        found.offer(other.value, other.column, other.row);
      else
        found.offer_row(other, 0);
    }
    return found;
  }

  template <int kStride>
  FASTCONV_INLINE Found run_at(int64_t at, int64_t tap) const {
    const int64_t from = at + tap * axis.dilation;
    Found found;
    found.value = lanes_at<kStride>(values + from);
    if constexpr (kPlaces) {
      found.column = lanes_at<kStride>(columns + from);
      found.column.raw += static_cast<Place>(tap);
      found.row = Vec<Place>::zero();
    }
    return found;
  }

  template <int kStride, class T>
  FASTCONV_INLINE Vec<T> lanes_at(const T* p) const {
    if constexpr (kStride > 0) {
      Vec<T> v[kStride];
      for (int j = 0; j < kStride; ++j) v[j] = Vec<T>::load(p + j * kLanes);
      return phase_of<0>(v);
    } else {
      T lanes[kLanes];
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] = p[l * axis.stride];
      return Vec<T>::load(lanes);
    }
  }

  // Outputs q, q + 1, ... behind the first of the prepared ones, of row i.
  FASTCONV_INLINE Found at(int64_t i, int64_t q) const {
    const int64_t from = i * pitch + q * axis.stride, part = quarter(axis.taps);
    switch (axis.stride) {
      case 1:
        return join<1>(from, part, axis.taps);
      case 2:
        return join<2>(from, part, axis.taps);
      default:
        return join<0>(from, part, axis.taps);
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
