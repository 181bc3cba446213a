// The matrix product that dense convolution, linear, recurrent layers and attention share.
//
//   c[i][j] = sum_d a[i][d] * b[d][j]
//
// A caller brings the two operands and says what becomes of a finished tile; operands read any
// layout, so that nothing is rearranged in memory but the block at hand. One thread computes a
// block of c:
//
//   for each depth block (kDepthBlock)            both operands prepare it: pack, widen or nothing
//     for each panel of kTileColumns columns      b: [depth][kTileColumns], stays in L1
//       for each tile of kTileRows rows           a: any two strides, streams from L2
//         multiply_tile                           kTileRows x kTileVectors registers of sums
//         after the last depth block: store       while the tile is in L1
//
// Each depth block is summed for itself, then added: the error of a sum of L grows with the square
// root of the longer of block and number of blocks, not of L. The order depends on the depth alone:
// results do not depend on blocks of rows or columns, or on threads.
#pragma once
#include "../scratch.h"
#include "simd.h"

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

template <class T>
FASTCONV_INLINE constexpr T divide_up(T a, T b) {
  return (a + b - 1) / b;
}

// An operand a: `row(i)` points to a[i][begin] of the block prepared last; its elements are a[i][d]
// at row(i) + (d - begin) * depth_stride, rows lie row_stride apart. One of the two strides is 1.
template <class T>
struct DirectRows {
  const T* data;  // a[0][0]
  int64_t row_stride, depth_stride;
  int64_t begin = 0;

