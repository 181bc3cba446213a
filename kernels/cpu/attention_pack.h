// Operands of attention's products in the micro-kernel's order, and how its work is shared out.
//
// A matrix [rows][features] of storage type S is an operand b in two ways, W = kTileColumns<P>:
//   columns   [rows / W][features][W]   its transpose: products with each of its rows, score = q * k^T
//   rows      [features / W][rows][W]   sums over its rows, output = weight * v
// P: a number, or a pair of them, neighbours along the middle axis.
#pragma once
#include "../parallel.h"
#include "attention_rows.h"

namespace fastconv::cpu::FASTCONV_ISA {

// A matrix in memory: its first number, and the strides of its rows and features.
template <class S>
struct Matrix {
  const S* data;
  int64_t row_stride, feature_stride;

  FASTCONV_INLINE const S* row(int64_t i) const { return data + i * row_stride; }
};
template <class S>
FASTCONV_INLINE Matrix<S> matrix_of(const void* data, const Strides4& strides, int64_t b,
                                    int64_t h) {
  const int64_t at = b * strides.s[0] + h * strides.s[1];
  return {static_cast<const S*>(data) + at, strides.s[2], strides.s[3]};
}

// Elements of P that `count` numbers make.
template <class P>
FASTCONV_INLINE constexpr int64_t packed_depth(int64_t count) {
  return divide_up(count, kNumbers<P>);
}
template <class P>
FASTCONV_INLINE constexpr int64_t packed_size(int64_t lanes, int64_t depth) {
  return divide_up(lanes, int64_t{kTileColumns<P>}) * kTileColumns<P> * packed_depth<P>(depth);
}

// Rows [begin, end) as columns; begin is a multiple of W. Lanes without a row are zero.
template <class S>
void pack_columns(Packed<S>* target, const Matrix<S>& m, int64_t features, int64_t begin,
                  int64_t end) {
  using P = Packed<S>;
  constexpr int64_t kWidth = kTileColumns<P>;
  const int64_t depth = packed_depth<P>(features);
  for (int64_t row = begin; row < end; row += kWidth) {
    P* const panel = target + row * depth;
    const int64_t count = smaller(end - row, kWidth);
    if (count < kWidth) clear_run(panel, depth * kWidth);
    for_elements<P, false>(m.row(row), m.feature_stride, features, 0, depth,
                           [&](auto source, int64_t first, int64_t some) {
                             copy_grid(panel + first * kWidth, kWidth, source,
                                       kNumbers<P> * m.feature_stride, m.row_stride, some, count);
                           });
  }
}

// Rows [begin, end) as rows of panels that are `rows` deep; begin is even. Lanes without a feature are
// anything.
template <class S>
void pack_rows(Packed<S>* target, const Matrix<S>& m, int64_t rows, int64_t features, int64_t begin,
               int64_t end) {
  using P = Packed<S>;
  constexpr int64_t kWidth = kTileColumns<P>;
  const int64_t depth = packed_depth<P>(rows);
  const int64_t first_row = begin / kNumbers<P>, some_rows = packed_depth<P>(end - begin);
  for (int64_t e = 0; e < features; e += kWidth) {
    P* const panel = target + e * depth + first_row * kWidth;
    const int64_t count = smaller(features - e, kWidth);
    for_elements<P, true>(m.row(begin) + e * m.feature_stride, m.row_stride, end - begin, 0,
                          some_rows, [&](auto source, int64_t first, int64_t some) {
                            copy_grid(panel + first * kWidth, kWidth, source,
                                      kNumbers<P> * m.row_stride, m.feature_stride, some, count);
                          });
  }
}

// One row as elements: an operand a.
template <class S>
FASTCONV_INLINE void pack_row(Packed<S>* target, const S* row, int64_t stride, int64_t count) {
  using P = Packed<S>;
  for_elements<P, false>(row, stride, count, 0, packed_depth<P>(count),
                         [&](auto source, int64_t first, int64_t some) {
                           copy_run(target + first, source, kNumbers<P> * stride, some);
                         });
}

// body(unit) for each of `count` units, each taken by whichever thread is free: units may differ in
// cost. What a unit writes depends on nothing but the unit.
template <class Body>
void share_out(int64_t count, const Body& body) {
  int64_t next = 0;
  parallel_for(smaller(count, static_cast<int64_t>(num_threads())), 1, [&](int64_t, int64_t) {
    for (;;) {
      const int64_t unit = __atomic_fetch_add(&next, int64_t{1}, __ATOMIC_RELAXED);
      if (unit >= count) return;
      body(unit);
    }
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
