// The matrix product that dense convolution, linear, recurrent layers and attention share.
//
//   c[i][j] = sum_d a[i][d] * b[d][j]
//
// A caller brings the two operands and says what becomes of a finished tile; operands read any
// layout, so that nothing is rearranged in memory but the block at hand. One thread computes a
// block of c:
//
//   for each depth block (kDepthBlock)            both operands prepare it: pack, widen or nothing
//     for each tile of up to kTileRows rows       a: stays in L1
//       for each panel of kTileColumns columns    b: [depth][kTileColumns], streams from L2
//         multiply_tile                           kTileRows x kTileVectors registers of sums
//         after the last depth block              sums and bias go from registers to the target
//
// So rows of the target are written from end to end.
//
// Each depth block is summed for itself, then added: the error of a sum of L grows with the square
// root of the longer of block and number of blocks, not of L. The order depends on the depth alone:
// results do not depend on blocks of rows or columns, or on threads.
//
// Depth is counted in elements of the operands: T is a number, or a pair of them that one instruction
// multiplies (Packed<S> in simd.h).
#pragma once
#include "../scratch.h"
#include "runs.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Registers: rows x vectors sums, the vectors of b, and a broadcast that folds into the
// multiplication where the instruction set can. 12 x 2 reaches 98 % of peak with 32 registers,
// 6 x 2 with 16 (Zen 5, gcc 12).
constexpr int kTileRows = kVectorRegisters == 32 ? 12 : 6;
constexpr int kTileVectors = 2;
template <class T>
constexpr int kTileColumns = kTileVectors * Vec<T>::kLanes;

// A panel of b fills half of a 48 KiB L1.
constexpr int64_t kPanelBytes = 24 << 10;
template <class T>
constexpr int64_t kDepthBlock = kPanelBytes / (kTileColumns<T> * int64_t{sizeof(T)});

// A tile of a: element d of row i is broadcast_at(at(d), i * row_stride).
template <class T>
FASTCONV_INLINE Vec<T> broadcast_at(const T* elements, int64_t x) {
  return Vec<T>::broadcast(elements[x]);
}

template <class T>
struct PlainRows {
  const T* data;
  int64_t row_stride;
  FASTCONV_INLINE const T* at(int64_t d) const { return data + d; }
};

// Rows whose element d lies offsets[d] away from one place: what a window reads of an image.
template <class T>
struct ShiftedRows {
  const T* data;
  int64_t row_stride;
  const int64_t* offsets;
  FASTCONV_INLINE const T* at(int64_t d) const { return data + offsets[d]; }
};

// The same of pairs that begin at any number, of each of which kept[d] says which bits are part of it:
// what lies behind the last number of an odd run is not.
struct PairsAtNumber {
  const BFloat16* numbers;
  Vec<BFloat16Pair> kept;
};
FASTCONV_INLINE Vec<BFloat16Pair> broadcast_at(const PairsAtNumber& pairs, int64_t x) {
  return broadcast_bits(*reinterpret_cast<const BFloat16Pair*>(pairs.numbers + x), pairs.kept);
}
struct ShiftedPairs {
  const BFloat16* data;
  int64_t row_stride;
  const int64_t* offsets;
  const BFloat16Pair* kept;
  FASTCONV_INLINE PairsAtNumber at(int64_t d) const {
    return {data + offsets[d], Vec<BFloat16Pair>::broadcast(kept[d])};
  }
};

// An operand a: `rows(i)` gives the rows from i on of the block prepared last.
template <class T>
struct DirectRows {
  const T* data;  // a[0][0]
  int64_t row_stride;
  int64_t begin = 0;

  FASTCONV_INLINE void prepare(int64_t from, int64_t) { begin = from; }
  FASTCONV_INLINE PlainRows<T> rows(int64_t i) const {
    return {data + i * row_stride + begin, row_stride};
  }
};

// The same, a tile of rows copied first where `copies`: rows that lie a multiple of 4 KiB apart share
// their sets of L1.
template <class T>
struct StagedRows {
  static constexpr int64_t kPitch = kDepthBlock<T> + Vec<T>::kLanes;
  DirectRows<T> direct;
  int64_t count;  // rows of a
  bool copies;
  int64_t length = 0;
  alignas(64) T tile[kTileRows * kPitch];

  FASTCONV_INLINE StagedRows(const DirectRows<T>& rows, int64_t row_count)
      : direct(rows), count(row_count), copies(rows.row_stride * int64_t{sizeof(T)} % 4096 == 0) {}

