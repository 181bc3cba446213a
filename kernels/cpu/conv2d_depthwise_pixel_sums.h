// The sums of a depthwise convolution with lanes of pixels: a block of target rows in registers.
//
//   sums[o][q][lane] = bias + sum_{r,s} rows[k(o,r)][q * kLanes + offset[s] + lane] * weight[r][s]
//
// o: target rows of the block, q: its vectors. Where target rows share source rows (DepthwiseRows), a
// vector that was loaded meets all sums that it is part of. Every sum runs over r, then s, whatever
// the block.
// Cost: one multiplication-addition per tap and vector.
#pragma once
#include "conv2d_depthwise_window.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class S>
struct PixelSumsTask {
  using T = Compute<S>;

  // What is summed.
  bool shared;  // as in DepthwiseRows
  int64_t window_rows, window_columns;
  const int64_t* offset;  // [window_columns]
  const T* weight;        // [window_rows][window_columns]
  T bias;

  // Pixel j of target row o lies o * to_row + j * to_step behind the first one.
  int64_t to_row, to_step;
  int64_t pixels;
  const Finish<S>* finish;  // null: nothing
  int64_t channel;          // for `finish`
};

// Vectors and rows of a block at most: sums, source vectors and a weight fill the registers.
constexpr int kBlockVectors = kVectorRegisters == 32 ? 4 : 2;

// kColumns: of the window; 0: any. kRows: of the target.
// rows[k]: null, where outside: it counts as zeros.
template <class S, int kRows, int kVectors, int kColumns>
class PixelSums {
  using T = Compute<S>;
  using V = Vec<T>;

 public:
  // Vectors from `first` on of every row. The row's last one overlaps the one before instead of being
  // partly empty, if there is one.
  FASTCONV_INLINE PixelSums(const PixelSumsTask<S>& task, const T* const* rows, int64_t first)
      : task_(task),
        rows_(rows),
        first_(first * V::kLanes),
        last_(smaller((kVectors - 1) * int64_t{V::kLanes},
                      larger(task.pixels - first_ - V::kLanes, int64_t{0}))),
        window_columns_(kColumns ? kColumns : task.window_columns) {
    each([&](int o, int q) { sums_[o][q] = V::broadcast(task.bias); });
  }

  // Row k meets targets o with 0 <= k - o < R.
  FASTCONV_INLINE void add_shared() {
    for (int64_t k = 0; k < task_.window_rows + kRows - 1; ++k) {
      const T* row = rows_[k];
      if (!row) continue;
      const int64_t low = larger(k - task_.window_rows + 1, int64_t{0});
      const int64_t high = smaller(k, int64_t{kRows - 1});
      add_from<0>(low, high, row + first_, task_.weight + k * window_columns_);
    }
  }

  // The same with a window of 3 x 3, step by step: the weights stay in registers.
  FASTCONV_INLINE void add_three_by_three() {
    V weight[9];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) weight[t] = V::broadcast(task_.weight[t]);
    add_row_of_three<0>(weight);
  }

  // Every target row has source rows of its own.
  FASTCONV_INLINE void add_separate() {
    for (int64_t r = 0; r < task_.window_rows; ++r) {
      const T* row[kRows];
      bool all = true;
#pragma GCC unroll 8
      for (int o = 0; o < kRows; ++o) {
        row[o] = rows_[o * task_.window_rows + r];
        all &= row[o] != nullptr;
      }
      const T* weight = task_.weight + r * window_columns_;
      if (all) {
        for (int64_t s = 0; s < window_columns_; ++s) {
          const V factor = V::broadcast(weight[s]);
          const int64_t offset = task_.offset[s] + first_;
          each([&](int o, int q) {
            sums_[o][q] = sums_[o][q] + V::load(row[o] + offset + at(q)) * factor;
          });
        }
      } else {
#pragma GCC unroll 8
        for (int o = 0; o < kRows; ++o)
          if (row[o]) add_alone(o, row[o] + first_, weight);
      }
    }
  }

  FASTCONV_INLINE void store(S* target) const {
    S* to = target + first_ * task_.to_step;
    const int64_t pixels = smaller(task_.pixels - first_, int64_t{kVectors * V::kLanes});
    if constexpr (kSame<S, T>) {
      if (!task_.finish && task_.to_step == 1) return store_plain(to, pixels);
    }
    // Not register by register, for that would take too much code.
    alignas(64) T sums[kRows][kVectors * V::kLanes];
    each([&](int o, int q) { sums_[o][q].store(sums[o] + at(q)); });
    for (int64_t o = 0; o < kRows; ++o) {
      S* row = to + o * task_.to_row;
      if (task_.finish)
        task_.finish->store_pixels(row, task_.to_step, sums[o], pixels, task_.channel);
      else
        store_run(row, task_.to_step, sums[o], pixels, T{0});
    }
  }

 private:
  template <class Body>
  FASTCONV_INLINE static void each(const Body& body) {
#pragma GCC unroll 8
    for (int o = 0; o < kRows; ++o)
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q) body(o, q);
  }

  FASTCONV_INLINE int64_t at(int q) const { return q + 1 == kVectors ? last_ : q * V::kLanes; }

  template <int k>
  FASTCONV_INLINE void add_row_of_three(const V (&weight)[9]) {
    if constexpr (k < kRows + 2) {
      if (const T* row = rows_[k]) {
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s)
#pragma GCC unroll 4
          for (int q = 0; q < kVectors; ++q) {
            V source = V::load(row + first_ + task_.offset[s] + at(q));
            keep_in_register(source);
#pragma GCC unroll 8
            for (int o = 0; o < kRows; ++o)
              if (k - o >= 0 && k - o < 3)
                sums_[o][q] = sums_[o][q] + source * weight[(k - o) * 3 + s];
          }
      }
      add_row_of_three<k + 1>(weight);
    }
  }

  // Targets [kLow, kHigh]; `weight` is that of tap row k.
  template <int kLow, int kHigh>
  FASTCONV_INLINE void add_row(const T* row, const T* weight) {
#pragma GCC unroll 8
    for (int64_t s = 0; s < window_columns_; ++s) {
      V source[kVectors];
      const T* from = row + task_.offset[s];
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q) {
        source[q] = V::load(from + at(q));
        keep_in_register(source[q]);
      }
#pragma GCC unroll 8
      for (int o = kLow; o <= kHigh; ++o) {
        const V factor = V::broadcast(weight[s - o * window_columns_]);
#pragma GCC unroll 4
        for (int q = 0; q < kVectors; ++q) sums_[o][q] = sums_[o][q] + source[q] * factor;
      }
    }
  }

  // add_row of a range known at run time.
  template <int kLow>
  FASTCONV_INLINE void add_from(int64_t low, int64_t high, const T* row, const T* weight) {
    if constexpr (kLow + 1 < kRows)
      if (low > kLow) return add_from<kLow + 1>(low, high, row, weight);
    add_until<kLow, kRows - 1>(high, row, weight);
  }
  template <int kLow, int kHigh>
  FASTCONV_INLINE void add_until(int64_t high, const T* row, const T* weight) {
    if constexpr (kLow < kHigh)
      if (high < kHigh) return add_until<kLow, kHigh - 1>(high, row, weight);
    add_row<kLow, kHigh>(row, weight);
  }

  FASTCONV_INLINE void add_alone(int o, const T* row, const T* weight) {
    for (int64_t s = 0; s < window_columns_; ++s) {
      const V factor = V::broadcast(weight[s]);
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q)
        sums_[o][q] = sums_[o][q] + V::load(row + task_.offset[s] + at(q)) * factor;
    }
  }

  FASTCONV_INLINE void store_plain(T* to, int64_t pixels) const {
    if (pixels >= V::kLanes)
      each([&](int o, int q) { sums_[o][q].store(to + o * task_.to_row + at(q)); });
    else
      each([&](int o, int) { store_some(to + o * task_.to_row, sums_[o][0], pixels); });
  }

  const PixelSumsTask<S>& task_;
  const T* const* rows_;
  int64_t first_, last_;  // the first vector and, behind it, the last one
  int64_t window_columns_;
  V sums_[kRows][kVectors];
};

