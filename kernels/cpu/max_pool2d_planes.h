// max_pool2d forward, plane by plane: any window, any layout; fast where a plane's columns lie next
// to each other.
//
// A task is some output rows. The rows of a tile are pooled along the row into a buffer that stays
// in L1, then along the column: every input row is pooled once per tile. Rows and columns are walked
// in the order of the window, so that of equal elements the first is taken.
//
// What the kernel cannot read in place (columns that lie apart, elements that are compared as
// another type) is copied row by row.
#pragma once
#include "../scratch.h"
#include "max_pool2d_column.h"
#include "max_pool2d_places.h"
#include "max_pool2d_row.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Between memory and rows that are compared: elements of one type or another, any distance apart.
template <class S>
struct RowCopies {
  bool same;  // memory holds S
  void (*in)(const void* memory, int64_t from, int64_t stride, S* row, int64_t count);
  void (*out)(const S* row, void* memory, int64_t to, int64_t stride, int64_t count);
};

template <class To, class From>
FASTCONV_INLINE To as_element(From value) {
  if constexpr (kSame<To, From>)
    return value;
  else if constexpr (std::is_integral_v<From> && sizeof(To) < sizeof(From))
    // What an empty window has is lower than what memory can hold.
    return static_cast<To>(larger(value, static_cast<From>(PlainLanes<To>::lowest())));
  else if constexpr (std::is_integral_v<From>)
    return static_cast<To>(value);
  else if constexpr (kSame<To, Compute<From>>)
    return to_compute(value);
  else
    return from_compute<To>(value);
}

template <class S, class M>
constexpr RowCopies<S> kRowCopies = {
    kSame<S, M>,
    [](const void* memory, int64_t from, int64_t stride, S* row, int64_t count) {
      const M* elements = static_cast<const M*>(memory) + from;
      for (int64_t i = 0; i < count; ++i) row[i] = as_element<S>(elements[i * stride]);
    },
    [](const S* row, void* memory, int64_t to, int64_t stride, int64_t count) {
      M* elements = static_cast<M*>(memory) + to;
      for (int64_t i = 0; i < count; ++i) elements[i * stride] = as_element<M>(row[i]);
    }};

// Where: int64_t for indices, uint8_t for taps, void for values alone.
template <class L, class Where>
struct Planes {
  using S = typename L::Storage;
  using Lane = typename L::Lane;
  using Place = Signed<Lane>;
  static constexpr bool kPlaces = !std::is_void_v<Where>;
  static constexpr int64_t kLanes = Vec<Lane>::kLanes;
  using Found = Best<L, kPlaces>;
  using Written = std::conditional_t<kPlaces, Where, uint8_t>;

  const MaxPool2dShape& s;
  const void* input;
  void* output;
  Where* where;
  const RowCopies<S>& copies;

  const ClippedAxis rows = rows_of(s), columns = columns_of(s);
  const PlaceWriter<Written, Place> writer{s, rows, columns, columns.stride};
  const bool reads_in_place = copies.same && s.input.s[3] == 1;
  const bool writes_in_place =
      copies.same && s.output.s[3] == 1 && (!kPlaces || s.indices.s[3] == 1);
  const bool has_empty_columns = kSame<Written, uint8_t> && kPlaces && columns.has_empty_window();

  // Output rows and columns of plane (n, c), and the input rows under them.
  struct Tile {
    int64_t n, c, p, p_end, q, q_end, h, h_end;
  };
  // What a task needs beside the tensors.
  struct Memory {
    int64_t tile_p, tile_q;
    PooledRows<L, kPlaces> pooled;
    const Place* first_tap;  // of every output column, or null
    S* packed;               // rows of input that are not read in place
    S* values;               // rows of output that are not written in place
    Written* places;
    Found* ends;
  };

  // along the row

  void run() const {
    const int64_t taps = columns.taps, stride = columns.stride;
    if (taps > 4 && taps > 4 * (stride - 1)) return run_wide();
    if (stride == 1) return run_narrow(NarrowRow<L, kPlaces, 1>::pool);
    if (stride == 2) return run_narrow(NarrowRow<L, kPlaces, 2>::pool);
    if constexpr (!std::is_integral_v<S>) {
      if (stride == 3) return run_narrow(NarrowRow<L, kPlaces, 3>::pool);
      if (stride == 4) return run_narrow(NarrowRow<L, kPlaces, 4>::pool);
    }
    run_narrow(NarrowRow<L, kPlaces, 0>::pool);
  }

