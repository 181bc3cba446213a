// The side of convolution's matrix product that slides: for a window position and a tap, which
// element is read.
//
//   pixel m = (n * I + i) * J + j      a position of the window, on a grid of N x I x J
//   tap t                              reads row i * step_h + tap.h, column j * step_w + tap.w
//   unfolded[m][c, t] = source[n, c, row, column], or 0 outside
//
// The forward pass slides over the input (step = stride), the input's gradient over grad_output
// (step = 1, one grid per phase of the stride), the weight's gradient over the input. The unfolded
// matrix exists only block by block, in two forms:
//   pack_along_pixels    [x][m], x = c * taps + t : runs of pixels are contiguous in an NCHW source
//   pack_along_channels  [m][x], x = t * C + c : runs of channels are contiguous in an NHWC source
// each into rows of any length, so that panels of kTileColumns and plain rows are the same thing.
// An element x of a type T that holds two numbers is two channels: c counts pairs of them, the last
// one filled up with zero.
#pragma once
#include "../conv2d.h"
#include "epilogue.h"
#include "gemm.h"

namespace fastconv::cpu::FASTCONV_ISA {

struct PixelGrid {
  int64_t N, I, J;
  FASTCONV_INLINE int64_t count() const { return N * I * J; }
};

// Calls visit(n, i, j, count, offset) for each run of pixels of one grid row within [begin, end);
// offset is the distance of the run from `begin`.
template <class Visit>
FASTCONV_INLINE void for_each_run(const PixelGrid& grid, int64_t begin, int64_t end,
                                  const Visit& visit) {
  int64_t j = begin % grid.J, i = begin / grid.J % grid.I, n = begin / grid.J / grid.I;
  for (int64_t m = begin; m < end;) {
    const int64_t count = smaller(grid.J - j, end - m);
    visit(n, i, j, count, m - begin);
    m += count;
    j = 0;
    if (++i == grid.I) i = 0, ++n;
  }
}

struct Tap {
  int64_t h, w;            // source row and column of pixel (0, 0); may lie outside
  int64_t j_begin, j_end;  // the pixels of a row whose column lies inside; j_begin <= j_end
  int64_t weight;          // offset of the tap in the weight, in elements
};

template <class S>
struct PixelSource {
  const S* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int64_t C, H, W;
  int64_t step_h, step_w;
  PixelGrid grid;
  const Tap* taps;
  int64_t tap_count;

  FASTCONV_INLINE int64_t depth() const { return C * tap_count; }
  // The same in elements of T.
  template <class T>
  FASTCONV_INLINE int64_t channels() const {
    return divide_up(C, kNumbers<T>);
  }
  template <class T>
  FASTCONV_INLINE int64_t elements() const {
    return channels<T>() * tap_count;
  }

  // Every tap of every pixel lies inside and pixels are one arithmetic progression: the source
  // already is [m][c].
  bool is_plain_matrix() const {
    if (tap_count != 1 || stride_c != 1 || grid.count() == 0) return false;
    const Tap& tap = taps[0];
    return tap.j_begin == 0 && tap.j_end == grid.J && tap.h >= 0 &&
           tap.h + (grid.I - 1) * step_h < H &&
           (grid.I == 1 || stride_h * step_h == stride_w * step_w * grid.J) &&
           (grid.N == 1 || stride_n == stride_w * step_w * grid.J * grid.I);
  }
  FASTCONV_INLINE int64_t pixel_stride() const { return stride_w * step_w; }

  FASTCONV_INLINE const S* row_of(const Tap& tap, int64_t n, int64_t i) const {
    return data + n * stride_n + (i * step_h + tap.h) * stride_h + tap.w * stride_w;
  }
  FASTCONV_INLINE bool row_inside(const Tap& tap, int64_t i) const {
    const int64_t h = i * step_h + tap.h;
    return h >= 0 && h < H;
  }

