// Dense 3x3 convolution that moves by one, by Winograd's F(4x4, 3x3): sixteen results from 36 products
// instead of 144.
//
//   target tile = A^T ((G weight G^T) * (B^T source tile B)) A        (elementwise product *)
//
// with the matrices of interpolation in the points 0, +-a, +-b and infinity (Lavin and Gray, "Fast
// algorithms for convolutional neural networks", 2015; Toom and Cook). One thread takes blocks of
// kTileBlock tiles through three phases, so that everything between them stays in L2:
//
//   transformed source   [36][tile][C]             lanes are channels
//   products             36 x ([tile][C] x [C][k]), a panel of kTileColumns k at a time
//   target               lanes are k; a tile is 4x4 pixels, stored in the target's own layout
//
// Sums are exact in the same sense as direct ones only while all is finite: an infinity would spread
// over its tile as NaN. So results are watched, and the caller computes directly what was not finite.
// Cost: 2 * 36/16 * N*K*I*J * C flops, 4 times the weight's memory.
#pragma once
#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int kWinogradTile = 4, kWinogradPatch = 6, kWinogradProducts = 36;

// The source is one 3x3 window of neighbours for every pixel, moving by one, of one group.
template <class S>
bool winograd_fits(const Product<S>& p);

// The weight, transformed: [panel][36][C][kTileColumns], this many elements.
template <class S>
FASTCONV_INLINE int64_t winograd_weight_size(const Product<S>& p) {
  constexpr int64_t kColumns = kTileColumns<Compute<S>>;
  return divide_up(p.K, kColumns) * kColumns * p.source.C * kWinogradProducts;
}
void winograd_transform_weight(const Product<float>& p, float* to);
void winograd_transform_weight(const Product<Float16>& p, float* to);
void winograd_transform_weight(const Product<BFloat16>& p, float* to);

// `transformed`: the whole weight, or null, to transform it here. Returns whether all
// results are finite; if not, they may differ from what a sum of products gives.
bool run_winograd(const Product<float>& p, const float* transformed);
bool run_winograd(const Product<Float16>& p, const float* transformed);
bool run_winograd(const Product<BFloat16>& p, const float* transformed);

template <class S>
bool winograd_fits(const Product<S>& p) {
  const PixelSource<S>& source = p.source;
  if (!kSame<Compute<S>, float> || p.G != 1 || source.C == 0 || source.tap_count != 9 ||
      source.step_h != 1 || source.step_w != 1)
    return false;
  int64_t h = source.taps[0].h, w = source.taps[0].w;
  for (int t = 1; t < 9; ++t) h = smaller(h, source.taps[t].h), w = smaller(w, source.taps[t].w);
  int seen = 0;
  for (int t = 0; t < 9; ++t) {
    const int64_t y = source.taps[t].h - h, x = source.taps[t].w - w;
    if (y > 2 || x > 2) return false;
    seen |= 1 << (y * 3 + x);
  }
  return seen == 0x1ff;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
