// The weight as an operand of conv2d.cpp's products: rows of operand a where lanes are pixels,
// panels of operand b where lanes are channels.
#pragma once
#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

// A piece of pack_rows_together: `rows` rows of `channels` channels, from[row * weight_k + c * weight_c +
// taps[t].weight], as [row][c][t]. Neighbours in the weight are read one after the other, and a window
// that fits a register in one load.
template <class S>
void pack_weight_piece(const Product<S>& p, const S* from, int64_t rows, int64_t channels,
                       Compute<S>* piece) {
  using V = Vec<Compute<S>>;
  const Tap* taps = p.source.taps;
  const int64_t count = p.source.tap_count, pitch = channels * count;
  int64_t first = taps[0].weight, last = first;
  for (int64_t t = 1; t < count; ++t)
    first = smaller(first, taps[t].weight), last = larger(last, taps[t].weight);
  const int64_t reach = last - first + 1;
  Vec<LaneIndex<Compute<S>>> order = Vec<LaneIndex<Compute<S>>>::zero();
  const bool in_register = count > 1 && larger(count, reach) <= V::kLanes;
  for (int64_t t = 0; in_register && t < count; ++t)
    order.raw[t] = static_cast<LaneIndex<Compute<S>>>(taps[t].weight - first);

  const auto for_each_window = [&](const auto& copy) {
    const auto visit = [&](int64_t row, int64_t c) {
      const S* window = from + row * p.weight_k + c * p.weight_c + first;
      __builtin_prefetch(window + channels * p.weight_c);  // the next piece: jumps, no stream
      copy(piece + row * pitch + c * count, window);
    };
    if (p.weight_k < p.weight_c)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t row = 0; row < rows; ++row) visit(row, c);
    else
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t c = 0; c < channels; ++c) visit(row, c);
  };
  if (count == 1)
    for_each_window([](Compute<S>* to, const S* window) { *to = to_compute(*window); });
  else if (in_register)
    for_each_window([&](Compute<S>* to, const S* window) {
      store_some(to, permute(load_some_as_compute(window, reach), order), count);
    });
  else
    for_each_window([&](Compute<S>* to, const S* window) {
      for (int64_t t = 0; t < count; ++t) to[t] = to_compute(window[taps[t].weight - first]);
    });
}

template <class S>
FASTCONV_INLINE int64_t weight_rows_size(const Product<S>& p) {
  return p.G * p.K * p.source.template elements<Packed<S>>();
}

// [g][k][c * taps + t]: rows of operand a, of `count` products that differ in their taps, one after the
// other. Pieces are arranged in L1 and leave it row by row: rows, and a weight's channels, often lie
// powers of two apart, which L1 holds few of. Products take their taps from the same piece.
template <class S>
void pack_rows_together(const Product<S>* products, int64_t count, Compute<S>* packed) {
  constexpr int64_t kPieceRows = 16, kPiece = 16;
  const Product<S>& p = products[0];
  const int64_t C = p.source.C, parts = divide_up(p.K, kPieceRows);
  int64_t most_taps = 0, all_taps = 0;
  for (int64_t i = 0; i < count; ++i) {
    most_taps = larger(most_taps, products[i].source.tap_count);
    all_taps += products[i].source.tap_count;
  }
  const int64_t grain = (int64_t{1} << 10) / (C * all_taps + 1) + 1;
  // copy_grid transposes these in registers.
  const bool in_registers = all_taps == 1 && (p.weight_k == 1 || p.weight_c == 1);
  parallel_for(p.G * parts, grain, [&](int64_t begin, int64_t end) {
    Scratch<Compute<S>> piece(in_registers ? 0 : kPieceRows * kPiece * most_taps);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t g = part / parts, k = part % parts * kPieceRows;
      const int64_t rows = smaller(kPieceRows, p.K - k);
      const S* from = p.weight + g * p.weight_g + k * p.weight_k;
      if (in_registers) {
        copy_grid(packed + (g * p.K + k) * C, C, from + p.source.taps[0].weight, p.weight_k,
                  p.weight_c, rows, C);
        continue;
      }
      for (int64_t c = 0; c < C; c += kPiece) {
        const int64_t channels = smaller(kPiece, C - c);
        Compute<S>* of_product = packed;
        for (const Product<S>* q = products; q < products + count; ++q) {
          const int64_t taps = q->source.tap_count, run = channels * taps;
          pack_weight_piece(*q, from + c * p.weight_c, rows, channels, piece.data());
          Compute<S>* to = of_product + ((g * p.K + k) * C + c) * taps;
          for (int64_t row = 0; row < rows; ++row)
            copy_run(to + row * C * taps, piece.data() + row * run, 1, run);
          of_product += weight_rows_size(*q);
        }
      }
    }
  });
}