  // target[(x - x_begin) * x_stride + (m - m_begin)], x = c * tap_count + t.
  // What is inside depends on the run and the tap, not on the channel: the innermost loop is over
  // channels, and a run that fits a register moves in one load and one store.
  template <class T>
  void pack_along_pixels(int64_t m_begin, int64_t m_end, int64_t x_begin, int64_t x_end, T* target,
                         int64_t x_stride) const {
    const int64_t step = pixel_stride();
    for_each_run(grid, m_begin, m_end,
                 [&](int64_t n, int64_t i, int64_t j, int64_t count, int64_t offset) {
                   for (int64_t t = 0; t < tap_count; ++t) {
                     const int64_t c = divide_up(larger(x_begin - t, int64_t{0}), tap_count);
                     const int64_t c_end = divide_up(larger(x_end - t, int64_t{0}), tap_count);
                     if (c >= c_end) continue;
                     const Tap& tap = taps[t];
                     const bool inside = row_inside(tap, i);
                     const int64_t from = inside ? clamp(tap.j_begin, j, j + count) : j;
                     const int64_t until = inside ? clamp(tap.j_end, from, j + count) : j;
                     const S* row = row_of(tap, n, inside ? i : 0) + from * step;
                     T* to = target + (c * tap_count + t - x_begin) * x_stride + offset;
                     const auto pack = [&](auto source, int64_t first, int64_t channels) {
                       pack_run(to + first * tap_count * x_stride, tap_count * x_stride, source,
                                kNumbers<T> * stride_c, channels, count, from - j, until - j);
                     };
                     for_elements<T, true>(row, stride_c, C, c, c_end, pack);
                   }
                 });
  }

  // target[(m - m_begin) * m_stride + (x - x_begin)], x = t * C + c.
  template <class T>
  void pack_along_channels(int64_t m_begin, int64_t m_end, int64_t x_begin, int64_t x_end,
                           T* target, int64_t m_stride) const {
    const int64_t C_T = channels<T>();
    for_each_run(grid, m_begin, m_end,
                 [&](int64_t n, int64_t i, int64_t j, int64_t count, int64_t offset) {
                   int64_t t = x_begin / C_T, c = x_begin % C_T;
                   for (int64_t x = x_begin; x < x_end;) {
                     const int64_t joined = c == 0 ? taps_in_a_run<T>(t, x_end - x) : 1;
                     if (joined > 1 && row_inside(taps[t], i)) {
                       pack_joined_taps(n, i, j, count, t, joined,
                                        target + offset * m_stride + (x - x_begin), m_stride);
                       x += joined * C_T;
                       t += joined;
                       continue;
                     }
                     const int64_t channels = smaller(C_T - c, x_end - x);
                     const Tap& tap = taps[t];
                     T* to = target + offset * m_stride + (x - x_begin);
                     const bool inside = row_inside(tap, i);
                     const int64_t from = inside ? clamp(tap.j_begin, j, j + count) : j;
                     const int64_t until = inside ? clamp(tap.j_end, from, j + count) : j;
                     for (int64_t q = 0; q < from - j; ++q) clear_run(to + q * m_stride, channels);
                     const auto copy = [&](auto source, int64_t first, int64_t some) {
                       copy_grid(to + (from - j) * m_stride + first, m_stride, source,
                                 pixel_stride(), kNumbers<T> * stride_c, until - from, some);
                     };
                     if (until > from)
                       for_elements<T, false>(row_of(tap, n, i) + from * pixel_stride(), stride_c,
                                              C, c, c + channels, copy);
                     for (int64_t q = until - j; q < count; ++q)
                       clear_run(to + q * m_stride, channels);
                     x += channels;
                     c = 0;
                     ++t;
                   }
                 });
  }

 private:
  // How many taps from t on, of at most x elements, are one run of memory where all lie inside: those
  // of a window's row, in a source of few channels without gaps between its pixels.
  template <class T>
  FASTCONV_INLINE int64_t taps_in_a_run(int64_t t, int64_t x) const {
    constexpr int64_t kFewChannels = 16;
    if (stride_c != 1 || stride_w != C || C > kFewChannels || C % kNumbers<T>) return 1;
    int64_t count = 1;
    while (t + count < tap_count && (count + 1) * channels<T>() <= x &&
           taps[t + count].h == taps[t].h && taps[t + count].w == taps[t].w + count)
      ++count;
    return count;
  }

