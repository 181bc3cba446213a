// Dense convolution as an implicit matrix product, in the two arrangements of conv2d.cpp.
#pragma once
#include "conv2d_few_channels.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {  // of conv2d.cpp alone

// Tiles [k][m]: runs of pixels are contiguous in the target.
template <class S>
struct StorePixelLanes {
  using T = Compute<S>;
  const Product<S>& product;
  int64_t channel, m_begin;  // of the task's first tile
  const Target<S>& target = product.target;
  S* data = target.data + channel * target.stride_k;
  const T* bias = product.bias ? product.bias + channel : nullptr;

  // In place where the pixels are one run.
  EndOf<S> end(int64_t k, int64_t, int64_t m, int64_t columns) const {
    EndOf<S> end{nullptr, target.stride_k, columns, bias ? bias + k : nullptr};
    if (!product.finish && target.stride_j == 1)
      if (S* const to = target.in_a_row(data, m_begin + m, columns))
        end_in(end, to + k * target.stride_k);
    return end;
  }

  void operator()(int64_t k, int64_t rows, int64_t m, int64_t columns, const T* tile,
                  int64_t stride) const {
    const int64_t first = m_begin + m;
    for_each_run(target.grid, first, first + columns,
                 [&](int64_t n, int64_t i, int64_t j, int64_t count, int64_t offset) {
                   S* to = data + n * target.stride_n + i * target.stride_i + j * target.stride_j +
                           k * target.stride_k;
                   for (int64_t r = 0; r < rows; ++r)
                     product.store_pixels(to + r * target.stride_k, tile + r * stride + offset,
                                          count, channel + k + r);
                 });
  }
};

// Tiles [m][k]: runs of channels are contiguous in the target.
template <class S>
struct StoreChannelLanes {
  using T = Compute<S>;
  const Product<S>& product;
  int64_t channel, m_begin;  // of the task's first tile
  const Target<S>& target = product.target;
  S* data = target.data + channel * target.stride_k;
  const T* bias = product.bias ? product.bias + channel : nullptr;

  // In place where the pixels lie in one row.
  EndOf<S> end(int64_t m, int64_t rows, int64_t k, int64_t columns) const {
    EndOf<S> end{nullptr, target.stride_j, columns, nullptr, bias ? bias + k : nullptr};
    if (!product.finish && target.stride_k == 1)
      if (S* const to = target.in_a_row(data, m_begin + m, rows)) end_in(end, to + k);
    return end;
  }

  void operator()(int64_t m, int64_t rows, int64_t k, int64_t columns, const T* tile,
                  int64_t stride) const {
    const int64_t first = m_begin + m;
    for_each_run(target.grid, first, first + rows,
                 [&](int64_t n, int64_t i, int64_t j, int64_t count, int64_t offset) {
                   S* to = data + n * target.stride_n + i * target.stride_i + j * target.stride_j +
                           k * target.stride_k;
                   for (int64_t q = 0; q < count; ++q)
                     product.store_channels(to + q * target.stride_j, tile + (offset + q) * stride,
                                            columns, channel + k);
                 });
  }
};

// One axis of the target, cut into blocks of whole units, as even as can be.
struct Cuts {
  int64_t count, unit, blocks;

  FASTCONV_INLINE int64_t units() const { return divide_up(count, unit); }
  FASTCONV_INLINE int64_t begin(int64_t block) const {
    return smaller(part_begin(units(), blocks, block) * unit, count);
  }
  FASTCONV_INLINE int64_t longest() const { return divide_up(units(), blocks) * unit; }
  // The time of a thread that has more than its share, against an even one.
  double unevenness(int64_t cuts) const {
    return static_cast<double>(divide_up(units(), cuts) * cuts) / static_cast<double>(units());
  }
};

// Blocks of pixels and channels, near kPixelBlock and kChannelBlock, and as many as threads can share
// evenly. Where few blocks are left, the axis with the larger operand is cut further: the other one
// is read by every thread.
struct Blocking {
  Cuts pixels, channels;

  Blocking(int64_t pixel_count, int64_t channel_count, int64_t groups, int64_t pixel_unit,
           int64_t channel_unit)
      : pixels{pixel_count, pixel_unit, nearest(pixel_count, kPixelBlock)},
        channels{channel_count, channel_unit, nearest(channel_count, kChannelBlock)} {
    const int64_t threads = num_threads(), tasks = groups * pixels.blocks * channels.blocks;
    if (tasks % threads == 0 || tasks >= 16 * threads) return;
    const int64_t pixel_cuts = divide_up(pixels.blocks, threads) * threads;
    const int64_t channel_cuts = divide_up(channels.blocks, threads) * threads;
    const double by_pixels = pixels.unevenness(pixel_cuts);
    const double by_channels = channels.unevenness(channel_cuts);
    const bool prefer_channels = channel_count > 2 * pixel_count;
    if (by_channels < by_pixels || (prefer_channels && by_channels < 1.1 * by_pixels))
      channels.blocks = smaller(channel_cuts, channels.units());
    else
      pixels.blocks = smaller(pixel_cuts, pixels.units());
  }

