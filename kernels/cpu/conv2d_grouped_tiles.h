// The tiles of grouped convolution whose lanes are channels (conv2d_grouped.h): some neighbouring pixels
// of a target row, one register apart in a ring of source rows.
#pragma once
#include "conv2d_grouped_ring.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {  // of conv2d_grouped_channels.cpp alone

// What the tiles of a row of pixels have in common.
template <class S>
struct RowTask {
  using T = Compute<S>;
  const T* const* from;    // of the taps inside: where they read the first pixel
  const int64_t* numbers;  // which taps these are
  int64_t taps, all_taps;
  const T* weight;  // of the block
  S* to;
  int64_t to_stride, channels;  // of the target, that are stored
  const T* bias;                // of the first channel, or null
  const Finish<S>* finish;      // what else becomes of a sum, or null
  int64_t channel;              // number of the first channel
  T* sums;                      // [pixel][sums_stride], instead of the target; or null
  int64_t sums_stride;
  const LaneIndex<T>* permutations;  // rotated: [pass][kRotations][kLanes]
  int64_t passes;
  int64_t C, chunk;  // broadcast: source channels, the distance between two chunks of them
};

// The sums of channels k, k + 1, ... of `kPixels` pixels become results.
template <int kPixels, class S, class Sums>
FASTCONV_INLINE void store_pixels(const RowTask<S>& task, int64_t pixel, int64_t k,
                                  const Sums& sum) {
  using V = Vec<Compute<S>>;
  if (task.sums) {
    Compute<S>* to = task.sums + pixel * task.sums_stride + k;
#pragma GCC unroll 16
    for (int q = 0; q < kPixels; ++q, to += task.sums_stride) sum(q).store(to);
    return;
  }
  const int64_t channels = smaller(task.channels - k, int64_t{V::kLanes});
  const V bias = task.bias ? load_some(task.bias + k, channels) : V::zero();
  S* to = task.to + pixel * task.to_stride + k;
#pragma GCC unroll 16
  for (int q = 0; q < kPixels; ++q, to += task.to_stride)
    if (task.finish)
      store_some_from_compute(to, task.finish->channels(sum(q), task.channel + k, channels, to),
                              channels);
    else if (channels == V::kLanes)
      store_from_compute(to, sum(q) + bias);
    else
      store_some_from_compute(to, sum(q) + bias, channels);
}

template <class S, int kPixels>
void rotated_tile(const RowTask<S>& task, int64_t pixel) {
  using T = Compute<S>;
  using V = Vec<T>;
  using Index = Vec<LaneIndex<T>>;
  V total[kPixels];
#pragma GCC unroll 8
  for (int q = 0; q < kPixels; ++q) total[q] = V::zero();
  for (int64_t pass = 0; pass < task.passes; ++pass) {
    V sums[kPixels][kRotations];
#pragma GCC unroll 8
    for (int q = 0; q < kPixels; ++q)
#pragma GCC unroll 4
      for (int d = 0; d < kRotations; ++d) sums[q][d] = V::zero();
    for (int64_t t = 0; t < task.taps; ++t) {
      const T* x = task.from[t] + pixel * V::kLanes;
      const T* w = task.weight + (pass * task.all_taps + task.numbers[t]) * kRotations * V::kLanes;
      V factor[kRotations];
#pragma GCC unroll 4
      for (int d = 0; d < kRotations; ++d) factor[d] = V::load(w + d * V::kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kPixels; ++q) {
        const V v = V::load(x + q * V::kLanes);
#pragma GCC unroll 4
        for (int d = 0; d < kRotations; ++d) sums[q][d] = sums[q][d] + v * factor[d];
      }
    }
#pragma GCC unroll 4
    for (int d = 0; d < kRotations; ++d) {
      const Index index = Index::load(task.permutations + (pass * kRotations + d) * V::kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kPixels; ++q) total[q] = total[q] + permute(sums[q][d], index);
    }
  }
  store_pixels<kPixels>(task, pixel, 0, [&](int q) { return total[q]; });
}