  // Those taps of `count` pixels of a row that lies inside.
  template <class T>
  void pack_joined_taps(int64_t n, int64_t i, int64_t j, int64_t count, int64_t t, int64_t joined,
                        T* to, int64_t m_stride) const {
    const int64_t C_T = channels<T>();
    const S* row = row_of(taps[t], n, i);
    for (int64_t q = 0; q < count; ++q, to += m_stride) {
      const int64_t w = (j + q) * step_w + taps[t].w;  // of the first tap
      const int64_t begin = clamp(-w, 0, joined), end = clamp(W - w, begin, joined);
      if (begin > 0) clear_run(to, begin * C_T);
      copy_run(to + begin * C_T, elements_of<T>(row + (j + q) * pixel_stride() + begin * C),
               kNumbers<T>, (end - begin) * C_T);
      if (end < joined) clear_run(to + end * C_T, (joined - end) * C_T);
    }
  }

  // For each of `channels` channels: `count` pixels, of which [begin, end) are read from `from` on
  // and the others are zero.
  template <class T, class Source>
  FASTCONV_INLINE void pack_run(T* to, int64_t to_stride, Source from, int64_t from_stride,
                                int64_t channels, int64_t count, int64_t begin, int64_t end) const {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const int64_t step = pixel_stride();
    if (begin == end) {
      for (int64_t c = 0; c < channels; ++c, to += to_stride) clear_run(to, count);
    } else if (step == 1 && count <= kLanes) {
      for (int64_t c = 0; c < channels; ++c, to += to_stride, from = from + from_stride)
        store_some(to, load_between_as_compute(from, begin, end), count);
    } else {
      for (int64_t c = 0; c < channels; ++c, to += to_stride, from = from + from_stride) {
        if (begin > 0) clear_run(to, begin);
        copy_run(to + begin, from, step, end - begin);
        if (end < count) clear_run(to + end, count - end);
      }
    }
  }

  FASTCONV_INLINE static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
  }
};

// Fills in which pixels of a row have the tap's column inside the source.
template <class S>
FASTCONV_INLINE void set_columns_inside(Tap& tap, const PixelSource<S>& source) {
  const int64_t step = source.step_w, J = source.grid.J;
  const int64_t begin = tap.w >= 0 ? 0 : divide_up(-tap.w, step);
  const int64_t end = tap.w >= source.W ? 0 : divide_up(source.W - tap.w, step);
  tap.j_end = smaller(end, J);
  tap.j_begin = smaller(begin, tap.j_end);
}

// A task's pixels: the unfolded block of one depth block stays in L2. Its target channels: they
// bound the block of sums to 192 KiB.
constexpr int64_t kPixelBlock = 192;
constexpr int64_t kChannelBlock = 256;

// Where results go.
template <class S>
struct Target {
  S* data;
  int64_t stride_n, stride_k, stride_i, stride_j;
  PixelGrid grid;  // with rows joined where memory allows

  // Where pixel m of a channel begins that begins at `channel`; null where `count` pixels from there on
  // do not lie in one row.
  FASTCONV_INLINE S* in_a_row(S* channel, int64_t m, int64_t count) const {
    if (m + count <= grid.J) return channel + m * stride_j;
    const int64_t row = m / grid.J, j = m - row * grid.J;
    if (j + count > grid.J) return nullptr;
    return channel + row / grid.I * stride_n + row % grid.I * stride_i + j * stride_j;
  }
};

// One product in the sense of conv2d.cpp: target = bias + source * weight, group by group.
template <class S>
struct Product {
  PixelSource<S> source;  // of group 0
  Target<S> target;       // of group 0
  const S* weight;  // (g, k, c, t): g * weight_g + k * weight_k + c * weight_c + taps[t].weight
  int64_t weight_g, weight_k, weight_c;
  const Compute<S>* bias;             // [G * K], or null; null where finish adds it
  const Finish<S>* finish = nullptr;  // what else becomes of a sum; null: nothing
  int64_t G, K;                       // K: target channels of a group