  void run_narrow(void (*pool)(const Axis&, const S*, int64_t, int64_t, Lane*, Place*)) const {
    for_tiles([&](const Memory& m, const Tile& t) {
      for (int64_t h = t.h; h < t.h_end; ++h) {
        const int64_t at = (h - t.h) * m.pooled.pitch;
        pool(columns, row_at(m, t, h), t.q, t.q_end - t.q, m.pooled.values + at,
             kPlaces ? m.pooled.columns + at : nullptr);
      }
    });
  }

  void run_wide() const {
    for_tiles([&](const Memory& m, const Tile& t) {
      WideRow<L, kPlaces> row{columns, 0, 0, nullptr, nullptr};
      row.length = row.length_of(columns, t.q_end - t.q);
      row.pitch = row.pitch_of(columns, t.q_end - t.q);
      const Scratch<Lane> values((t.h_end - t.h) * row.pitch);
      const Scratch<Place> places(kPlaces ? (t.h_end - t.h) * row.pitch : 0);
      row.values = values.data();
      row.columns = places.data();
      row.prepare([&](int64_t i) { return row_at(m, t, t.h + i); }, t.h_end - t.h, t.q);
      for (int64_t i = 0; i < t.h_end - t.h; ++i)
        for_blocks<kLanes>(t.q_end - t.q,
                           [&](int64_t q, int64_t) { m.pooled.store(i, q, row.at(i, q)); });
    });
  }

  // along the column

  __attribute__((noinline)) void pool_tile(const Memory& m, const Tile& t) const {
    PooledRows<L, kPlaces> pooled = m.pooled;
    pooled.first = t.h;
    pool_columns(
        rows, pooled, t.p, t.p_end, m.ends,
        [&](const auto& body) { for_blocks<kLanes>(t.q_end - t.q, body); },
        [&](int64_t p, const Found& found, int64_t i, int64_t count) {
          write(m, t, p, t.q + i, count, found);
        });
  }

  // results

  FASTCONV_INLINE S* values_at(const Memory& m, const Tile& t, int64_t p) const {
    if (writes_in_place)
      return static_cast<S*>(output) + t.n * s.output.s[0] + t.c * s.output.s[1] +
             p * s.output.s[2];
    return m.values + (p - t.p) * s.Q;
  }
  FASTCONV_INLINE Written* places_at(const Memory& m, const Tile& t, int64_t p) const {
    if (writes_in_place)
      return static_cast<Written*>(where) + t.n * s.indices.s[0] + t.c * s.indices.s[1] +
             p * s.indices.s[2];
    return m.places + (p - t.p) * s.Q;
  }

  // Outputs q, q + 1, ... of row p. Where nothing but padding was larger than -infinity, the first
  // column inside is the one.
  FASTCONV_INLINE void write(const Memory& m, const Tile& t, int64_t p, int64_t q, int64_t count,
                             const Found& found) const {
    store_first<L>(values_at(m, t, p) + q, found.value, count);
    if constexpr (kPlaces) {
      Vec<Place> column = found.column;
      if (m.first_tap) column = larger_of(column, Vec<Place>::load(m.first_tap + q));
      writer.write(places_at(m, t, p) + q, found.row, column, count,
                   rows.start(p) * s.W + columns.start(q));
    }
  }

  // What was not written in place, and taps of empty windows.
  __attribute__((noinline)) void finish(const Memory& m, const Tile& t) const {
    for (int64_t p = t.p; kPlaces && kSame<Written, uint8_t> && p < t.p_end; ++p) {
      const TapRange taps = rows.inside(p);
      if (!has_empty_columns && taps.begin < taps.end) continue;
      for (int64_t q = t.q; q < t.q_end; ++q) {
        const TapRange across = columns.inside(q);
        if (taps.begin == taps.end || across.begin == across.end) places_at(m, t, p)[q] = kNoTap;
      }
    }
    if (writes_in_place) return;
    for (int64_t p = t.p; p < t.p_end; ++p) {
      const int64_t to = t.n * s.output.s[0] + t.c * s.output.s[1] + p * s.output.s[2];
      const int64_t from = (p - t.p) * s.Q;
      copies.out(m.values + from + t.q, output, to + t.q * s.output.s[3], s.output.s[3],
                 t.q_end - t.q);
      if constexpr (kPlaces) {
        Written* at = static_cast<Written*>(where) + t.n * s.indices.s[0] + t.c * s.indices.s[1] +
                      p * s.indices.s[2];
        for (int64_t q = t.q; q < t.q_end; ++q) at[q * s.indices.s[3]] = m.places[from + q];
      }
    }
  }

