// Winograd's F(4x4, 3x3), tile by tile: the transforms, and what reads and writes their tiles. See
// conv2d_winograd.h.
#pragma once
#include "conv2d_winograd.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

using T = float;
using V = Vec<T>;
constexpr int64_t kLanes = V::kLanes;
constexpr int kTile = kWinogradTile, kPatch = kWinogradPatch, kProducts = kWinogradProducts;

// Tiles of a block: two registers tiles high, so that a panel of weights is read from L2 or L3 once
// for 24 tiles; a few more rather than a block of few.
constexpr int64_t kTileBlock = 24, kLargestTileBlock = 30;

// The points of interpolation, besides 0 and infinity: see bench/winograd_points.py.
constexpr T kA = 0.625f, kB = 1.5f;
constexpr T kA2 = kA * kA, kB2 = kB * kB;

FASTCONV_INLINE V times(T factor, V v) { return V::broadcast(factor) * v; }

// o = B^T d
FASTCONV_INLINE void transform_source(const V (&d)[6], V (&o)[6]) {
  o[0] = d[4] + times(kA2 * kB2, d[0]) - times(kA2 + kB2, d[2]);
  const V even_a = d[4] - times(kB2, d[2]), odd_a = d[3] - times(kB2, d[1]);
  o[1] = even_a + times(kA, odd_a);
  o[2] = even_a - times(kA, odd_a);
  const V even_b = d[4] - times(kA2, d[2]), odd_b = d[3] - times(kA2, d[1]);
  o[3] = even_b + times(kB, odd_b);
  o[4] = even_b - times(kB, odd_b);
  o[5] = d[5] + times(kA2 * kB2, d[1]) - times(kA2 + kB2, d[3]);
}

// o = A^T m
FASTCONV_INLINE void transform_products(const V (&m)[6], V (&o)[4]) {
  const V sum_a = m[1] + m[2], difference_a = m[1] - m[2];
  const V sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  o[0] = m[0] + sum_a + sum_b;
  o[1] = times(kA, difference_a) + times(kB, difference_b);
  o[2] = times(kA2, sum_a) + times(kB2, sum_b);
  o[3] = m[5] + times(kA2 * kA, difference_a) + times(kB2 * kB, difference_b);
}

// o = G g
FASTCONV_INLINE void transform_taps(const V (&g)[3], V (&o)[6]) {
  constexpr T kScaleA = 1 / (2 * kA2 * (kA2 - kB2)), kScaleB = 1 / (2 * kB2 * (kB2 - kA2));
  o[0] = times(1 / (kA2 * kB2), g[0]);
  const V even_a = times(kScaleA, g[0]) + times(kScaleA * kA2, g[2]);
  o[1] = even_a + times(kScaleA * kA, g[1]);
  o[2] = even_a - times(kScaleA * kA, g[1]);
  const V even_b = times(kScaleB, g[0]) + times(kScaleB * kB2, g[2]);
  o[3] = even_b + times(kScaleB * kB, g[1]);
  o[4] = even_b - times(kScaleB * kB, g[1]);
  o[5] = g[2];
}

// The 36 values of a tile, each to its own plane.
template <class Load>
FASTCONV_INLINE void transform_source_tile(const Load& load, T* to, int64_t plane) {
  V half[kPatch][kPatch];
#pragma GCC unroll 6
  for (int j = 0; j < kPatch; ++j) {
    V column[6], done[6];
#pragma GCC unroll 6
    for (int i = 0; i < kPatch; ++i) column[i] = load(i, j);
    transform_source(column, done);
#pragma GCC unroll 6
    for (int i = 0; i < kPatch; ++i) half[i][j] = done[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPatch; ++i) {
    V done[6];
    transform_source(half[i], done);
#pragma GCC unroll 6
    for (int j = 0; j < kPatch; ++j) done[j].store(to + (i * kPatch + j) * plane);
  }
}

// The 36 values of a window, each to its own plane.
template <class Load>
FASTCONV_INLINE void transform_weight_tile(const Load& load, T* to, int64_t plane) {
  V half[kPatch][3];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    V taps[3], done[6];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) taps[i] = load(i, j);
    transform_taps(taps, done);
#pragma GCC unroll 6
    for (int i = 0; i < kPatch; ++i) half[i][j] = done[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPatch; ++i) {
    V done[6];
    transform_taps(half[i], done);
#pragma GCC unroll 6
    for (int j = 0; j < kPatch; ++j) done[j].store(to + (i * kPatch + j) * plane);
  }
}

