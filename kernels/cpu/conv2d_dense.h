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

// A product whose lanes are channels, block by block.
template <class S>
struct ChannelLanes {
  using T = Packed<S>;
  const Product<S>* product;
  const T* weight;  // panels
  int64_t depth, panels_per_group;
  bool plain;  // rows are read in place

  ChannelLanes(const Product<S>& p, const T* panels)
      : product(&p),
        weight(panels),
        depth(p.source.template elements<T>()),
        panels_per_group(divide_up(p.K, int64_t{kTileColumns<T>})) {
    // Rows that lie a multiple of 4 KiB apart share their sets of L1: a copy does not.
    const int64_t stride = p.source.pixel_stride();
    plain = kIsPacked<S> && p.source.is_plain_matrix() && p.source.C % kNumbers<T> == 0 &&
            stride % kNumbers<T> == 0 && stride * int64_t{sizeof(S)} % 4096 != 0;
  }

  // Pixels [m, m_end), channels [k, k_end) of group g.
  void run(int64_t g, int64_t m, int64_t m_end, int64_t k, int64_t k_end) const {
    const Product<S>& p = *product;
    const PixelSource<S> source = source_of_group(p, g);
    const int64_t panel = g * panels_per_group + k / kTileColumns<T>;
    PackedPanels<T> panels{weight + panel * depth * kTileColumns<T>, depth};
    const StoreChannelLanes<S> store{p, g * p.K + k, m};
    if (plain) {
      const S* first = source.row_of(source.taps[0], 0, 0) + m * source.pixel_stride();
      DirectRows<T> rows{reinterpret_cast<const T*>(first), source.pixel_stride() / kNumbers<T>};
      return multiply_block<T>(m_end - m, k_end - k, depth, rows, panels, store);
    }
    Scratch<T> unfolded((m_end - m) * kDepthBlock<T>);
    PixelRows<S> rows{source, m, m_end, unfolded.data()};
    multiply_block<T>(m_end - m, k_end - k, depth, rows, panels, store);
  }
};

template <class S>
void run_channel_lanes(const Product<S>& p, const Packed<S>* prepared) {
  using T = Packed<S>;
  if (padding_pays(p)) return run_padded<S, StoreChannelLanes<S>>(p, prepared);
  Scratch<T> packed(prepared ? 0 : panels_size(p, p.source.template elements<T>()));
  if (!prepared) pack_weight_panels(p, packed.data());
  const ChannelLanes<S> lanes(p, prepared ? prepared : packed.data());
  const Blocking blocks(p.source.grid.count(), p.K, p.G, 1, kTileColumns<T>);
  for_each_task(blocks, p.G, [&](int64_t g, int64_t m, int64_t m_end, int64_t k, int64_t k_end) {
    lanes.run(g, m, m_end, k, k_end);
  });
}

// The same of the phases of an input's gradient: a block of one phase follows that of another, which
// reads nearly the same pixels.
template <class S>
void run_channel_phases(const Product<S>* phases, int64_t count) {
  using T = Packed<S>;
  int64_t size = 0, pixels = 0;
  for (int64_t i = 0; i < count; ++i) {
    size += panels_size(phases[i], phases[i].source.template elements<T>());
    pixels = larger(pixels, phases[i].source.grid.count());
  }
  Scratch<T> packed(size);
  Scratch<ChannelLanes<S>> lanes(count);
  T* weight = packed.data();
  for (int64_t i = 0; i < count; ++i) {
    const Product<S>& p = phases[i];
    pack_weight_panels(p, weight);
    lanes.data()[i] = ChannelLanes<S>(p, weight);
    weight += panels_size(p, p.source.template elements<T>());
  }
  const Blocking blocks(pixels, phases[0].K, phases[0].G, 1, kTileColumns<T>);
  for_each_task(blocks, phases[0].G,
                [&](int64_t g, int64_t m, int64_t m_end, int64_t k, int64_t k_end) {
                  for (int64_t i = 0; i < count; ++i) {
                    // The share of a phase that has fewer pixels.
                    const int64_t own = phases[i].source.grid.count();
                    lanes.data()[i].run(g, m * own / pixels, m_end * own / pixels, k, k_end);
                  }
                });
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