  // tiles and tasks

  int64_t rows_under(int64_t outputs) const {
    return smaller((outputs - 1) * rows.stride + rows.reach() + 1, s.H);
  }
  // Output columns of a tile: all, but of windows so long that L2 would not hold their rows.
  int64_t tile_columns() const {
    const int64_t row_bytes = rows_under(rows.reach() / rows.stride + 1) * int64_t{sizeof(Lane)};
    return smaller(s.Q, larger(8 * kTileBytes / row_bytes / kLanes, int64_t{1}) * kLanes);
  }
  // Output rows of a tile: their pooled rows stay in L1, yet few are pooled for two tiles.
  int64_t tile_rows() const {
    const int64_t row_bytes = tile_columns() * int64_t{sizeof(Lane)} * (1 + kPlaces);
    const int64_t fit = (kTileBytes / row_bytes - rows.reach()) / rows.stride;
    return smaller(s.P, larger(fit, rows.reach() / rows.stride + 1));
  }

  // Row h of the tile's plane, its columns next to each other.
  FASTCONV_INLINE const S* row_at(const Memory& m, const Tile& t, int64_t h) const {
    if (reads_in_place)
      return static_cast<const S*>(input) + t.n * s.input.s[0] + t.c * s.input.s[1] +
             h * s.input.s[2];
    return m.packed + (h - t.h) * s.W;
  }

  __attribute__((noinline)) void pack(const Memory& m, const Tile& t) const {
    for (int64_t h = t.h; h < t.h_end; ++h)
      copies.in(input, t.n * s.input.s[0] + t.c * s.input.s[1] + h * s.input.s[2], s.input.s[3],
                m.packed + (h - t.h) * s.W, s.W);
  }

  // Calls body for the tiles of some output rows of a plane.
  template <class Body>
  void plane(const Memory& m, int64_t nc, int64_t p, int64_t p_end, const Body& body) const {
    Tile t{nc / s.C, nc % s.C, p, 0, 0, 0, 0, 0};
    for (; t.p < p_end; t.p = t.p_end) {
      t.p_end = smaller(t.p + m.tile_p, p_end);
      t.h = smaller(larger(rows.start(t.p), int64_t{0}), s.H);
      t.h_end = larger(smaller(rows.start(t.p_end - 1) + rows.reach() + 1, s.H), t.h);
      if (!reads_in_place) pack(m, t);
      for (t.q = 0; t.q < s.Q; t.q = t.q_end) {
        t.q_end = smaller(t.q + m.tile_q, s.Q);
        body(m, t);
        pool_tile(m, t);
        if (!writes_in_place || kSame<Written, uint8_t>) finish(m, t);
      }
    }
  }

  template <class Body>
  void for_tiles(const Body& body) const {
    const int64_t elements = s.W * smaller(rows.stride, rows.taps) + s.Q;
    parallel_for(s.N * s.C * s.P, kTaskElements / elements + 1, [&](int64_t begin, int64_t end) {
      const int64_t tile_p = tile_rows(), tile_h = rows_under(tile_p), tile_q = tile_columns();
      const int64_t pitch = (tile_q + kLanes - 1) / kLanes * kLanes;
      const Scratch<Lane> pooled(tile_h * pitch);
      const Scratch<Place> pooled_columns(kPlaces ? tile_h * pitch : 0);
      const Scratch<Place> first_tap(kPlaces && columns.pad > 0 ? s.Q + kLanes : 0);
      for (int64_t q = 0; first_tap.data() && q < s.Q + kLanes; ++q)
        first_tap.data()[q] = static_cast<Place>(columns.first_tap(q));
      const Scratch<S> packed(reads_in_place ? 0 : tile_h * s.W);
      const Scratch<S> values(writes_in_place ? 0 : tile_p * s.Q);
      const Scratch<Written> places(!kPlaces || writes_in_place ? 0 : tile_p * s.Q);
      const Scratch<Found> ends(worth_segments(rows, tile_p) ? rows.taps : 0);
      const Memory m{
          tile_p,           tile_q,        {pooled.data(), pooled_columns.data(), pitch, 0},
          first_tap.data(), packed.data(), values.data(),
          places.data(),    ends.data()};
      for (int64_t row = begin; row < end;) {
        const int64_t p = row % s.P, p_end = smaller(s.P, p + end - row);
        plane(m, row / s.P, p, p_end, body);
        row += p_end - p;
      }
    });
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