  FASTCONV_INLINE void prepare(int64_t from, int64_t) { begin = from; }
  FASTCONV_INLINE const T* row(int64_t i) const {
    return data + i * row_stride + begin * depth_stride;
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

// c[kRows][kVectors vectors] (+)= a * b. kDepthContiguous: depth_stride is 1, else row_stride is.
template <class T, int kRows, int kVectors, bool kDepthContiguous, class Panel>
void multiply_tile(int64_t depth, const T* __restrict a, int64_t a_stride, const Panel b,
                   T* __restrict c, int64_t c_stride, bool accumulate) {
  using V = Vec<T>;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = V::zero();

  for (int64_t d = 0; d < depth; ++d) {
    V columns[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) columns[j] = V::load(b.at(d) + j * V::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V row = V::broadcast(kDepthContiguous ? a[i * a_stride] : a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] = sums[i][j] + row * columns[j];
    }
    a += kDepthContiguous ? 1 : a_stride;
  }

#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* to = c + i * c_stride + j * V::kLanes;
      (accumulate ? V::load(to) + sums[i][j] : sums[i][j]).store(to);
    }
}

// How many of the `rest` rows the next tile takes: only these heights are compiled.
FASTCONV_INLINE int64_t next_tile_rows(int64_t rest) {
  if (rest >= kTileRows) return kTileRows;
  return rest >= 6 ? 6 : rest >= 4 ? 4 : rest >= 2 ? 2 : 1;
}

// The tile of that height, and of one vector where the panel holds no more.
template <class T, int kVectors, bool kDepthContiguous, class Panel>
void multiply_rows(int64_t rows, int64_t depth, const T* a, int64_t a_stride, const Panel b, T* c,
                   int64_t c_stride, bool accumulate) {
  const auto multiply = [&](auto height) {
    multiply_tile<T, decltype(height)::value, kVectors, kDepthContiguous>(depth, a, a_stride, b, c,
                                                                          c_stride, accumulate);
  };
  if (rows == kTileRows)
    multiply(std::integral_constant<int, kTileRows>());
  else if (rows == 6)
    multiply(std::integral_constant<int, 6>());
  else if (rows == 4)
    multiply(std::integral_constant<int, 4>());
  else if (rows == 2)
    multiply(std::integral_constant<int, 2>());
  else
    multiply(std::integral_constant<int, 1>());
}

template <class T, class Rows, class Panel>
FASTCONV_INLINE void multiply_panel(const Rows& a, int64_t i, int64_t rows, int64_t columns,
                                    int64_t depth, const Panel& b, T* c, int64_t c_stride,
                                    bool accumulate) {
  const bool narrow = columns <= Vec<T>::kLanes;
  if (a.depth_stride == 1) {
    const auto multiply =
        narrow ? multiply_rows<T, 1, true, Panel> : multiply_rows<T, kTileVectors, true, Panel>;
    multiply(rows, depth, a.row(i), a.row_stride, b, c, c_stride, accumulate);
  } else {
    const auto multiply =
        narrow ? multiply_rows<T, 1, false, Panel> : multiply_rows<T, kTileVectors, false, Panel>;
    multiply(rows, depth, a.row(i), a.depth_stride, b, c, c_stride, accumulate);
  }
}

// Computes rows x columns of c; store(i, rows, j, columns, tile, stride) takes each finished tile,
// at most kTileRows x kTileColumns, as tile[r * stride + s]. With depth 0 the tiles are zero.
template <class T, class Rows, class Panels, class Store>
void multiply_block(int64_t rows, int64_t columns, int64_t depth, Rows& a, Panels& b,
                    const Store& store) {
  const int64_t panels = divide_up(columns, int64_t{kTileColumns<T>});
  const bool one_block = depth <= kDepthBlock<T>;
  const int64_t stride = one_block ? kTileColumns<T> : panels * kTileColumns<T>;
  alignas(64) T tile[kTileRows * kTileColumns<T>];
  Scratch<T> sums(one_block ? 0 : rows * stride);

  int64_t begin = 0;
  do {
    const int64_t end = smaller(begin + kDepthBlock<T>, depth);
    a.prepare(begin, end);
    b.prepare(begin, end);
    for (int64_t j = 0; j < panels; ++j) {
      const auto panel = b.panel(j);
      for (int64_t i = 0; i < rows;) {
        const int64_t count = next_tile_rows(rows - i);
        T* c = one_block ? tile : sums.data() + i * stride + j * kTileColumns<T>;
        const int64_t first = j * kTileColumns<T>;
        const int64_t width = smaller(columns - first, int64_t{kTileColumns<T>});
        multiply_panel<T>(a, i, count, width, end - begin, panel, c, stride, begin > 0);
        if (end == depth) store(i, count, first, width, c, stride);
        i += count;
      }
    }
    begin = end;
  } while (begin < depth);
}

// runs: the innermost loops of packers and stores

// target[i] = source[i * stride], widened to the compute type; exactly `count` elements are read
// and written.
template <class S>
FASTCONV_INLINE void copy_run(Compute<S>* target, const S* source, int64_t stride, int64_t count) {
  constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
  int64_t i = 0;
  if (stride != 1) {
    // Both loads end at the next block's first element.
    for (; stride == 2 && i + kLanes < count; i += kLanes)
      even_lanes(load_as_compute(source + 2 * i), load_as_compute(source + 2 * i + kLanes))
          .store(target + i);
    for (; i < count; ++i) target[i] = to_compute(source[i * stride]);
    return;
  }
  for (; i + kLanes <= count; i += kLanes) load_as_compute(source + i).store(target + i);
  if (i < count) store_some(target + i, load_some_as_compute(source + i, count - i), count - i);
}

// target[i * target_stride + j] = source[i * row_stride + j * column_stride], widened. Where the rows
// of the source are contiguous and its columns are not, square blocks are transposed in registers.
template <class S>
void copy_grid(Compute<S>* target, int64_t target_stride, const S* source, int64_t row_stride,
               int64_t column_stride, int64_t rows, int64_t columns) {
  using V = Vec<Compute<S>>;
  int64_t i = 0;
  if (column_stride != 1 && row_stride == 1 && columns >= V::kLanes) {
    for (; i + V::kLanes <= rows; i += V::kLanes) {
      int64_t j = 0;
      for (; j + V::kLanes <= columns; j += V::kLanes) {
        V block[V::kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < V::kLanes; ++r)
          block[r] = load_as_compute(source + i + (j + r) * column_stride);
        transpose(block);
#pragma GCC unroll 16
        for (int r = 0; r < V::kLanes; ++r) block[r].store(target + (i + r) * target_stride + j);
      }
      for (int64_t r = i; r < i + V::kLanes; ++r)
        copy_run(target + r * target_stride + j, source + r + j * column_stride, column_stride,
                 columns - j);
    }
  }
  for (; i < rows; ++i)
    copy_run(target + i * target_stride, source + i * row_stride, column_stride, columns);
}

template <class T>
FASTCONV_INLINE void clear_run(T* target, int64_t count) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Vec<T>::zero().store(target + i);
  if (i < count) store_some(target + i, Vec<T>::zero(), count - i);
}

// target[i * stride] = source[i] + addend, narrowed to the storage type.
template <class S>
FASTCONV_INLINE void store_run(S* target, int64_t stride, const Compute<S>* source, int64_t count,
                               Compute<S> addend) {
  using V = Vec<Compute<S>>;
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) target[i * stride] = from_compute<S>(source[i] + addend);
    return;
  }
  const V add = V::broadcast(addend);
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes)
    store_from_compute(target + i, V::load(source + i) + add);
  if (i < count)
    store_some_from_compute(target + i, load_some(source + i, count - i) + add, count - i);
}

// target[i * stride] = source[i] + addend[i]; addend may be null.
template <class S>
FASTCONV_INLINE void store_run(S* target, int64_t stride, const Compute<S>* source, int64_t count,
                               const Compute<S>* addend) {
  using V = Vec<Compute<S>>;
  if (!addend) return store_run(target, stride, source, count, Compute<S>{0});
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) target[i * stride] = from_compute<S>(source[i] + addend[i]);
    return;
  }
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes)
    store_from_compute(target + i, V::load(source + i) + V::load(addend + i));
  if (i < count)
    store_some_from_compute(
        target + i, load_some(source + i, count - i) + load_some(addend + i, count - i), count - i);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