FASTCONV_INLINE void transform_product_tile(const T* from, int64_t plane, V bias,
                                            V (&o)[kTile][kTile]) {
  V half[kTile][kPatch];
#pragma GCC unroll 6
  for (int j = 0; j < kPatch; ++j) {
    V column[6], done[4];
#pragma GCC unroll 6
    for (int i = 0; i < kPatch; ++i) column[i] = V::load(from + (i * kPatch + j) * plane);
    transform_products(column, done);
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) half[i][j] = done[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i) {
    transform_products(half[i], o[i]);
#pragma GCC unroll 4
    for (int j = 0; j < kTile; ++j) o[i][j] = o[i][j] + bias;
  }
}

// Phase one

template <class S>
class SourceTiles {
 public:
  SourceTiles(const PixelSource<S>& source, PixelGrid tiles)
      : source_(source), h_(source.taps[0].h), w_(source.taps[0].w), tiles_(tiles) {
    for (int t = 1; t < 9; ++t)
      h_ = smaller(h_, source.taps[t].h), w_ = smaller(w_, source.taps[t].w);
  }

  // The longest row of a patch, in elements: of a run of tiles.
  static constexpr int64_t kPatchColumns =
      (kLargestTileBlock * kTile + 2 + kLanes - 1) / kLanes * kLanes;
  static constexpr int64_t kPatchSize = kPatch * kPatchColumns * kLanes;

  // transformed[product][tile - begin][row_stride], tiles [begin, end).
  void transform(int64_t begin, int64_t end, T* patch, T* transformed, int64_t row_stride,
                 int64_t plane) const {
    for_each_run(tiles_, begin, end,
                 [&](int64_t n, int64_t i, int64_t j, int64_t count, int64_t offset) {
                   T* to = transformed + offset * row_stride;
                   const int64_t h = i * kTile + h_, w = j * kTile + w_;
                   if (source_.stride_c == 1)
                     transform_channels(n, h, w, count, patch, to, row_stride, plane);
                   else
                     transform_planes(n, h, w, count, patch, to, row_stride, plane);
                 });
  }

 private:
  // NHWC: tiles that lie inside are read in place.
  void transform_channels(int64_t n, int64_t h, int64_t w, int64_t count, T* patch, T* to,
                          int64_t row_stride, int64_t plane) const {
    const int64_t stride_h = source_.stride_h, stride_w = source_.stride_w;
    const bool rows_inside = h >= 0 && h + kPatch <= source_.H;
    for (int64_t tile = 0; tile < count; ++tile, w += kTile, to += row_stride) {
      const bool inside = rows_inside && w >= 0 && w + kPatch <= source_.W;
      const S* from = source_.data + n * source_.stride_n + h * stride_h + w * stride_w;
      int64_t c = 0;
      if (inside)
        for (; c + kLanes <= source_.C; c += kLanes)
          transform_source_tile(
              [&](int i, int j) { return load_as_compute(from + i * stride_h + j * stride_w + c); },
              to + c, plane);
      for (; c < source_.C; c += kLanes) {
        const int64_t lanes = smaller(kLanes, source_.C - c);
        for (int i = 0; i < kPatch; ++i)
          for (int j = 0; j < kPatch; ++j) {
            const bool here = h + i >= 0 && h + i < source_.H && w + j >= 0 && w + j < source_.W;
            const V v = here ? load_some_as_compute(from + i * stride_h + j * stride_w + c, lanes)
                             : V::zero();
            v.store(patch + (i * kPatch + j) * kLanes);
          }
        transform_source_tile(
            [&](int i, int j) { return V::load(patch + (i * kPatch + j) * kLanes); }, to + c,
            plane);
      }
    }
  }