// The same of one product, whose elements are pairs of numbers.
template <class S>
void pack_rows_of_pairs(const Product<S>& p, Packed<S>* packed) {
  using T = Packed<S>;
  constexpr int64_t kPieceRows = 16, kPiece = 64, kPair = kNumbers<T>;
  const PixelSource<S>& source = p.source;
  const int64_t C = source.template channels<T>(), taps = source.tap_count, depth = C * taps;
  const int64_t parts = divide_up(p.K, kPieceRows);
  const int64_t grain = (int64_t{1} << 10) / (depth + 1) + 1;
  parallel_for(p.G * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t g = part / parts, k = part % parts * kPieceRows;
      const int64_t rows = smaller(kPieceRows, p.K - k);
      const S* group = p.weight + g * p.weight_g + k * p.weight_k;
      T* to = packed + (g * p.K + k) * depth;
      if (taps == 1) {
        const auto copy = [&](auto from, int64_t c, int64_t some) {
          copy_grid(to + c, depth, from, p.weight_k, kPair * p.weight_c, rows, some);
        };
        for_elements<T, false>(group + source.taps[0].weight, p.weight_c, source.C, 0, C, copy);
        continue;
      }
      for (int64_t piece = 0; piece < C; piece += kPiece) {
        const auto copy = [&](auto from, int64_t first, int64_t some) {
          for (int64_t row = 0; row < rows; ++row)
            for (int64_t c = 0; c < some; ++c)
              for (int64_t t = 0; t < taps; ++t)
                to[row * depth + (piece + first + c) * taps + t] = element_at(
                    from + (row * p.weight_k + c * kPair * p.weight_c + source.taps[t].weight));
        };
        for_elements<T, true>(group, p.weight_c, source.C, piece, smaller(piece + kPiece, C), copy);
      }
    }
  });
}

template <class S>
void pack_weight_rows(const Product<S>& p, Packed<S>* packed) {
  if constexpr (kSame<Packed<S>, Compute<S>>)
    pack_rows_together(&p, 1, packed);
  else
    pack_rows_of_pairs(p, packed);
}

// Panels of K columns.
template <class S>
FASTCONV_INLINE int64_t panels_size(const Product<S>& p, int64_t depth) {
  constexpr int64_t kColumns = kTileColumns<Packed<S>>;
  return p.G * divide_up(p.K, kColumns) * kColumns * depth;
}

// [g][panel][t * C + c][kTileColumns]: panels of operand b. Written in pieces that stay in L1, for
// the lanes of a panel lie far apart in the weight.
template <class S>
void pack_weight_panels(const Product<S>& p, Packed<S>* packed) {
  using T = Packed<S>;
  constexpr int64_t kColumns = kTileColumns<T>, kPiece = 64, kPair = kNumbers<T>;
  const PixelSource<S>& source = p.source;
  const int64_t C = source.template channels<T>(), taps = source.tap_count, depth = C * taps;
  const int64_t panels = divide_up(p.K, kColumns), pieces = divide_up(C, kPiece);
  parallel_for(p.G * panels * pieces, 512 / (taps + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / pieces % panels, g = task / pieces / panels;
      const int64_t c_begin = task % pieces * kPiece, c_end = smaller(c_begin + kPiece, C);
      const int64_t k_begin = panel * kColumns, lanes = smaller(kColumns, p.K - k_begin);
      const S* from = p.weight + g * p.weight_g + k_begin * p.weight_k;
      T* to = packed + (g * panels + panel) * depth * kColumns;
      for (int64_t t = 0; t < taps; ++t) {
        T* rows = to + (t * C + c_begin) * kColumns;
        if (lanes < kColumns) clear_run(rows, (c_end - c_begin) * kColumns);
        const auto copy = [&](auto tap, int64_t c, int64_t some) {
          copy_grid(rows + c * kColumns, kColumns, tap, kPair * p.weight_c, p.weight_k, some,
                    lanes);
        };
        for_elements<T, false>(from + source.taps[t].weight, p.weight_c, source.C, c_begin, c_end,
                               copy);
      }
    }
  });
}

// The weight of a group is already [k][c * taps + t], in elements of the operand.
template <class S>
bool weight_is_plain(const Product<S>& p) {
  constexpr int64_t kPair = kNumbers<Packed<S>>;
  if (!kIsPacked<S> || p.weight_c != p.source.tap_count) return false;
  for (int64_t t = 0; t < p.source.tap_count; ++t)
    if (p.source.taps[t].weight != t) return false;
  return kPair == 1 || (p.source.tap_count == 1 && p.source.C % kPair == 0 &&
                        p.weight_k % kPair == 0 && p.weight_g % kPair == 0);
}

// Operand a of the arrangements whose lanes are pixels: the weight, packed only if it must be.
template <class S>
class WeightRows {
 public:
  using T = Packed<S>;

  // `prepared`: what pack_weight_rows gives, or null.
  WeightRows(const Product<S>& p, const T* prepared)
      : product_(p),
        plain_(weight_is_plain(p)),
        packed_(plain_ || prepared ? 0 : weight_rows_size(p)),
        rows_(prepared ? prepared : packed_.data()) {
    if (!plain_ && !prepared) pack_weight_rows(p, packed_.data());
  }

  // Channels from k on of group g.
  StagedRows<T> rows(int64_t g, int64_t k) const {
    const Product<S>& p = product_;
    if (plain_) {
      const S* from = p.weight + g * p.weight_g + k * p.weight_k;
      return StagedRows<T>({reinterpret_cast<const T*>(from), p.weight_k / kNumbers<T>}, p.K - k);
    }
    const int64_t depth = p.source.template elements<T>();
    return StagedRows<T>({rows_ + (g * p.K + k) * depth, depth}, p.K - k);
  }

 private:
  const Product<S>& product_;
  bool plain_;
  Scratch<T> packed_;
  const T* rows_;
};

}  // namespace fastconv::cpu::FASTCONV_ISA
