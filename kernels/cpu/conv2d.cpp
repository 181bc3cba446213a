// conv2d, forward and the input's gradient, as one implicit matrix product:
//
//   target[n,k,i,j] = bias[k]
//                   + sum_{c,t} source[n, c, i * step_h + h(t), j * step_w + w(t)] * weight[k,c,t]
//
// Forward: source = input, target = output, a tap per window element.
// Input's gradient: source = grad_output, target = grad_input, c and k change places. The input
// rows a + i * stride_h of one phase a meet the same taps, those with (a + pad_h - r * dilation_h)
// divisible by stride_h; so each of the stride_h x stride_w phases is a dense product with step 1
// and its share of the taps, and no multiplication with zero is done.
//
// Two arrangements, by the layout of the target:
//   lanes are channels (NHWC)   a: pixels, packed per thread or read in place
//                               b: weight panels, packed once
//   lanes are pixels (NCHW)     a: weight rows, read in place where possible
//                               b: pixel panels, packed per thread
// One task = one block of pixels times one block of channels of one group. Two cases go ways of
// their own: depthwise convolution, which has no lanes to fill (conv2d_depthwise.h), and windows
// that move by one over contiguous rows with few channels (conv2d_shifted.h).
// Cost: 2 * N*K*P*Q * C/G*R*S flops.
#include "../conv2d.h"

#include "../parallel.h"
#include "conv2d_depthwise.h"
#include "conv2d_shifted.h"
#include "conv2d_weights.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

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