  // Other layouts: kLanes channels of a run's rows are turned so that lanes are channels, with zeros
  // around.
  void transform_planes(int64_t n, int64_t h, int64_t w, int64_t count, T* patch, T* to,
                        int64_t row_stride, int64_t plane) const {
    const int64_t columns = count * kTile + 2;
    for (int64_t c = 0; c < source_.C; c += kLanes) {
      const int64_t channels = smaller(kLanes, source_.C - c);
      for (int64_t i = 0; i < kPatch; ++i) {
        T* row = patch + i * kPatchColumns * kLanes;
        const S* from = source_.data + n * source_.stride_n + c * source_.stride_c +
                        (h + i) * source_.stride_h + w * source_.stride_w;
        if (h + i < 0 || h + i >= source_.H)
          clear_run(row, columns * kLanes);
        else
          for (int64_t x = 0; x < columns; x += kLanes)
            turn(from, channels, x, -w, source_.W - w, row + x * kLanes);
      }
      for (int64_t tile = 0; tile < count; ++tile)
        transform_source_tile(
            [&](int i, int j) {
              return V::load(patch + (i * kPatchColumns + tile * kTile + j) * kLanes);
            },
            to + tile * row_stride + c, plane);
    }
  }

  // to[x][channel] for kLanes columns from x on; columns outside [begin, end) are zero.
  FASTCONV_INLINE void turn(const S* from, int64_t channels, int64_t x, int64_t begin, int64_t end,
                            T* to) const {
    const int64_t first = smaller(larger(begin - x, int64_t{0}), kLanes);
    const int64_t last = smaller(larger(end - x, first), kLanes);
    V block[kLanes];
    if (first == last) {
      clear_run(to, kLanes * kLanes);
      return;
    }
    if (source_.stride_w != 1) {
      T lanes[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) {
        clear_run(lanes, kLanes);
        for (int64_t q = first; q < last && r < channels; ++q)
          lanes[q] = to_compute(from[r * source_.stride_c + (x + q) * source_.stride_w]);
        block[r] = V::load(lanes);
      }
    } else if (channels == kLanes && first == 0 && last == kLanes) {
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) block[r] = load_as_compute(from + r * source_.stride_c + x);
    } else {
      for (int64_t r = 0; r < kLanes; ++r)
        block[r] = r < channels ? load_between_as_compute(from + r * source_.stride_c + x + first,
                                                          first, last)
                                : V::zero();
    }
    transpose(block);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) block[r].store(to + r * kLanes);
  }

  const PixelSource<S>& source_;
  int64_t h_, w_;
  PixelGrid tiles_;
};

// Phase three

template <class S>
class TargetTiles {
 public:
  TargetTiles(const Product<S>& p, PixelGrid tiles)
      : target_(p.target),
        finish_(p.finish),
        bias_(p.bias),
        I_(p.source.grid.I),
        J_(p.source.grid.J),
        tiles_(tiles) {}

  static constexpr int64_t kRunColumns = kLargestTileBlock * kTile;
  static constexpr int64_t kPatchSize = kTile * (kRunColumns + kLanes) * kLanes;