  static int64_t nearest(int64_t count, int64_t block) {
    return larger((count + block / 2) / block, int64_t{1});
  }
};

// Calls body(g, m_begin, m_end, k_begin, k_end) for every task, channel blocks of a pixel block
// next to each other.
template <class Body>
void for_each_task(const Blocking& blocks, int64_t groups, const Body& body) {
  const Cuts &pixels = blocks.pixels, &channels = blocks.channels;
  parallel_for(groups * pixels.blocks * channels.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task % channels.blocks, rest = task / channels.blocks;
      const int64_t m = rest % pixels.blocks;
      body(rest / pixels.blocks, pixels.begin(m), pixels.begin(m + 1), channels.begin(k),
           channels.begin(k + 1));
    }
  });
}

template <class S>
FASTCONV_INLINE PixelSource<S> source_of_group(const Product<S>& p, int64_t g) {
  PixelSource<S> source = p.source;
  source.data += g * p.source.C * p.source.stride_c;
  return source;
}

// `prepared`: the weight as pack_weight_rows or pack_weight_panels gives it, or null.
template <class S>
void run_pixel_lanes(const Product<S>& p, const Packed<S>* prepared) {
  using T = Packed<S>;
  const int64_t depth = p.source.template elements<T>(), pixel_count = p.source.grid.count();
  const WeightRows<S> weight(p, prepared);
  const Blocking blocks(pixel_count, p.K, p.G, kTileColumns<T>, 1);
  for_each_task(blocks, p.G, [&](int64_t g, int64_t m, int64_t m_end, int64_t k, int64_t k_end) {
    const PixelSource<S> source = source_of_group(p, g);
    Scratch<T> unfolded(blocks.pixels.longest() * smaller(kDepthBlock<T>, depth));
    PixelPanels<S> panels{source, m, m_end, unfolded.data()};
    StagedRows<T> rows = weight.rows(g, k);
    const StorePixelLanes<S> store{p, g * p.K + k, m};
    multiply_block<T>(k_end - k, m_end - m, depth, rows, panels, store);
  });
}

template <class S>
void run_channel_lanes(const Product<S>& p, const Packed<S>* prepared) {
  using T = Packed<S>;
  const int64_t depth = p.source.template elements<T>(), pixel_count = p.source.grid.count();
  const int64_t panels_per_group = divide_up(p.K, int64_t{kTileColumns<T>});
  if (padding_pays(p)) return run_padded<S, StoreChannelLanes<S>>(p, prepared);
  Scratch<T> packed(prepared ? 0 : panels_size(p, depth));
  if (!prepared) pack_weight_panels(p, packed.data());
  const T* const weight = prepared ? prepared : packed.data();

  // Rows that lie a multiple of 4 KiB apart share their sets of L1: a copy does not.
  const int64_t pixel_stride = p.source.pixel_stride();
  const bool plain = kIsPacked<S> && p.source.is_plain_matrix() && p.source.C % kNumbers<T> == 0 &&
                     pixel_stride % kNumbers<T> == 0 &&
                     pixel_stride * int64_t{sizeof(S)} % 4096 != 0;

  const Blocking blocks(pixel_count, p.K, p.G, 1, kTileColumns<T>);
  for_each_task(blocks, p.G, [&](int64_t g, int64_t m, int64_t m_end, int64_t k, int64_t k_end) {
    const PixelSource<S> source = source_of_group(p, g);
    const int64_t panel = g * panels_per_group + k / kTileColumns<T>;
    PackedPanels<T> panels{weight + panel * depth * kTileColumns<T>, depth};
    const StoreChannelLanes<S> store{p, g * p.K + k, m};
    if (plain) {
      const S* first = source.row_of(source.taps[0], 0, 0) + m * pixel_stride;
      DirectRows<T> rows{reinterpret_cast<const T*>(first), pixel_stride / kNumbers<T>};
      return multiply_block<T>(m_end - m, k_end - k, depth, rows, panels, store);
    }
    Scratch<T> unfolded((m_end - m) * kDepthBlock<T>);
    PixelRows<S> rows{source, m, m_end, unfolded.data()};
    multiply_block<T>(m_end - m, k_end - k, depth, rows, panels, store);
  });
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