  FASTCONV_INLINE void prepare(int64_t from, int64_t until) {
    direct.prepare(from, until);
    length = until - from;
  }
  FASTCONV_INLINE PlainRows<T> rows(int64_t i) {
    const PlainRows<T> from = direct.rows(i);
    if (!copies) return from;
    for (int64_t row = 0; row < smaller(count - i, int64_t{kTileRows}); ++row)
      copy_run(tile + row * kPitch, from.at(0) + row * from.row_stride, 1, length);
    return {tile, kPitch};
  }
};

// A panel of b: at(d) points to its kTileColumns columns in row d of the block prepared last.
template <class T>
struct PackedPanel {
  const T* data;  // [depth][kTileColumns]
  FASTCONV_INLINE const T* at(int64_t d) const { return data + d * kTileColumns<T>; }
};

// A panel whose row d lies offsets[d] away from one place: what a window reads of an image.
template <class T>
struct ShiftedPanel {
  const T* data;
  const int64_t* offsets;
  FASTCONV_INLINE const T* at(int64_t d) const { return data + offsets[d]; }
};

// An operand b: `panel(j)` gives one panel of the block prepared last.
template <class T>
struct PackedPanels {
  const T* data;  // [panel][depth][kTileColumns]
  int64_t depth;
  int64_t begin = 0;

  FASTCONV_INLINE void prepare(int64_t from, int64_t) { begin = from; }
  FASTCONV_INLINE PackedPanel<T> panel(int64_t j) const {
    return {data + (j * depth + begin) * kTileColumns<T>};
  }
};

// What becomes of a tile's sums: c[i][j] = sums[i][j] + partial[i][j] + bias, each addend where there
// is one. This is where a product ends, whoever takes the tile. T: the type of sums; S: that of
// `narrowed`, which takes the place of c where it is not null.
template <class T, class S = T>
struct TileEnd {
  T* c;
  int64_t stride;   // between the rows of c
  int64_t columns;  // of c; the sums of further ones are dropped
  const T* row_bias = nullptr;
  const T* column_bias = nullptr;
  const T* partial = nullptr;  // sums of the depth blocks before, whole panels wide
  int64_t partial_stride = 0;
  S* narrowed = nullptr;
};

// The end of a tile whose results are stored as S: pairs are narrowed on their way from registers, other
// types by whoever takes the tile.
template <class S>
using EndOf = TileEnd<Compute<S>, std::conditional_t<kNumbers<Packed<S>> == 1, Compute<S>, S>>;

// Lets the tile end in memory of type S, if its end can; returns whether it does.
template <class T, class N, class S>
FASTCONV_INLINE bool end_in(TileEnd<T, N>& end, S* to) {
  if constexpr (kSame<T, S>)
    end.c = to;
  else if constexpr (kSame<N, S>)
    end.narrowed = to;
  return kSame<T, S> || kSame<N, S>;
}

template <int kVectors>
FASTCONV_INLINE void store_narrowed(BFloat16* to, const Vec<float> (&sums)[kVectors],
                                    int64_t columns) {
  constexpr int64_t kLanes = Vec<float>::kLanes;
  if constexpr (kVectors == 2)
    if (columns >= 2 * kLanes) return store_narrowed(to, sums[0], sums[1]);
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const int64_t lanes = smaller(columns - j * kLanes, kLanes);
    if (lanes > 0) store_some_narrowed(to + j * kLanes, sums[j], lanes);
  }
}

template <class T, class S, int kRows, int kVectors>
FASTCONV_INLINE void finish_tile(Vec<T> (&sums)[kRows][kVectors], const TileEnd<T, S>& end) {
  using V = Vec<T>;
  const auto each = [&](const auto& body) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) body(i, j);
  };
  const auto some = [&](int j) {
    const int64_t lanes = end.columns - j * V::kLanes;
    return lanes < 0 ? 0 : smaller(lanes, int64_t{V::kLanes});
  };
  if (end.partial) {
    each([&](int i, int j) {
      const T* from = end.partial + i * end.partial_stride + j * V::kLanes;
      sums[i][j] = V::load(from) + sums[i][j];
    });
  }
  if (end.row_bias)
    each([&](int i, int j) { sums[i][j] = sums[i][j] + V::broadcast(end.row_bias[i]); });
  if (end.column_bias) {
    V bias[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      bias[j] = load_some(end.column_bias + j * V::kLanes, some(j));
    each([&](int i, int j) { sums[i][j] = sums[i][j] + bias[j]; });
  }
  if constexpr (!kSame<T, S>)
    if (end.narrowed) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i)
        store_narrowed(end.narrowed + i * end.stride, sums[i], end.columns);
      return;
    }
  if (end.columns >= kVectors * V::kLanes)
    each([&](int i, int j) { sums[i][j].store(end.c + i * end.stride + j * V::kLanes); });
  else
    each([&](int i, int j) {
      store_some(end.c + i * end.stride + j * V::kLanes, sums[i][j], some(j));
    });
}