  // Target channels [k, k + lanes) of tiles [begin, end) from products[36][tile - begin][row_stride].
  // Returns 0 in every lane, or NaN where something was not finite.
  V store(int64_t begin, int64_t end, int64_t k, int64_t lanes, const T* products,
          int64_t row_stride, int64_t plane, T* patch) const {
    const V bias = bias_ ? load_some(bias_ + k, lanes) : V::zero();
    V watch = V::zero();
    for_each_run(tiles_, begin, end,
                 [&](int64_t n, int64_t i, int64_t j, int64_t count, int64_t offset) {
                   const T* from = products + offset * row_stride;
                   S* to = target_.data + n * target_.stride_n + k * target_.stride_k +
                           i * kTile * target_.stride_i + j * kTile * target_.stride_j;
                   const int64_t rows = smaller(int64_t{kTile}, I_ - i * kTile);
                   const int64_t columns = smaller(count * kTile, J_ - j * kTile);
                   if (target_.stride_k == 1)
                     store_channels(from, row_stride, plane, bias, count, rows, columns, k, lanes,
                                    to, watch);
                   else
                     store_planes(from, row_stride, plane, bias, count, rows, columns, k, lanes,
                                  patch, to, watch);
                 });
    return watch;
  }

 private:
  FASTCONV_INLINE static void watch_tile(const V (&o)[kTile][kTile], V& watch) {
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kTile; ++j) watch = watch + o[i][j] * V::zero();
  }

  void store_channels(const T* from, int64_t row_stride, int64_t plane, V bias, int64_t count,
                      int64_t rows, int64_t columns, int64_t k, int64_t lanes, S* to,
                      V& watch) const {
    for (int64_t tile = 0; tile < count; ++tile) {
      V o[kTile][kTile];
      transform_product_tile(from + tile * row_stride, plane, bias, o);
      watch_tile(o, watch);
      S* corner = to + tile * kTile * target_.stride_j;
      const int64_t width = smaller(int64_t{kTile}, columns - tile * kTile);
      if (rows == kTile && width == kTile && lanes == kLanes && !finish_) {
#pragma GCC unroll 4
        for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < kTile; ++j)
            store_from_compute(corner + i * target_.stride_i + j * target_.stride_j, o[i][j]);
      } else {
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < width; ++j) {
            S* at = corner + i * target_.stride_i + j * target_.stride_j;
            store_some_from_compute(
                at, finish_ ? finish_->channels(o[i][j], k, lanes, at) : o[i][j], lanes);
          }
      }
    }
  }

  void store_planes(const T* from, int64_t row_stride, int64_t plane, V bias, int64_t count,
                    int64_t rows, int64_t columns, int64_t k, int64_t lanes, T* patch, S* to,
                    V& watch) const {
    constexpr int64_t kRow = (kRunColumns + kLanes) * kLanes;
    for (int64_t tile = 0; tile < count; ++tile) {
      V o[kTile][kTile];
      transform_product_tile(from + tile * row_stride, plane, bias, o);
      watch_tile(o, watch);
#pragma GCC unroll 4
      for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j)
          o[i][j].store(patch + i * kRow + (tile * kTile + j) * kLanes);
    }
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t x = 0; x < columns; x += kLanes) {
        V block[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) block[r] = V::load(patch + i * kRow + (x + r) * kLanes);
        transpose(block);
        S* pixel = to + i * target_.stride_i + x * target_.stride_j;
        const int64_t width = smaller(kLanes, columns - x);
        for (int64_t r = 0; r < lanes; ++r, pixel += target_.stride_k) {
          if (finish_) {
            T sums[kLanes];
            block[r].store(sums);
            finish_->store_pixels(pixel, target_.stride_j, sums, width, k + r);
          } else if (target_.stride_j == 1 && width == kLanes)
            store_from_compute(pixel, block[r]);
          else if (target_.stride_j == 1)
            store_some_from_compute(pixel, block[r], width);
          else
            for (int64_t q = 0; q < width; ++q)
              pixel[q * target_.stride_j] = from_compute<S>(block[r].raw[q]);
        }
      }
  }

  const Target<S>& target_;
  const Finish<S>* finish_;
  const T* bias_;
  int64_t I_, J_;
  PixelGrid tiles_;
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