template <class S, int kPixels, int kVectors>
void broadcast_tile(const RowTask<S>& task, int64_t pixel, int64_t k) {
  using T = Compute<S>;
  using V = Vec<T>;
  V sums[kPixels][kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j)
#pragma GCC unroll 16
    for (int q = 0; q < kPixels; ++q) sums[q][j] = V::zero();
  const T* panel = task.weight + k * task.all_taps * task.C;
  for (int64_t t = 0; t < task.taps; ++t) {
    const T* w = panel + task.numbers[t] * task.C * kVectors * V::kLanes;
    for (int64_t c = 0; c < task.C; c += V::kLanes) {
      const T* x = task.from[t] + c / V::kLanes * task.chunk + pixel * V::kLanes;
      const T* const end = x + smaller(task.C - c, int64_t{V::kLanes});
      for (; x < end; ++x, w += kVectors * V::kLanes) {
        V columns[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) columns[j] = V::load(w + j * V::kLanes);
#pragma GCC unroll 16
        for (int q = 0; q < kPixels; ++q) {
          const V row = V::broadcast(x[q * V::kLanes]);
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) sums[q][j] = sums[q][j] + row * columns[j];
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j)
    store_pixels<kPixels>(task, pixel, k + j * V::kLanes, [&](int q) { return sums[q][j]; });
}

constexpr int kRotatedPixels = kVectorRegisters == 32 ? 6 : 2;
constexpr int kBroadcastPixels = kVectorRegisters == 32 ? 14 : 6;

template <class S>
void rotated_row(const RowTask<S>& task, int64_t pixels) {
  for_each_tile<kRotatedPixels>(pixels, [&](int64_t count, int64_t first) {
    with_constant<kRotatedPixels>(
        count, [&](auto constant) { rotated_tile<S, decltype(constant)::value>(task, first); });
  });
}

template <class S>
void broadcast_row(const RowTask<S>& task, int64_t pixels) {
  constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
  for (int64_t k = 0; k < task.channels; k += 2 * kLanes)
    for_each_tile<kBroadcastPixels>(pixels, [&](int64_t count, int64_t first) {
      with_constant<kBroadcastPixels>(count, [&](auto constant) {
        constexpr int kPixels = decltype(constant)::value;
        if (task.channels - k > kLanes)
          broadcast_tile<S, kPixels, 2>(task, first, k);
        else
          broadcast_tile<S, kPixels, 1>(task, first, k);
      });
    });
}

// Pixels whose channels lie in lanes become rows of a target plane: to[k * stride_k + pixel].
template <class S>
void store_planes(const RowTask<S>& task, int64_t pixels, S* to, int64_t stride_k) {
  using V = Vec<Compute<S>>;
  for (int64_t k = 0; k < task.channels; k += V::kLanes)
    for (int64_t m = 0; m < pixels; m += V::kLanes) {
      const int64_t count = smaller(pixels - m, int64_t{V::kLanes});
      V block[V::kLanes];
#pragma GCC unroll 16
      for (int q = 0; q < V::kLanes; ++q)
        block[q] = V::load(task.sums + (m + (q < count ? q : 0)) * task.sums_stride + k);
      transpose(block);
      alignas(64) Compute<S> rows[V::kLanes][V::kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < V::kLanes; ++r) block[r].store(rows[r]);
      for (int64_t r = 0; r < smaller(task.channels - k, int64_t{V::kLanes}); ++r) {
        const V row = V::load(rows[r]);
        S* at = to + (k + r) * stride_k + m;
        const V result = task.finish ? task.finish->pixels(row, task.channel + k + r, count, at)
                                     : row + V::broadcast(task.bias ? task.bias[k + r] : 0);
        if (count == V::kLanes)
          store_from_compute(at, result);
        else
          store_some_from_compute(at, result, count);
      }
    }
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