  // The last step of every sum, its bias added: of `lanes` channels from k on, in a register;
  FASTCONV_INLINE Vec<Compute<S>> finished(Vec<Compute<S>> sum, int64_t k, int64_t lanes,
                                           const S* to) const {
    return finish ? finish->channels(sum, k, lanes, to) : sum;
  }
  // of `count` pixels of channel k, stride_j apart;
  FASTCONV_INLINE void store_pixels(S* to, const Compute<S>* sums, int64_t count, int64_t k) const {
    if (finish) return finish->store_pixels(to, target.stride_j, sums, count, k);
    store_run(to, target.stride_j, sums, count, Compute<S>{0});
  }
  // of `count` channels from k on, stride_k apart.
  FASTCONV_INLINE void store_channels(S* to, const Compute<S>* sums, int64_t count,
                                      int64_t k) const {
    if (finish) return finish->store_channels(to, target.stride_k, sums, count, k);
    store_run(to, target.stride_k, sums, count, Compute<S>{0});
  }
};

// A group's input as the window of each output pixel reads it; the taps are still missing.
template <class S>
PixelSource<S> input_source(const Conv2dShape& s, const S* input) {
  const int64_t* stride = s.input.s;
  return {input, stride[0],         stride[1],         stride[2],       stride[3], s.C / s.G, s.H,
          s.W,   s.window.stride_h, s.window.stride_w, {s.N, s.P, s.Q}, nullptr,   0};
}

// A group's grad_output, read pixel by pixel over some grid; the taps are still missing.
template <class S>
PixelSource<S> output_source(const Conv2dShape& s, const S* output, PixelGrid grid) {
  const int64_t* stride = s.output.s;
  return {output, stride[0], stride[1], stride[2], stride[3], s.K / s.G, s.P,
          s.Q,    1,         1,         grid,      nullptr,   0};
}

// The R * S taps of the window over the input, row by row.
FASTCONV_INLINE void set_window_taps(const Conv2dShape& s, Tap* tap) {
  const Window2d& window = s.window;
  for (int64_t r = 0; r < window.R; ++r)
    for (int64_t q = 0; q < window.S; ++q)
      *tap++ = {r * window.dilation_h - window.pad_h, q * window.dilation_w - window.pad_w, 0, 0,
                r * s.weight.s[2] + q * s.weight.s[3]};
}

// b[x][m]: columns are pixels, packed panel by panel by the thread that uses them.
template <class S>
struct PixelPanels {
  using T = Packed<S>;
  const PixelSource<S>& source;
  int64_t m_begin, m_end;
  T* packed;  // [panel][kDepthBlock][kTileColumns]
  int64_t depth = 0;

  void prepare(int64_t begin, int64_t end) {
    depth = end - begin;
    if (depth == 0) return;
    for (int64_t m = m_begin; m < m_end; m += kTileColumns<T>) {
      T* to = packed + (m - m_begin) * depth;
      const int64_t next = smaller(m + kTileColumns<T>, m_end);
      if (next - m < kTileColumns<T>) clear_run(to, depth * kTileColumns<T>);
      source.pack_along_pixels(m, next, begin, end, to, kTileColumns<T>);
    }
  }
  FASTCONV_INLINE PackedPanel<T> panel(int64_t j) const {
    return {packed + j * kTileColumns<T> * depth};
  }
};

// a[m][x]: rows are pixels, packed by the thread that uses them.
template <class S>
struct PixelRows {
  using T = Packed<S>;
  const PixelSource<S>& source;
  int64_t m_begin, m_end;
  T* packed;  // [m][kDepthBlock]

  void prepare(int64_t begin, int64_t end) {
    if (begin == end) return;
    source.pack_along_channels(m_begin, m_end, begin, end, packed, kDepthBlock<T>);
  }
  FASTCONV_INLINE PlainRows<T> rows(int64_t i) const {
    return {packed + i * kDepthBlock<T>, kDepthBlock<T>};
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
