// The weight as an operand of conv2d.cpp's products: rows of operand a where lanes are pixels,
// panels of operand b where lanes are channels.
#pragma once
#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

// [g][k][c * taps + t]: rows of operand a. Written in pieces whose source stays in L1, for either the
// rows or the channels of one lie far apart in the weight.
template <class S>
void pack_weight_rows(const Product<S>& p, Compute<S>* packed) {
  constexpr int64_t kPieceRows = 16, kPiece = 64;
  const int64_t C = p.source.C, taps = p.source.tap_count, depth = p.source.depth();
  const int64_t parts = divide_up(p.K, kPieceRows);
  const int64_t grain = (int64_t{1} << 10) / (depth + 1) + 1;
  parallel_for(p.G * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t g = part / parts, k = part % parts * kPieceRows;
      const int64_t rows = smaller(kPieceRows, p.K - k);
      const S* from = p.weight + g * p.weight_g + k * p.weight_k;
      Compute<S>* to = packed + (g * p.K + k) * depth;
      if (taps == 1) {
        copy_grid(to, depth, from + p.source.taps[0].weight, p.weight_k, p.weight_c, rows, C);
        continue;
      }
      for (int64_t c_begin = 0; c_begin < C; c_begin += kPiece)
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t c = c_begin; c < smaller(c_begin + kPiece, C); ++c)
            for (int64_t t = 0; t < taps; ++t)
              to[row * depth + c * taps + t] =
                  to_compute(from[row * p.weight_k + c * p.weight_c + p.source.taps[t].weight]);
    }
  });
}

template <class S>
FASTCONV_INLINE int64_t weight_rows_size(const Product<S>& p) {
  return p.G * p.K * p.source.depth();
}
template <class S>
FASTCONV_INLINE int64_t weight_panels_size(const Product<S>& p) {
  constexpr int64_t kColumns = kTileColumns<Compute<S>>;
  return p.G * divide_up(p.K, kColumns) * kColumns * p.source.depth();
}

// [g][panel][t * C + c][kTileColumns]: panels of operand b. Written in pieces that stay in L1, for
// the lanes of a panel lie far apart in the weight.
template <class S>
void pack_weight_panels(const Product<S>& p, Compute<S>* packed) {
  using T = Compute<S>;
  constexpr int64_t kColumns = kTileColumns<T>, kPiece = 64;
  const int64_t C = p.source.C, taps = p.source.tap_count, depth = p.source.depth();
  const int64_t panels = divide_up(p.K, kColumns), pieces = divide_up(C, kPiece);
  parallel_for(p.G * panels * pieces, 512 / (taps + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / pieces % panels, g = task / pieces / panels;
      const int64_t c_begin = task % pieces * kPiece, c_end = smaller(c_begin + kPiece, C);
      const int64_t k_begin = panel * kColumns, lanes = smaller(kColumns, p.K - k_begin);
      const S* from = p.weight + g * p.weight_g + k_begin * p.weight_k;
      T* to = packed + (g * panels + panel) * depth * kColumns;
      for (int64_t t = 0; t < taps; ++t) {
        T* rows = to + t * C * kColumns;
        const S* tap = from + p.source.taps[t].weight;
        if (lanes < kColumns) clear_run(rows + c_begin * kColumns, (c_end - c_begin) * kColumns);
        copy_grid(rows + c_begin * kColumns, kColumns, tap + c_begin * p.weight_c, p.weight_c,
                  p.weight_k, c_end - c_begin, lanes);
      }
    }
  });
}

// The weight of a group is already [k][c * taps + t], in the compute type.
template <class S>
bool weight_is_plain(const Product<S>& p) {
  if (!kSame<S, Compute<S>> || p.weight_c != p.source.tap_count) return false;
  for (int64_t t = 0; t < p.source.tap_count; ++t)
    if (p.source.taps[t].weight != t) return false;
  return true;
}

// Operand a of the arrangements whose lanes are pixels: the weight, packed only if it must be.
template <class S>
class WeightRows {
 public:
  using T = Compute<S>;

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
    if constexpr (kSame<S, T>)
      if (plain_) return {{p.weight + g * p.weight_g + k * p.weight_k, p.weight_k}, p.K - k};
    const int64_t depth = p.source.depth();
    return {{rows_ + (g * p.K + k) * depth, depth}, p.K - k};
  }

 private:
  const Product<S>& product_;
  bool plain_;
  Scratch<T> packed_;
  const T* rows_;
};

}  // namespace fastconv::cpu::FASTCONV_ISA
