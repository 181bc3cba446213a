// The code of conv2d_depthwise_channel_sums.h: tiles of pixels, of every kind that a row is made of.
#pragma once
#include "conv2d_depthwise_channel_sums.h"

namespace fastconv::cpu::FASTCONV_ISA {

// kStep: 1, 2: of the pixels, in x, taps being neighbours; 0: any, and any dilation.
// kTaps: of a row; 0: any.
template <class E, int kPixels, int kStep, int kTaps>
class ChannelSums {
  using T = Compute<E>;
  using V = Vec<T>;

 public:
  // Pixels from j on, register `index`.
  FASTCONV_INLINE ChannelSums(const ChannelSumsTask<E, E>& task, int64_t j, int64_t index)
      : task_(task),
        index_(index),
        channel_(index * V::kLanes - (index + 1 == task.registers ? task.last_shift : 0)),
        x_(j * task.step) {
    const V bias = task.bias ? V::load(task.bias + index * V::kLanes) : V::zero();
    each([&](int q) { sums_[q] = bias; });
  }

  // kInside: so are all columns.
  template <bool kInside>
  FASTCONV_INLINE void add_rows() {
    const T* weight = task_.weight + index_ * task_.window_rows * task_.window_columns * V::kLanes;
    const int64_t weight_row = task_.window_columns * V::kLanes;
    const int64_t from = x_ * task_.pitch + channel_;
    for (int64_t r = 0; r < task_.window_rows; ++r, weight += weight_row)
      if (task_.rows[r]) add_row<kInside>(task_.rows[r] + from, weight);
  }

  FASTCONV_INLINE void store(int64_t j, int64_t count) const {
    E* to = task_.to + j * task_.to_step + channel_;
    const int64_t lanes = index_ + 1 == task_.registers ? task_.last_lanes : V::kLanes;
    if constexpr (kSame<E, T>) {
      if (!task_.finish) return store_plain(to, count, lanes);
    }
    // Not register by register, for that would take too much code.
    alignas(64) T sums[kPixels][V::kLanes];
    each([&](int q) { sums_[q].store(sums[q]); });
    for (int64_t q = 0; q < count; ++q, to += task_.to_step) {
      V sum = V::load(sums[q]);
      if (task_.finish) sum = task_.finish->channels(sum, task_.channel + channel_, lanes, to);
      if (lanes == V::kLanes)
        store_from_compute(to, sum);
      else
        store_some_from_compute(to, sum, lanes);
    }
  }

 private:
  template <class Body>
  FASTCONV_INLINE static void each(const Body& body) {
#pragma GCC unroll 8
    for (int q = 0; q < kPixels; ++q) body(q);
  }

  FASTCONV_INLINE void store_plain(T* to, int64_t count, int64_t lanes) const {
    const int64_t step = task_.to_step;
    if (count == kPixels && lanes == V::kLanes && task_.stream)
      each([&](int q) { store_around_cache(to + q * step, sums_[q]); });
    else if (count == kPixels && lanes == V::kLanes)
      each([&](int q) { sums_[q].store(to + q * step); });
    else
      each([&](int q) {
        if (q < count) store_some(to + q * step, sums_[q], lanes);
      });
  }

  template <bool kInside>
  FASTCONV_INLINE void add_row(const E* row, const T* weight) {
    if constexpr (kStep == 0) {
      add_taps_apart<kInside>(row, weight);
    } else if constexpr (kTaps > 0) {
      add_taps<kTaps, kInside>(row, 0, weight);
    } else {
      int64_t s = 0;
      for (; s + 4 <= task_.window_columns; s += 4)
        add_taps<4, kInside>(row, s, weight + s * V::kLanes);
      for (; s < task_.window_columns; ++s) add_taps<1, kInside>(row, s, weight + s * V::kLanes);
    }
  }

  // Taps [first, first + kCount).
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
    for (int64_t s = 0; s < task_.window_columns; ++s) {
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

  const ChannelSumsTask<E, E>& task_;
  int64_t index_, channel_, x_;
  V sums_[kPixels];
};

// `count` pixels from j on.
template <class E, int kPixels, int kStep, int kTaps>
__attribute__((noinline)) void channel_sums_tile(const ChannelSumsTask<E, E>& task, int64_t j,
                                                 int64_t count) {
  const int64_t x = j * task.step, reach = (task.window_columns - 1) * task.dilation + 1;
  const bool inside = x >= task.x_begin && x + (kPixels - 1) * task.step + reach <= task.x_end;
  for (int64_t index = 0; index < task.registers; ++index) {
    ChannelSums<E, kPixels, kStep, kTaps> sums(task, j, index);
    if (inside)
      sums.template add_rows<true>();
    else
      sums.template add_rows<false>();
    sums.store(j, count);
  }
}

// A row of pixels in tiles of almost equal length, of which there are few kinds.
template <int kStep, int kTaps, class E>
void channel_sums_row(const ChannelSumsTask<E, E>& task) {
  const int64_t tiles = divide_up(task.pixels, int64_t{kTilePixels});
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t j = task.pixels * tile / tiles;
    const int64_t count = task.pixels * (tile + 1) / tiles - j;
    if (count > 7)
      channel_sums_tile<E, kTilePixels, kStep, kTaps>(task, j, count);
    else if (count == 7)
      channel_sums_tile<E, smaller(kTilePixels, 7), kStep, kTaps>(task, j, count);
    else if (count > 4)
      channel_sums_tile<E, 6, kStep, kTaps>(task, j, count);
    else if (count > 2)
      channel_sums_tile<E, 4, kStep, kTaps>(task, j, count);
    else
      channel_sums_tile<E, 2, kStep, kTaps>(task, j, count);
  }
}

// The windows of networks have code of their own.
template <int kStep, class E>
void channel_sums_windows(const ChannelSumsTask<E, E>& task) {
  if (task.window_columns == 3) return channel_sums_row<kStep, 3>(task);
  if constexpr (kSame<E, float>) {
    if (task.window_columns == 5) return channel_sums_row<kStep, 5>(task);
    if (task.window_columns == 7) return channel_sums_row<kStep, 7>(task);
  }
  channel_sums_row<kStep, 0>(task);
}

template <class E>
void run_channel_sums(const ChannelSumsTask<E, E>& task) {
  if (task.dilation == 1 && task.step == 1)
    channel_sums_windows<1>(task);
  else if (task.dilation == 1 && task.step == 2)
    channel_sums_windows<2>(task);
  else
    channel_sums_row<0, 0>(task);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
