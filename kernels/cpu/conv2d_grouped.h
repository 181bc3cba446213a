// Grouped convolution with few channels per group: a panel of the dense product (conv2d_dense.h) would
// hold the channels of one group and leave the other lanes empty. Three arrangements:
//
//   rotated     NHWC, C/G = K/G, at most half a register   lanes are the channels of several groups.
//               sums_d[g,i] += source[g,i] * weight[g, (i + d) mod K, i] needs no rearrangement in the
//               loop; each of the K vectors sums_d is rotated back into its channels once, at the end
//   broadcast   NHWC with more channels, NCHW with many    lanes are the channels of one group, a
//               source channel is broadcast from memory
//   pixels      else                                       lanes are pixels of zero-padded planes, a
//               weight is broadcast
//
// Source rows are widened and padded once, in cache, so that every pixel meets every tap of a row.
// Results do not depend on how the work is cut.
// Cost: 2 * N*K*P*Q * C/G*R*S flops, and lanes left empty.
#pragma once
#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

enum class GroupedLanes { kRotated, kBroadcast, kPixels };

// The gaps between rows of so few pixels cost more than to transpose many channels.
constexpr int64_t kShortRow = 14;

// Rotations that one pass over the source sums up.
constexpr int64_t kRotations = 4;

template <class S>
GroupedLanes grouped_lanes(const Product<S>& p) {
  constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
  if (p.target.stride_k != 1 || (p.target.stride_j == 1 && p.source.grid.J > 1)) {
    const bool many = p.K >= kLanes && p.source.C >= kLanes;
    const bool short_rows = p.source.grid.J <= kShortRow;
    return many && p.target.stride_j == 1 && (short_rows || p.K >= 2 * kLanes)
               ? GroupedLanes::kBroadcast
               : GroupedLanes::kPixels;
  }
  if (2 * p.K > kLanes) return GroupedLanes::kBroadcast;
  return p.K == p.source.C ? GroupedLanes::kRotated : GroupedLanes::kPixels;
}

// The box of source pixels that a window reads.
struct WindowSpan {
  int64_t h, w, rows, columns;  // first row and column relative to the window's position; extents

  template <class S>
  explicit WindowSpan(const PixelSource<S>& source) : h(source.taps[0].h), w(source.taps[0].w) {
    int64_t last_h = h, last_w = w;
    for (int64_t t = 1; t < source.tap_count; ++t) {
      const Tap& tap = source.taps[t];
      h = smaller(h, tap.h), last_h = larger(last_h, tap.h);
      w = smaller(w, tap.w), last_w = larger(last_w, tap.w);
    }
    rows = last_h - h + 1;
    columns = last_w - w + 1;
  }
};

// A window that spreads far, as by a large dilation, would push its rows out of cache.
constexpr int64_t kWidestWindow = 64;

template <class S>
bool grouping_is_possible(const Product<S>& p) {
  if (p.source.tap_count == 0 || p.source.C == 0) return false;
  const WindowSpan span(p.source);
  return span.rows <= kWidestWindow && span.columns <= kWidestWindow;
}

// Whether this is faster than the dense product of each group for itself, which unfolds its pixels.
constexpr int64_t kWidestGroup = 64;  // channels
template <class S>
bool grouping_pays(const Product<S>& p) {
  return p.G > 1 && p.source.C <= kWidestGroup && p.K <= kWidestGroup && grouping_is_possible(p);
}

// The weight as these kernels read it, in elements of the compute type.
//   rotated     [block of groups][pass][t][kRotations][kLanes]
//   broadcast   [g][panel][t][c][kTileColumns, of the last panel kLanes if that is enough]
//   pixels      [g][block of channels][c][t][channels of the block]
template <class S>
int64_t grouped_weight_size(const Product<S>& p);

#define FASTCONV_GROUPED(S)                                                 \
  void pack_grouped_weight(const Product<S>& p, Compute<S>* packed);        \
  void run_grouped_channels(const Product<S>& p, const Compute<S>* weight); \
  void run_grouped_pixels(const Product<S>& p, const Compute<S>* weight);
FASTCONV_GROUPED(float)
FASTCONV_GROUPED(double)
FASTCONV_GROUPED(Float16)
FASTCONV_GROUPED(BFloat16)
#undef FASTCONV_GROUPED

// Groups of a rotated register.
template <class S>
FASTCONV_INLINE int64_t groups_of_block(const Product<S>& p) {
  return Vec<Compute<S>>::kLanes / p.K;
}

// Target channels that a tile of pixels computes at once.
constexpr int64_t kTallBlock = kVectorRegisters == 32 ? 8 : 4, kLowBlock = 4;

// Of the block that begins at channel k of a group, and of all: the last block may be padded.
FASTCONV_INLINE int64_t block_channels(int64_t K, int64_t k) {
  return K - k > kLowBlock ? kTallBlock : kLowBlock;
}
FASTCONV_INLINE int64_t padded_channels(int64_t K) { return divide_up(K, kLowBlock) * kLowBlock; }

// Calls tile(length, begin) for pieces of [0, count), at most kLargest long and almost equal.
template <int kLargest, class Tile>
FASTCONV_INLINE void for_each_tile(int64_t count, const Tile& tile) {
  const int64_t tiles = divide_up(count, int64_t{kLargest});
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = count * i / tiles;
    tile(count * (i + 1) / tiles - begin, begin);
  }
}

// Calls body with the constant `count`, 1 <= count <= kLargest.
template <int kLargest, class Body>
FASTCONV_INLINE void with_constant(int64_t count, const Body& body) {
  if constexpr (kLargest == 1)
    body(std::integral_constant<int, 1>());
  else if (count == kLargest)
    body(std::integral_constant<int, kLargest>());
  else
    with_constant<kLargest - 1>(count, body);
}

template <class S>
int64_t grouped_weight_size(const Product<S>& p) {
  constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
  switch (grouped_lanes(p)) {
    case GroupedLanes::kRotated:
      return divide_up(p.G, groups_of_block(p)) * divide_up(p.K, kRotations) * kRotations *
             p.source.tap_count * kLanes;
    case GroupedLanes::kBroadcast:
      return p.G * divide_up(p.K, kLanes) * kLanes * p.source.depth();
    default:
      return p.G * padded_channels(p.K) * p.source.depth();
  }
}

// `prepared`: what pack_grouped_weight gives, or null.
template <class S>
void run_grouped(const Product<S>& p, const Compute<S>* prepared) {
  Scratch<Compute<S>> packed(prepared ? 0 : grouped_weight_size(p));
  if (!prepared) pack_grouped_weight(p, packed.data());
  const Compute<S>* weight = prepared ? prepared : packed.data();
  if (grouped_lanes(p) == GroupedLanes::kPixels)
    run_grouped_pixels(p, weight);
  else
    run_grouped_channels(p, weight);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
