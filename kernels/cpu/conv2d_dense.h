// Dense convolution as an implicit matrix product, in the two arrangements of conv2d.cpp.
#pragma once
#include "conv2d_weights.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {  // of conv2d.cpp alone

// Tiles [k][m]: runs of pixels are contiguous in the target.
template <class S>
struct StorePixelLanes {
  using T = Compute<S>;
  const Target<S>& target;
  S* data;        // of the task's first channel
  const T* bias;  // likewise, or null
  int64_t m_begin;

  void operator()(int64_t k, int64_t rows, int64_t m, int64_t columns, const T* tile,
                  int64_t stride) const {
    const int64_t first = m_begin + m;
    for_each_run(target.grid, first, first + columns,
                 [&](int64_t n, int64_t i, int64_t j, int64_t count, int64_t offset) {
                   S* to = data + n * target.stride_n + i * target.stride_i + j * target.stride_j +
                           k * target.stride_k;
                   for (int64_t r = 0; r < rows; ++r)
                     store_run(to + r * target.stride_k, target.stride_j,
                               tile + r * stride + offset, count, bias ? bias[k + r] : T{0});
                 });
  }
};

// Tiles [m][k]: runs of channels are contiguous in the target.
template <class S>
struct StoreChannelLanes {
  using T = Compute<S>;
  const Target<S>& target;
  S* data;        // of the task's first channel
  const T* bias;  // likewise, or null
  int64_t m_begin;

  void operator()(int64_t m, int64_t rows, int64_t k, int64_t columns, const T* tile,
                  int64_t stride) const {
    const int64_t first = m_begin + m;
    for_each_run(target.grid, first, first + rows,
                 [&](int64_t n, int64_t i, int64_t j, int64_t count, int64_t offset) {
                   S* to = data + n * target.stride_n + i * target.stride_i + j * target.stride_j +
                           k * target.stride_k;
                   for (int64_t q = 0; q < count; ++q)
                     store_run(to + q * target.stride_j, target.stride_k,
                               tile + (offset + q) * stride, columns, bias ? bias + k : nullptr);
                 });
  }
};

// Blocks of pixels and channels such that every thread has work; never smaller than a tile is
// worth.
struct Blocking {
  int64_t pixels, channels, pixel_blocks, channel_blocks;

  Blocking(int64_t pixel_count, int64_t channel_count, int64_t groups, int64_t pixel_tile,
           int64_t channel_tile) {
    const int64_t wanted = 2 * num_threads();
    pixels = divide_up(smaller(kPixelBlock, pixel_count), pixel_tile) * pixel_tile;
    channels = divide_up(smaller(kChannelBlock, channel_count), channel_tile) * channel_tile;
    while (groups * divide_up(pixel_count, pixels) * divide_up(channel_count, channels) < wanted) {
      if (channels >= 2 * channel_tile && channels >= pixels)
        channels = divide_up(channels / 2, channel_tile) * channel_tile;
      else if (pixels >= 2 * pixel_tile)
        pixels = divide_up(pixels / 2, pixel_tile) * pixel_tile;
      else
        break;
    }
    pixel_blocks = divide_up(pixel_count, pixels);
    channel_blocks = divide_up(channel_count, channels);
  }
};

// Calls body(g, m_begin, m_end, k_begin, k_end) for every task, channel blocks of a pixel block
// next to each other.
template <class Body>
void for_each_task(const Blocking& blocks, int64_t pixel_count, int64_t channel_count,
                   int64_t groups, const Body& body) {
  const int64_t tasks = groups * blocks.pixel_blocks * blocks.channel_blocks;
  parallel_for(tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task % blocks.channel_blocks * blocks.channels;
      const int64_t m = task / blocks.channel_blocks % blocks.pixel_blocks * blocks.pixels;
      body(task / blocks.channel_blocks / blocks.pixel_blocks, m,
           smaller(m + blocks.pixels, pixel_count), k, smaller(k + blocks.channels, channel_count));
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
void run_pixel_lanes(const Product<S>& p, const Compute<S>* prepared) {
  using T = Compute<S>;
  const int64_t depth = p.source.depth(), pixel_count = p.source.grid.count();
  const WeightRows<S> weight(p, prepared);
  const Blocking blocks(pixel_count, p.K, p.G, kTileColumns<T>, kTileRows);
  for_each_task(blocks, pixel_count, p.K, p.G,
                [&](int64_t g, int64_t m, int64_t m_end, int64_t k, int64_t k_end) {
                  const PixelSource<S> source = source_of_group(p, g);
                  Scratch<T> unfolded(blocks.pixels * smaller(kDepthBlock<T>, depth));
                  PixelPanels<S> panels{source, m, m_end, unfolded.data()};
                  DirectRows<T> rows = weight.rows(g, k);
                  const int64_t channel = g * p.K + k;
                  const StorePixelLanes<S> store{p.target,
                                                 p.target.data + channel * p.target.stride_k,
                                                 p.bias ? p.bias + channel : nullptr, m};
                  multiply_block<T>(k_end - k, m_end - m, depth, rows, panels, store);
                });
}

template <class S>
void run_channel_lanes(const Product<S>& p, const Compute<S>* prepared) {
  using T = Compute<S>;
  const int64_t depth = p.source.depth(), pixel_count = p.source.grid.count();
  const int64_t panels_per_group = divide_up(p.K, int64_t{kTileColumns<T>});
  Scratch<T> packed(prepared ? 0 : weight_panels_size(p));
  if (!prepared) pack_weight_panels(p, packed.data());
  const T* const weight = prepared ? prepared : packed.data();
  const bool plain = kSame<S, T> && p.source.is_plain_matrix();

  const Blocking blocks(pixel_count, p.K, p.G, kTileRows, kTileColumns<T>);
  for_each_task(
      blocks, pixel_count, p.K, p.G,
      [&](int64_t g, int64_t m, int64_t m_end, int64_t k, int64_t k_end) {
        const PixelSource<S> source = source_of_group(p, g);
        const int64_t panel = g * panels_per_group + k / kTileColumns<T>;
        PackedPanels<T> panels{weight + panel * depth * kTileColumns<T>, depth};
        const int64_t channel = g * p.K + k;
        const StoreChannelLanes<S> store{p.target, p.target.data + channel * p.target.stride_k,
                                         p.bias ? p.bias + channel : nullptr, m};
        if constexpr (kSame<S, T>) {
          if (plain) {
            const S* first = source.row_of(source.taps[0], 0, 0) + m * source.pixel_stride();
            DirectRows<T> rows{first, source.pixel_stride(), 1};
            return multiply_block<T>(m_end - m, k_end - k, depth, rows, panels, store);
          }
        }
        Scratch<T> unfolded((m_end - m) * kDepthBlock<T>);
        PixelRows<S> rows{source, m, m_end, unfolded.data()};
        multiply_block<T>(m_end - m, k_end - k, depth, rows, panels, store);
      });
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
