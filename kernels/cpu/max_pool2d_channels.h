// max_pool2d forward, channels_last: lanes are channels.
//
// Small windows: a task is some output rows; every output pixel walks its taps for kLanes channels
// at once. Windows of 5 and more rows or columns that overlap: the rows of a tile of channels are
// pooled along the row into a buffer, then along the column, as in max_pool2d_planes.h.
#pragma once
#include "../scratch.h"
#include "max_pool2d_column.h"
#include "max_pool2d_places.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Where: int64_t for indices, uint8_t for taps, void for values alone.
template <class L, class Where>
struct Channels {
  using S = typename L::Storage;
  using Lane = typename L::Lane;
  using Place = Signed<Lane>;
  static constexpr bool kPlaces = !std::is_void_v<Where>;
  static constexpr int64_t kLanes = Vec<Lane>::kLanes;
  using Found = Best<L, kPlaces>;
  using Written = std::conditional_t<kPlaces, Where, uint8_t>;

  const MaxPool2dShape& s;
  const S* input;
  S* output;
  Where* where;

  const ClippedAxis rows = rows_of(s), columns = columns_of(s);
  const PlaceWriter<Written, Place> writer{s, rows, columns, 0};

  static bool serves(const MaxPool2dShape& s) {
    return s.C > 1 && s.input.s[1] == 1 && s.output.s[1] == 1 && (!kPlaces || s.indices.s[1] == 1);
  }

  // The first `count` channels: fewer than kLanes where a pixel or a tile does not fill a register.
  FASTCONV_INLINE static Vec<Lane> load(const S* p, int64_t count) {
    return count < kLanes ? L::load(p, LaneRange<Lane>::of(0, count)) : L::load(p);
  }
  FASTCONV_INLINE const S* pixel(int64_t n, int64_t h, int64_t w) const {
    return input + n * s.input.s[0] + h * s.input.s[2] + w * s.input.s[3];
  }