// The tile a * b of kRows x kVectors vectors.
template <class T, int kRows, int kVectors, class Rows, class Panel, class End>
void multiply_tile(int64_t depth, const Rows& a, const Panel& b, const End& end) {
  using V = Vec<T>;
  Vec<Sum<T>> sums[kRows][kVectors];
  // What is written last is fetched first: the products hide its way from memory.
  const auto fetch = [&](const auto* to) {
    __builtin_prefetch(to, 1);
    __builtin_prefetch(to + smaller(end.columns, int64_t{kTileColumns<T>}) - 1, 1);
  };
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (!kSame<End, TileEnd<Sum<T>>> && end.narrowed)
      fetch(end.narrowed + i * end.stride);
    else
      fetch(end.c + i * end.stride);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = Vec<Sum<T>>::zero();
  }

  for (int64_t d = 0; d < depth; ++d) {
    V columns[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) columns[j] = V::load(b.at(d) + j * V::kLanes);
    const auto rows = a.at(d);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V row = broadcast_at(rows, i * a.row_stride);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] = add_product(sums[i][j], row, columns[j]);
    }
  }
  finish_tile(sums, end);
}

// The tile of `rows` rows, 1 <= rows <= kTileRows.
template <class T, int kVectors, int kRows = kTileRows, class Rows, class Panel, class End>
FASTCONV_INLINE void multiply_rows(int64_t rows, int64_t depth, const Rows& a, const Panel& b,
                                   const End& end) {
  if constexpr (kRows > 1)
    if (rows < kRows) return multiply_rows<T, kVectors, kRows - 1>(rows, depth, a, b, end);
  multiply_tile<T, kRows, kVectors>(depth, a, b, end);
}

// The same, of one vector where the panel holds no more.
template <class T, class Rows, class Panel, class End>
void multiply_panel(int64_t rows, int64_t columns, int64_t depth, const Rows& a, const Panel& b,
                    const End& end) {
  if (columns <= Vec<T>::kLanes)
    multiply_rows<T, 1>(rows, depth, a, b, end);
  else
    multiply_rows<T, kTileVectors>(rows, depth, a, b, end);
}

// Part `index` of `parts` of [0, count), as even as can be: where it begins.
FASTCONV_INLINE int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + smaller(count % parts, index);
}

// Computes rows x columns of c. store.end(i, rows, j, columns) says how a tile, at most kTileRows x
// kTileColumns, ends; where that says nowhere, store(i, rows, j, columns, tile, stride) takes the finished
// tile as tile[r * stride + s]. With depth 0 the sums are zero.
// Rows are the outer loop: so the rows of c are written from end to end.
template <class T, class Rows, class Panels, class Store>
void multiply_block(int64_t rows, int64_t columns, int64_t depth, Rows& a, Panels& b,
                    const Store& store) {
  const int64_t panels = divide_up(columns, int64_t{kTileColumns<T>});
  const int64_t tiles = divide_up(rows, int64_t{kTileRows});
  const int64_t sums_stride = panels * kTileColumns<T>;
  const int64_t height = tiles > 0 ? rows / tiles : 0, higher = rows - height * tiles;
  alignas(64) Sum<T> tile[kTileRows * kTileColumns<T>];
  Scratch<Sum<T>> sums(depth <= kDepthBlock<T> ? 0 : rows * sums_stride);

  int64_t begin = 0, until = 0;
  const auto run_tile = [&](int64_t i, int64_t count, const auto& tile_rows, int64_t j) {
    const int64_t first = j * kTileColumns<T>;
    const int64_t width = smaller(columns - first, int64_t{kTileColumns<T>});
    Sum<T>* const partial = sums.data() + i * sums_stride + first;
    decltype(store.end(i, count, first, width)) end{partial, sums_stride, kTileColumns<T>};
    bool staged = false;
    if (until == depth) {
      end = store.end(i, count, first, width);
      staged = !end.c && !end.narrowed;
      if (staged) end.c = tile, end.stride = end.columns = kTileColumns<T>;
    }
    if (begin > 0) end.partial = partial, end.partial_stride = sums_stride;
    multiply_panel<T>(count, width, until - begin, tile_rows, b.panel(j), end);
    if (staged) store(i, count, first, width, tile, int64_t{kTileColumns<T>});
  };
  do {
    until = smaller(begin + kDepthBlock<T>, depth);
    a.prepare(begin, until);
    b.prepare(begin, until);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = height * t + smaller(higher, t), count = height + (t < higher);
      const auto tile_rows = a.rows(i);
      for (int64_t j = 0; j < panels; ++j) run_tile(i, count, tile_rows, j);
    }
    begin = until;
  } while (begin < depth);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
