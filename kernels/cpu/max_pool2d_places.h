// Where the best of a window was, as memory holds it: int64 indices h * W + w, or one byte with the
// number of the tap, r * S + s.
#pragma once
#include "max_pool2d_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <int kPart, class Place>
FASTCONV_INLINE void write_index_parts(int64_t* to, Vec<Place> offsets, Vec<int64_t> base,
                                       int64_t step) {
  constexpr int64_t kPartLanes = Vec<int64_t>::kLanes;
  (base + as_int64<kPart>(offsets)).store(to + kPart * kPartLanes);
  base.raw += kPartLanes * step;
  if constexpr ((kPart + 1) * kPartLanes < Vec<Place>::kLanes)
    write_index_parts<kPart + 1>(to, offsets, base, step);
}

// Indices corner + l * step + offsets[l] of the first `count` lanes l.
template <class Place>
FASTCONV_INLINE void write_indices(int64_t* to, Vec<Place> offsets, int64_t count, int64_t corner,
                                   int64_t step) {
  constexpr int64_t kLanes = Vec<Place>::kLanes;
  const auto base = progression(corner, step, typename CountLanes<Vec<int64_t>::kLanes>::List());
  if (count == kLanes) return write_index_parts<0>(to, offsets, base, step);
  int64_t each[kLanes];
  write_index_parts<0>(each, offsets, base, step);
  __builtin_memcpy(to, each, static_cast<unsigned long>(count) * sizeof(int64_t));
}

// Writes rows and columns of taps; lanes are outputs whose windows begin at `corner`,
// corner + lane_step, ...
template <class Written, class Place>
struct PlaceWriter;

template <class Place>
struct PlaceWriter<int64_t, Place> {
  int64_t row_step, column_step, lane_step;
  bool fits;  // offsets in a window are no wider than a lane

  PlaceWriter(const MaxPool2dShape& s, const ClippedAxis& rows, const ClippedAxis& columns,
              int64_t lane_step)
      : row_step(s.window.dilation_h * s.W),
        column_step(s.window.dilation_w),
        lane_step(lane_step) {
    constexpr double kLargest = sizeof(Place) == 2 ? 0x1p15 : sizeof(Place) == 4 ? 0x1p31 : 0x1p63;
    const auto taps = [](const ClippedAxis& axis) {
      return static_cast<double>(axis.taps + axis.first_tap(0));
    };
    fits = taps(rows) * static_cast<double>(row_step) +
               taps(columns) * static_cast<double>(column_step) <
           kLargest;
  }

  FASTCONV_INLINE void write(int64_t* to, Vec<Place> row, Vec<Place> column, int64_t count,
                             int64_t corner) const {
    if (fits) {
      const Vec<Place> offsets{row.raw * static_cast<Place>(row_step) +
                               column.raw * static_cast<Place>(column_step)};
      return write_indices(to, offsets, count, corner, lane_step);
    }
    Place r[Vec<Place>::kLanes], c[Vec<Place>::kLanes];
    row.store(r);
    column.store(c);
    for (int64_t l = 0; l < count; ++l)
      to[l] = corner + l * lane_step + r[l] * row_step + c[l] * column_step;
  }
};

template <class Place>
struct PlaceWriter<uint8_t, Place> {
  Place taps_of_row, lead;

  PlaceWriter(const MaxPool2dShape& s, const ClippedAxis& rows, const ClippedAxis& columns, int64_t)
      : taps_of_row(static_cast<Place>(s.window.S)),
        lead(static_cast<Place>(rows.lead * s.window.S + columns.lead)) {}

  FASTCONV_INLINE void write(uint8_t* to, Vec<Place> row, Vec<Place> column, int64_t count,
                             int64_t) const {
    store_low_bytes(to, Vec<Place>{row.raw * taps_of_row + column.raw + lead}, count);
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