  void run() const {
    if (worth_segments(rows, s.P) || worth_segments(columns, s.Q)) return run_wide();
    const int64_t elements = s.C * (s.W * smaller(rows.stride, rows.taps) + s.Q);
    const auto row = row_kernel();
    parallel_for(s.N * s.P, kTaskElements / elements + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (this->*row)(i / s.P, i % s.P);
    });
  }

  using RowKernel = void (Channels::*)(int64_t n, int64_t p) const;
  RowKernel row_kernel() const {
    const int64_t taps = columns.taps;
    if constexpr (!kPlaces)
      if (taps == 3 && columns.dilation == 1) {
        if (columns.stride == 1) return &Channels::pool_row<3, 1>;
        if (columns.stride == 2) return &Channels::pool_row<3, 2>;
      }
    if (rows.taps == taps && taps == 3) return &Channels::pool_row<3, 0>;
    if (rows.taps == taps && taps == 2) return &Channels::pool_row<2, 0>;
    return &Channels::pool_row<0, 0>;
  }

  // kTaps: columns of the window, and rows if kSlides is 0; 0 for any. kSlides: the stride.
  template <int64_t kTaps, int64_t kSlides>
  void pool_row(int64_t n, int64_t p) const {
    const TapRange r = rows.inside(p);
    const int64_t inside_end = (s.W - 1 - columns.reach() + columns.pad) / columns.stride + 1;
    for (int64_t q = 0; q < s.Q; ++q) {
      const TapRange c = columns.inside(q);
      const S* corner = pixel(n, rows.start(p), columns.start(q));
      if (r.begin == r.end || c.begin == c.end) {
        write_empty(n, p, q);
        continue;
      }
      const bool across = kTaps && c.end - c.begin == kTaps;
      if constexpr (kSlides) {
        if (across) {
          const int64_t end = smaller(smaller(inside_end, s.Q), q + 16);
          slide<kSlides>(n, p, r, q, end);
          q = end - 1;
          continue;
        }
      }
      const bool whole = across && !kSlides && r.end - r.begin == kTaps;
      for_blocks<kLanes>(s.C, [&](int64_t i, int64_t count) {
        write(n, p, q, i, count,
              whole ? walk(corner + i, count, {0, kTaps}, {0, kTaps})
                    : walk(corner + i, count, r, c));
      });
    }
  }

  // Values of outputs [q, end), whose three columns are inside: a column is found once for the
  // outputs that share it. Neighbouring registers of a pixel are walked together, so that memory is
  // read in order.
  template <int64_t kStride>
  void slide(int64_t n, int64_t p, TapRange r, int64_t q, int64_t end) const {
    const S* from = pixel(n, rows.start(p) + r.begin * rows.dilation, columns.start(q));
    S* to = output + n * s.output.s[0] + p * s.output.s[2] + q * s.output.s[3];
    const int64_t count = r.end - r.begin, outputs = end - q;
    int64_t i = 0;
    for (; i + 4 * kLanes <= s.C; i += 4 * kLanes)
      slide_blocks<kStride, 4>(from + i, count, to + i, outputs, kLanes);
    for (; i + 2 * kLanes <= s.C; i += 2 * kLanes)
      slide_blocks<kStride, 2>(from + i, count, to + i, outputs, kLanes);
    for (; i < s.C; i += kLanes) {
      const int64_t at = smaller(i, larger(s.C - kLanes, int64_t{0}));
      slide_blocks<kStride, 1>(from + at, count, to + at, outputs, smaller(s.C, kLanes));
    }
  }

  // Channels of kBlocks registers, of the only one the first `lanes`.
  template <int64_t kStride, int kBlocks>
  FASTCONV_INLINE void slide_blocks(const S* at, int64_t rows_inside, S* to, int64_t outputs,
                                    int64_t lanes) const {
    const int64_t step = rows.dilation * s.input.s[2], next = s.input.s[3];
    struct Column {
      Vec<Lane> block[kBlocks];
    };
    const auto column = [&](const S* from) {
      Column value;
      for (int b = 0; b < kBlocks; ++b) value.block[b] = load(from + b * kLanes, lanes);
      for (int64_t y = 1; y < rows_inside; ++y) {
        from += step;
        for (int b = 0; b < kBlocks; ++b)
          value.block[b] = L::larger(value.block[b], load(from + b * kLanes, lanes));
      }
      return value;
    };
    Column left = column(at), middle = left;
    if (kStride == 1) middle = column(at += next);
    for (int64_t o = 0; o < outputs; ++o, to += s.output.s[3]) {
      if (kStride == 2) middle = column(at += next);
      const Column right = column(at += next);
      for (int b = 0; b < kBlocks; ++b)
        store_first<L>(to + b * kLanes,
                       L::larger(L::larger(left.block[b], middle.block[b]), right.block[b]), lanes);
      left = kStride == 1 ? middle : right;
      middle = right;
    }
  }

  FASTCONV_INLINE Found walk(const S* corner, int64_t count, TapRange r, TapRange c) const {
    const int64_t row_step = rows.dilation * s.input.s[2];
    const int64_t column_step = columns.dilation * s.input.s[3];
    const auto tap = [&](int64_t y, int64_t x) {
      return load(corner + y * row_step + x * column_step, count);
    };
    Found found = Found::first_tap(tap(r.begin, c.begin), r.begin, c.begin);
    for (int64_t y = r.begin; y < r.end; ++y)
      for (int64_t x = y == r.begin ? c.begin + 1 : c.begin; x < c.end; ++x)
        found.offer_tap(tap(y, x), y, x);
    return found;
  }

  FASTCONV_INLINE void write(int64_t n, int64_t p, int64_t q, int64_t c, int64_t count,
                             const Found& found) const {
    store_first<L>(output + n * s.output.s[0] + p * s.output.s[2] + q * s.output.s[3] + c,
                   found.value, count);
    if constexpr (kPlaces) {
      Written* to = static_cast<Written*>(where) + n * s.indices.s[0] + p * s.indices.s[2] +
                    q * s.indices.s[3] + c;
      writer.write(to, found.row, found.column, count, rows.start(p) * s.W + columns.start(q));
    }
  }

  // A pixel of which no tap is inside.
  void write_empty(int64_t n, int64_t p, int64_t q) const {
    const Found nothing =
        Found::first_tap(Found::none().value, rows.first_tap(p), columns.first_tap(q));
    for_blocks<kLanes>(s.C, [&](int64_t i, int64_t count) { write(n, p, q, i, count, nothing); });
    mark_empty(n, p, q, 0, s.C);
  }
  FASTCONV_INLINE void mark_empty(int64_t n, int64_t p, int64_t q, int64_t c, int64_t count) const {
    if constexpr (kSame<Where, uint8_t>) {
      Written* to = where + n * s.indices.s[0] + p * s.indices.s[2] + q * s.indices.s[3] + c;
      __builtin_memset(to, kNoTap, static_cast<unsigned long>(count));
    }
  }

  // windows that overlap a lot

  // Rows of a tile of channels, pooled along the row, one behind the other: [q][c].
  struct Tile {
    int64_t n, c, channels, p, p_end;
    PooledRows<L, kPlaces> pooled;
    Found* ends;
  };

  void run_wide() const {
    // A tile: neighbouring channels, and output rows whose pooled rows stay in L1
    const int64_t reach = rows.reach(), pixel_bytes = int64_t{sizeof(Lane)} * (1 + kPlaces) * s.Q;
    const int64_t under = smaller(reach + (reach / rows.stride + 1) * rows.stride, s.H);
    const int64_t fit = kTileBytes / (pixel_bytes * under);
    const int64_t channels =
        smaller(s.C, larger(smaller(fit / kLanes, int64_t{4}), int64_t{1}) * kLanes);
    const int64_t tiles = (s.C + channels - 1) / channels, pitch = s.Q * channels + kLanes;
    const int64_t tile_p =
        smaller(s.P, larger((kTileBytes / (pixel_bytes * channels) - reach) / rows.stride,
                            reach / rows.stride + 1));
    const int64_t elements = channels * (s.W * smaller(rows.stride, rows.taps) + s.Q);
    parallel_for(s.N * tiles * s.P, kTaskElements / elements + 1, [&](int64_t begin, int64_t end) {
      const int64_t most_rows = smaller((tile_p - 1) * rows.stride + reach + 1, s.H);
      const Scratch<Lane> values(most_rows * pitch);
      const Scratch<Place> places(kPlaces ? most_rows * pitch : 0);
      const Scratch<Found> ends(larger(rows.taps, columns.taps));
      for (int64_t i = begin; i < end;) {
        const int64_t c = i / s.P % tiles * channels, p = i % s.P;
        const int64_t p_end = smaller(smaller(p + tile_p, s.P), p + end - i);
        pool_tile({i / s.P / tiles,
                   c,
                   smaller(channels, s.C - c),
                   p,
                   p_end,
                   {values.data(), places.data(), pitch, 0},
                   ends.data()});
        i += p_end - p;
      }
    });
  }

  void pool_tile(Tile t) const {
    const int64_t begin = smaller(larger(rows.start(t.p), int64_t{0}), s.H);
    const int64_t end = larger(smaller(rows.start(t.p_end - 1) + rows.reach() + 1, s.H), begin);
    t.pooled.first = begin;
    for (int64_t h = begin; h < end; ++h)
      for_blocks<kLanes>(t.channels, [&](int64_t i, int64_t count) { pool_along(t, h, i, count); });
    const auto for_lanes = [&](const auto& body) {
      for (int64_t q = 0; q < s.Q; ++q)
        for_blocks<kLanes>(t.channels, [&](int64_t i, int64_t count) {
          body(q * t.channels + i, q, t.c + i, count);
        });
    };
    pool_columns(rows, t.pooled, t.p, t.p_end, t.ends, for_lanes,
                 [&](int64_t p, const Found& found, int64_t, int64_t q, int64_t c, int64_t count) {
                   write(t.n, p, q, c, count, found);
                   const TapRange across = columns.inside(q), down = rows.inside(p);
                   if (across.begin == across.end || down.begin == down.end)
                     mark_empty(t.n, p, q, c, count);
                 });
  }

  // Row h of the tile, channels from i on.
  void pool_along(const Tile& t, int64_t h, int64_t i, int64_t count) const {
    const S* row = pixel(t.n, h, 0) + t.c + i;
    const auto load_pixel = [&](int64_t w) {
      return Found::first(load(row + w * s.input.s[3], count));
    };
    const auto store = [&](int64_t q, const Found& best) {
      Found found = from_row(best, columns.first_tap(q));
      if constexpr (kPlaces) found.column = found.row;
      t.pooled.store(h, q * t.channels + i, found);
    };
    if (worth_segments(columns, s.Q))
      return walk_segments(columns, 0, s.Q, t.ends, load_pixel, store);
    for (int64_t q = 0; q < s.Q; ++q) {
      const TapRange c = columns.inside(q);
      store(q, c.begin < c.end ? best_of_rows(columns, q, c, load_pixel) : Found::none());
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
