// The tile of conv2d's weight gradient: outer products, summed over a box of pixels.
//
//   c[i][j] (+)= sum_{n, p, q} a[n, p, q][i] * b[n, p, q][j]
//
// b's elements of a pixel are contiguous: they are lanes. a's are broadcast and lie at any stride.
// Pixels lie at any strides in both: a tap of the window, a stride and a dilation are nothing but
// another place to start and other strides. The sums start at zero and are added to c at the end: a
// long sum is a sum of sums, whose rounding errors grow with the root of both lengths.
#pragma once
#include "gemm.h"

namespace fastconv::cpu::FASTCONV_ISA {

struct PixelBox {
  int64_t images, rows, columns;
  FASTCONV_INLINE bool is_empty() const { return images <= 0 || rows <= 0 || columns <= 0; }
};

// Where a box begins in an operand, and how far apart its pixels and a pixel's elements are.
template <class E>
struct BoxOperand {
  const E* data;
  int64_t image, row, column, element;
};

// kContiguous: a.element is 1.
template <class T, int kRows, int kVectors, bool kContiguous>
void add_outer_products(const PixelBox& box, const BoxOperand<T>& a, const BoxOperand<T>& b,
                        T* __restrict c, int64_t c_stride, bool accumulate) {
  using V = Vec<T>;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = V::zero();

  const int64_t element = kContiguous ? 1 : a.element;
  for (int64_t n = 0; n < box.images; ++n) {
    const T *a_row = a.data + n * a.image, *b_row = b.data + n * b.image;
    for (int64_t p = 0; p < box.rows; ++p, a_row += a.row, b_row += b.row) {
      const T *at = a_row, *bt = b_row;
      for (int64_t q = 0; q < box.columns; ++q, at += a.column, bt += b.column) {
        V lanes[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) lanes[j] = V::load(bt + j * V::kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          const V factor = V::broadcast(at[i * element]);
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) sums[i][j] = sums[i][j] + factor * lanes[j];
        }
      }
    }
  }

#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* to = c + i * c_stride + j * V::kLanes;
      (accumulate ? V::load(to) + sums[i][j] : sums[i][j]).store(to);
    }
}

// The tile of `rows` rows, 1 <= rows <= kTileRows.
template <class T, int kVectors, bool kContiguous, int kRows = kTileRows>
void add_outer_product_rows(int64_t rows, const PixelBox& box, const BoxOperand<T>& a,
                            const BoxOperand<T>& b, T* c, int64_t c_stride, bool accumulate) {
  if (rows == kRows) {
    add_outer_products<T, kRows, kVectors, kContiguous>(box, a, b, c, c_stride, accumulate);
  } else {
    if constexpr (kRows > 1)
      add_outer_product_rows<T, kVectors, kContiguous, kRows - 1>(rows, box, a, b, c, c_stride,
                                                                  accumulate);
  }
}

// All `rows` rows of one panel of at most kTileColumns lanes, in tiles of almost equal heights.
template <class T>
void multiply_box(int64_t rows, int64_t lanes, PixelBox box, BoxOperand<T> a, BoxOperand<T> b, T* c,
                  int64_t c_stride, bool accumulate) {
  if (box.is_empty()) {
    if (accumulate) return;
    box.images = 0;
  }
  // Loops that are one in memory are one.
  if (a.row == box.columns * a.column && b.row == box.columns * b.column)
    box.columns *= box.rows, box.rows = 1;
  if (box.rows == 1) box.rows = box.images, a.row = a.image, b.row = b.image, box.images = 1;
  if (a.row == box.columns * a.column && b.row == box.columns * b.column)
    box.columns *= box.rows, box.rows = 1;
  const bool narrow = lanes <= Vec<T>::kLanes;
  const auto add = a.element == 1 ? narrow ? add_outer_product_rows<T, 1, true>
                                           : add_outer_product_rows<T, kTileVectors, true>
                   : narrow ? add_outer_product_rows<T, 1, false>
                                  : add_outer_product_rows<T, kTileVectors, false>;
  const int64_t tiles = divide_up(rows, int64_t{kTileRows});
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t i = rows * tile / tiles, i_end = rows * (tile + 1) / tiles;
    BoxOperand<T> from = a;
    from.data += i * a.element;
    add(i_end - i, box, from, b, c + i * c_stride, c_stride, accumulate);
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
