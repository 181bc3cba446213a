// The sums of a depthwise convolution with lanes of channels: some neighbouring pixels of a target row
// in registers, register after register of channels.
//
//   sums[q][lane] = bias[lane] + sum_{r,s} rows[r][(q * step + s * dilation) * pitch + lane]
//                                          * weight[r][s][lane]
//
// A source vector that was loaded meets every pixel that it is part of. What lies outside of the
// source is left out, not multiplied. Every sum runs over r, then s, however pixels are grouped.
// Cost: one multiplication-addition per tap and vector.
#pragma once
#include "conv2d_depthwise_window.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Reads E, writes S; both compute in the same type.
template <class E, class S>
struct ChannelSumsTask {
  using T = Compute<S>;

  // The source: element x of row r, first channel. x counts from the first tap of pixel 0 on.
  const E* const* rows;  // [R]; null: outside
  int64_t R, S_;
  int64_t pitch;           // elements between two x
  int64_t step, dilation;  // in x
  int64_t x_begin, x_end;  // that lie inside

  const T* weight;  // [register][R][S][kLanes]
  const T* bias;    // [register][kLanes]; null: none

  FetchAhead next_source, next_target;

  // The target: pixel 0, first channel.
  S* to;
  int64_t to_step;            // between two pixels
  int64_t pixels;
  int64_t registers;          // of channels
  int64_t last_shift;         // channels that the last register has in common with the one before
  int64_t last_lanes;         // that are stored of it
  const Finish<S>* finish;    // null: nothing
  int64_t channel;            // the first one's number, for `finish`
  bool stream;                // the target is too large for the caches: whole lines, around them
};

// Pixels at most: their sums, a row of taps and a source vector fill the registers.
constexpr int kTilePixels = kVectorRegisters == 32 ? 8 : 6;
// Taps of a row that are held in registers at once.
constexpr int kTileTaps = 7;

// kStep: 1, 2: of the pixels, in x, taps being neighbours; 0: any, and any dilation.
// kTaps: of a row; 0: any.
template <class E, class S, int kPixels, int kStep, int kTaps>
class ChannelSums {
  using T = Compute<S>;
  using V = Vec<T>;

 public:
  // Pixels from j on, register `index`.
  FASTCONV_INLINE ChannelSums(const ChannelSumsTask<E, S>& task, int64_t j, int64_t index)
      : task_(task),
        index_(index),
        channel_(index * V::kLanes - (index + 1 == task.registers ? task.last_shift : 0)),
        x_(j * task.step) {
    const V bias = task.bias ? V::load(task.bias + index * V::kLanes) : V::zero();
#pragma GCC unroll 8
    for (int q = 0; q < kPixels; ++q) sums_[q] = bias;
  }

  // kInside: so are all columns.
  template <bool kInside>
  FASTCONV_INLINE void add_rows() {
    const T* weight = task_.weight + index_ * task_.R * task_.S_ * V::kLanes;
    const E* const* rows = task_.rows;
    const int64_t from = x_ * task_.pitch + channel_;
    for (int64_t r = 0; r < task_.R; ++r, weight += task_.S_ * V::kLanes) {
      if (!rows[r]) continue;
      const E* row = rows[r] + from;
      if constexpr (kStep == 0)
        add_taps_apart<kInside>(row, weight);
      else if constexpr (kTaps > 0)
        add_taps<kTaps, kInside>(row, 0, weight);
      else
        for (int64_t s = 0; s < task_.S_; s += kTileTaps)
          add_some_taps<kTileTaps, kInside>(row, s, weight + s * V::kLanes);
    }
  }

  FASTCONV_INLINE void store(int64_t j, int64_t count) const {
    S* to = task_.to + j * task_.to_step + channel_;
    const int64_t lanes = index_ + 1 == task_.registers ? task_.last_lanes : V::kLanes;
    if constexpr (kSame<S, T>) {
      if (!task_.finish) return store_plain(to, count, lanes);
    }
    // Not register by register, for that would take too much code.
    alignas(64) T sums[kPixels][V::kLanes];
#pragma GCC unroll 8
    for (int q = 0; q < kPixels; ++q) sums_[q].store(sums[q]);
    for (int64_t q = 0; q < count; ++q) {
      S* at = to + q * task_.to_step;
      V sum = V::load(sums[q]);
      if (task_.finish) sum = task_.finish->channels(sum, task_.channel + channel_, lanes, at);
      if (lanes == V::kLanes)
        store_from_compute(at, sum);
      else
        store_some_from_compute(at, sum, lanes);
    }
  }

 private:
  FASTCONV_INLINE void store_plain(T* to, int64_t count, int64_t lanes) const {
    const bool whole = count == kPixels && lanes == V::kLanes;
    if (whole && task_.stream) {
#pragma GCC unroll 8
      for (int q = 0; q < kPixels; ++q) store_around_cache(to + q * task_.to_step, sums_[q]);
    } else if (whole) {
#pragma GCC unroll 8
      for (int q = 0; q < kPixels; ++q) sums_[q].store(to + q * task_.to_step);
    } else {
#pragma GCC unroll 8
      for (int q = 0; q < kPixels; ++q)
        if (q < count) store_some(to + q * task_.to_step, sums_[q], lanes);
    }
  }