template <class S>
void run_pixel_lanes(const Product<S>& p) {
  using T = Compute<S>;
  const int64_t depth = p.source.depth(), pixel_count = p.source.grid.count();
  const WeightRows<S> weight(p);
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
void run_channel_lanes(const Product<S>& p) {
  using T = Compute<S>;
  const int64_t depth = p.source.depth(), pixel_count = p.source.grid.count();
  const int64_t panels_per_group = divide_up(p.K, int64_t{kTileColumns<T>});
  Scratch<T> packed_weight(p.G, panels_per_group, kTileColumns<T>, depth);
  pack_weight_panels(p, packed_weight.data());
  const bool plain = kSame<S, T> && p.source.is_plain_matrix();

  const Blocking blocks(pixel_count, p.K, p.G, kTileRows, kTileColumns<T>);
  for_each_task(
      blocks, pixel_count, p.K, p.G,
      [&](int64_t g, int64_t m, int64_t m_end, int64_t k, int64_t k_end) {
        const PixelSource<S> source = source_of_group(p, g);
        const int64_t panel = g * panels_per_group + k / kTileColumns<T>;
        PackedPanels<T> panels{packed_weight.data() + panel * depth * kTileColumns<T>, depth};
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

template <class S>
void run_product(Product<S>& p, Tap* taps, int64_t tap_count) {
  for (int64_t t = 0; t < tap_count; ++t) set_columns_inside(taps[t], p.source);
  p.source.taps = taps;
  p.source.tap_count = tap_count;
  // Rows that follow each other in memory become one.
  p.target.grid = p.source.grid;
  if (p.target.stride_i == p.target.grid.J * p.target.stride_j) {
    p.target.grid.J *= p.target.grid.I;
    p.target.grid.I = 1;
  }
  if (p.source.C == 1 && p.K == 1 && p.G > 1 && tap_count > 0)
    run_depthwise(p);
  else if (p.target.stride_k == 1 && (p.target.stride_j != 1 || p.target.grid.J == 1))
    run_channel_lanes(p);
  else if (shifting_pays(p))
    run_shifted(p);
  else
    run_pixel_lanes(p);
}

template <class S>
void forward(const Conv2dShape& s, const S* input, const S* weight, const S* bias, S* output) {
  const Window2d& window = s.window;
  Product<S> p;
  p.source = input_source(s, input);
  p.target = {output, s.output.s[0], s.output.s[1], s.output.s[2], s.output.s[3], {}};
  p.weight = weight;
  p.weight_g = s.K / s.G * s.weight.s[0];
  p.weight_k = s.weight.s[0];
  p.weight_c = s.weight.s[1];
  Scratch<Compute<S>> widened_bias(bias ? s.K : 0);
  if (bias) copy_run(widened_bias.data(), bias, s.bias_stride, s.K);
  p.bias = widened_bias.data();
  p.G = s.G;
  p.K = s.K / s.G;

  // A 1x1 window that moves by one over rows without gaps: the image is one long row.
  const bool one_row = window.R == 1 && window.S == 1 && window.stride_h == 1 &&
                       window.stride_w == 1 && window.pad_h == 0 && window.pad_w == 0 &&
                       s.P == s.H && s.Q == s.W && s.input.s[2] == s.W * s.input.s[3] &&
                       s.output.s[2] == s.Q * s.output.s[3];
  if (one_row) {
    p.source.W *= p.source.H, p.source.H = 1;
    p.source.grid.J *= p.source.grid.I, p.source.grid.I = 1;
  }

  Scratch<Tap> taps(window.R, window.S);
  set_window_taps(s, taps.data());
  run_product(p, taps.data(), window.R * window.S);
}

template <class S>
void input_grad(const Conv2dShape& s, const S* grad_output, const S* weight, S* grad_input) {
  const Window2d& window = s.window;
  Scratch<Tap> taps(window.R, window.S);
  for (int64_t a = 0; a < smaller(window.stride_h, s.H); ++a) {
    for (int64_t b = 0; b < smaller(window.stride_w, s.W); ++b) {
      int64_t count = 0;
      for (int64_t r = 0; r < window.R; ++r) {
        const int64_t h = a + window.pad_h - r * window.dilation_h;
        if (h % window.stride_h) continue;
        for (int64_t q = 0; q < window.S; ++q) {
          const int64_t w = b + window.pad_w - q * window.dilation_w;
          if (w % window.stride_w) continue;
          taps.data()[count++] = {h / window.stride_h, w / window.stride_w, 0, 0,
                                  r * s.weight.s[2] + q * s.weight.s[3]};
        }
      }
      Product<S> p;
      p.source = output_source(
          s, grad_output,
          {s.N, (s.H - a - 1) / window.stride_h + 1, (s.W - b - 1) / window.stride_w + 1});
      p.target = {grad_input + a * s.input.s[2] + b * s.input.s[3],
                  s.input.s[0],
                  s.input.s[1],
                  s.input.s[2] * window.stride_h,
                  s.input.s[3] * window.stride_w,
                  {}};
      p.weight = weight;
      p.weight_g = s.K / s.G * s.weight.s[0];
      p.weight_k = s.weight.s[1];
      p.weight_c = s.weight.s[0];
      p.bias = nullptr;
      p.G = s.G;
      p.K = s.C / s.G;
      run_product(p, taps.data(), count);
    }
  }
}

}  // namespace

void conv2d_forward(const Conv2dShape& shape, const void* input, const void* weight,
                    const void* bias, void* output) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    forward(shape, static_cast<const S*>(input), static_cast<const S*>(weight),
            static_cast<const S*>(bias), static_cast<S*>(output));
  });
}

void conv2d_input_grad(const Conv2dShape& shape, const void* grad_output, const void* weight,
                       void* grad_input) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    input_grad(shape, static_cast<const S*>(grad_output), static_cast<const S*>(weight),
               static_cast<S*>(grad_input));
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(conv2d_forward,
                  (const Conv2dShape& shape, const void* input, const void* weight,
                   const void* bias, void* output),
                  (shape, input, weight, bias, output))
FASTCONV_DISPATCH(conv2d_input_grad,
                  (const Conv2dShape& shape, const void* grad_output, const void* weight,
                   void* grad_input),
                  (shape, grad_output, weight, grad_input))
