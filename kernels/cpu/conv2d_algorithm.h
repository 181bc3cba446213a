// The one place that decides by which algorithm a convolution is computed.
//
// A rule of costs, in products (one multiplication, one addition), from the shape, the layout and the
// instruction set alone, never from the number of threads: the algorithm decides the order of sums.
//
//   direct    9 * C*K * pixels                                         each pixel, each tap;
//             kPairCost of that where one instruction multiplies pairs
//   Winograd  36 * (C + kTileDepth)*K * (tiles, at least kLeastTiles)  products; the weight is read once
//           + tiles * (C * kSourceCost + K * kTargetCost)              transforms of source and target
//           + 36 * C*K * kWeightCost, unless prepared                  transform of the weight
//
// The constants were fitted to times on Zen 3, Zen 5 and a Xeon with AVX-512 (2026-11); bench/ shows
// how the choice does.
// A forced algorithm (FASTCONV_ALGO) is used wherever it can compute the call.
#pragma once
#include "conv2d_grouped.h"
#include "conv2d_shifted.h"
#include "conv2d_winograd.h"

namespace fastconv::cpu::FASTCONV_ISA {

struct Conv2dChoice {
  Conv2dAlgorithm algorithm;
  double direct_cost, winograd_cost;  // infinite: impossible
};

constexpr double kImpossible = 1e300;
constexpr double kLeastTiles = 20;  // fewer wait for the weight, which is four times as large
constexpr double kTileDepth =
    20;  // to begin and end a tile of products costs as much as this depth
constexpr double kPairCost = 0.4;  // half, and Winograd's operands are twice as large (Zen 4)
constexpr double kSourceCost = 160, kTargetCost = 120, kWeightCost = 10;

template <class S>
double winograd_cost(const Product<S>& p, bool prepared) {
  if (!winograd_fits(p)) return kImpossible;
  const PixelGrid& grid = p.source.grid;
  const double C = static_cast<double>(p.source.C), K = static_cast<double>(p.K);
  const double tiles = static_cast<double>(grid.N * divide_up(grid.I, int64_t{kWinogradTile}) *
                                           divide_up(grid.J, int64_t{kWinogradTile}));
  const double weight = prepared ? 0 : 36 * C * K * kWeightCost;
  return 36 * (C + kTileDepth) * K * larger(tiles, kLeastTiles) +
         tiles * (C * kSourceCost + K * kTargetCost) + weight;
}

template <class S>
bool channels_are_lanes(const Product<S>& p) {
  return p.target.stride_k == 1 && (p.target.stride_j != 1 || p.target.grid.J == 1);
}

// What a vector of lanes holds of `count` things.
template <class S>
double lanes_filled(int64_t count) {
  constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
  return static_cast<double>(count) / static_cast<double>(divide_up(count, kLanes) * kLanes);
}

// Few pixels fill their lanes badly. Channels do better, if the weight already lies in panels and the
// sums are long enough to pay for tiles that are written across (measured on Zen 4, 2026-11).
template <class S>
bool channels_fill_better(const Product<S>& p) {
  constexpr int64_t kLongSum = 256;
  return p.source.depth() >= kLongSum &&
         lanes_filled<S>(p.source.grid.count()) < 0.85 * lanes_filled<S>(p.K);
}

// `prepared`: the weight need not be transformed in this call.
template <class S>
Conv2dChoice choose_algorithm(const Product<S>& p, bool prepared) {
  const PixelSource<S>& source = p.source;
  const double product = kNumbers<Packed<S>> == 1 ? 1 : kPairCost;
  const double direct = product * static_cast<double>(p.G * p.K * source.depth()) *
                        static_cast<double>(source.grid.count());
  const double winograd = winograd_cost(p, prepared);
  const bool depthwise = source.C == 1 && p.G > 1 && source.tap_count > 0;
  const auto choice = [&](Conv2dAlgorithm algorithm) {
    return Conv2dChoice{algorithm, direct, winograd};
  };

  const Conv2dAlgorithm forced = forced_algorithm();
  const bool fits = forced == Conv2dAlgorithm::kChannels || forced == Conv2dAlgorithm::kPixels ||
                    (forced == Conv2dAlgorithm::kShifted && shifting_is_possible(p)) ||
                    (forced == Conv2dAlgorithm::kWinograd && winograd < kImpossible) ||
                    (forced == Conv2dAlgorithm::kDepthwise && depthwise) ||
                    (forced == Conv2dAlgorithm::kGrouped && grouping_is_possible(p));
  if (fits) return choice(forced);

  if (depthwise) return choice(Conv2dAlgorithm::kDepthwise);
  if (grouping_pays(p)) return choice(Conv2dAlgorithm::kGrouped);
  if (winograd < direct && winograd_is_allowed()) return choice(Conv2dAlgorithm::kWinograd);
  if (channels_are_lanes(p) || (prepared && channels_fill_better(p)))
    return choice(Conv2dAlgorithm::kChannels);
  return choice(shifting_pays(p) ? Conv2dAlgorithm::kShifted : Conv2dAlgorithm::kPixels);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