  // Taps [s, s + kCount) of a row, or those that there are.
  template <int kCount, bool kInside>
  FASTCONV_INLINE void add_some_taps(const E* row, int64_t s, const T* weight) {
    if constexpr (kCount > 1)
      if (task_.S_ - s < kCount) return add_some_taps<kCount - 1, kInside>(row, s, weight);
    add_taps<kCount, kInside>(row, s, weight);
  }

  template <int kCount, bool kInside>
  FASTCONV_INLINE void add_taps(const E* row, int64_t first, const T* weight) {
    V factor[kCount];
#pragma GCC unroll 8
    for (int s = 0; s < kCount; ++s) factor[s] = V::load(weight + s * V::kLanes);
    const int64_t begin = task_.x_begin - x_ - first, end = task_.x_end - x_ - first;
    const int64_t pitch = task_.pitch;
    row += first * pitch;
#pragma GCC unroll 32
    for (int x = 0; x < (kPixels - 1) * kStep + kCount; ++x, row += pitch) {
      if (!kInside && (x < begin || x >= end)) continue;
      V source = load_as_compute(row);
      keep_in_register(source);
#pragma GCC unroll 8
      for (int q = 0; q < kPixels; ++q)
        if (x - q * kStep >= 0 && x - q * kStep < kCount)
          sums_[q] = sums_[q] + source * factor[x - q * kStep];
    }
  }

  template <bool kInside>
  FASTCONV_INLINE void add_taps_apart(const E* row, const T* weight) {
    const int64_t apart = task_.step * task_.pitch;
    for (int64_t s = 0; s < task_.S_; ++s) {
      const V factor = V::load(weight + s * V::kLanes);
      const int64_t x = s * task_.dilation;
      const E* from = row + x * task_.pitch;
#pragma GCC unroll 8
      for (int q = 0; q < kPixels; ++q) {
        const int64_t at = x_ + x + q * task_.step;
        if (kInside || (at >= task_.x_begin && at < task_.x_end))
          sums_[q] = sums_[q] + load_as_compute(from + q * apart) * factor;
      }
    }
  }

  const ChannelSumsTask<E, S>& task_;
  int64_t index_, channel_, x_;
  V sums_[kPixels];
};

// `count` pixels from j on, and some lines of what comes next.
template <class E, class S, int kPixels, int kStep, int kTaps>
__attribute__((noinline)) void channel_sums_tile(ChannelSumsTask<E, S>& task, int64_t j,
                                                 int64_t count) {
  const int64_t x = j * task.step, reach = (task.S_ - 1) * task.dilation + 1;
  const bool inside = x >= task.x_begin && x + (kPixels - 1) * task.step + reach <= task.x_end;
  for (int64_t index = 0; index < task.registers; ++index) {
    task.next_source.fetch();
    task.next_target.fetch();
    ChannelSums<E, S, kPixels, kStep, kTaps> sums(task, j, index);
    if (inside)
      sums.template add_rows<true>();
    else
      sums.template add_rows<false>();
    sums.store(j, count);
  }
}

// A row of pixels in tiles of almost equal length, of which there are few kinds.
template <int kStep, int kTaps, class E, class S>
void channel_sums_row(ChannelSumsTask<E, S>& task) {
  const int64_t tiles = divide_up(task.pixels, int64_t{kTilePixels});
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t j = task.pixels * tile / tiles;
    const int64_t count = task.pixels * (tile + 1) / tiles - j;
    if (count > 7)
      channel_sums_tile<E, S, kTilePixels, kStep, kTaps>(task, j, count);
    else if (count == 7)
      channel_sums_tile<E, S, smaller(kTilePixels, 7), kStep, kTaps>(task, j, count);
    else if (count > 4)
      channel_sums_tile<E, S, 6, kStep, kTaps>(task, j, count);
    else if (count > 2)
      channel_sums_tile<E, S, 4, kStep, kTaps>(task, j, count);
    else
      channel_sums_tile<E, S, 2, kStep, kTaps>(task, j, count);
  }
}

// The windows of networks have code of their own, in float32.
template <int kStep, class E, class S>
void channel_sums_row(ChannelSumsTask<E, S>& task) {
  if constexpr (kSame<E, float> && kSame<S, float>) {
    if (task.S_ == 3) return channel_sums_row<kStep, 3>(task);
    if (task.S_ == 5) return channel_sums_row<kStep, 5>(task);
    if (task.S_ == 7) return channel_sums_row<kStep, 7>(task);
  }
  channel_sums_row<kStep, 0>(task);
}

template <class E, class S>
void channel_sums(ChannelSumsTask<E, S>& task) {
  if (task.dilation == 1 && task.step == 1)
    channel_sums_row<1>(task);
  else if (task.dilation == 1 && task.step == 2)
    channel_sums_row<2>(task);
  else
    channel_sums_row<0, 0>(task);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