template <class S, int kRows, int kVectors, int kColumns>
__attribute__((noinline)) void pixel_sums_tile(const PixelSumsTask<S>& task,
                                               const Compute<S>* const* rows, S* to,
                                               int64_t first) {
  PixelSums<S, kRows, kVectors, kColumns> sums(task, rows, first);
  // Sums, weights and a source vector have to fit.
  if (kColumns == 3 && kVectorRegisters == 32 && task.shared && task.window_rows == 3)
    sums.add_three_by_three();
  else
    task.shared ? sums.add_shared() : sums.add_separate();
  sums.store(to);
}

// kRows target rows; nothing is computed in vain but the lanes of a short row's only vector.
template <int kRows, int kColumns, class S>
FASTCONV_INLINE void pixel_sums_rows(const PixelSumsTask<S>& task, const Compute<S>* const* rows,
                                     S* to) {
  const int64_t vectors = divide_up(task.pixels, int64_t{Vec<Compute<S>>::kLanes});
  int64_t first = 0;
  for (; first + kBlockVectors <= vectors; first += kBlockVectors)
    pixel_sums_tile<S, kRows, kBlockVectors, kColumns>(task, rows, to, first);
  if (kBlockVectors > 2 && first + 2 <= vectors) {
    pixel_sums_tile<S, kRows, 2, kColumns>(task, rows, to, first);
    first += 2;
  }
  if (first < vectors) pixel_sums_tile<S, kRows, 1, kColumns>(task, rows, to, first);
}

// All sums of a block of `count` target rows, 1 <= count <= kBlockRows.
template <int kColumns, class S>
void pixel_sums_block(const PixelSumsTask<S>& task, const Compute<S>* const* rows, S* to,
                      int64_t count) {
  static_assert(kBlockRows == 4, "the other counts are made of 2 and 1");
  if (count == kBlockRows) return pixel_sums_rows<kBlockRows, kColumns>(task, rows, to);
  if (count >= 2) {
    pixel_sums_rows<2, kColumns>(task, rows, to);
    rows += task.shared ? 2 : 2 * task.window_rows;
    to += 2 * task.to_row;
  }
  if (count % 2 == 1) pixel_sums_rows<1, kColumns>(task, rows, to);
}

template <class S>
FASTCONV_INLINE void pixel_sums(const PixelSumsTask<S>& task, const Compute<S>* const* rows, S* to,
                                int64_t count) {
  if constexpr (kSame<S, float>) {  // the windows of networks have code of their own
    if (task.window_columns == 3) return pixel_sums_block<3>(task, rows, to, count);
    if (task.window_columns == 5) return pixel_sums_block<5>(task, rows, to, count);
    if (task.window_columns == 7) return pixel_sums_block<7>(task, rows, to, count);
  }
  pixel_sums_block<0>(task, rows, to, count);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
