// Grouped convolution's weight, in the three arrangements of conv2d_grouped.h.
#include "conv2d_grouped_ring.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// So many elements are worth a thread.
constexpr int64_t kGrain = 8192;

// The weight's (c, t) are an arithmetic progression, taps inside.
template <class S>
bool taps_are_inside(const Product<S>& p) {
  if (p.weight_c != p.source.tap_count) return false;
  for (int64_t t = 0; t < p.source.tap_count; ++t)
    if (p.source.taps[t].weight != t) return false;
  return true;
}

// [block][pass][t][kRotations][kLanes]: lane (g, i) of rotation d is the weight of source channel i in
// target channel (i + d) mod K.
template <class S>
void pack_rotated(const Product<S>& p, Compute<S>* packed) {
  constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
  const int64_t groups = groups_of_block(p), taps = p.source.tap_count, K = p.K;
  const int64_t block_size = divide_up(K, kRotations) * kRotations * taps * kLanes;
  parallel_for(divide_up(p.G, groups), kGrain / block_size + 1, [&](int64_t begin, int64_t end) {
    int64_t offsets[kLanes];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t lanes = smaller(groups, p.G - block * groups) * K;
      const S* from = p.weight + block * groups * p.weight_g;
      Compute<S>* to = packed + block * block_size;
      clear_run(to, block_size);
      for (int64_t d = 0; d < K; ++d) {
        for (int64_t lane = 0; lane < lanes; ++lane)
          offsets[lane] =
              lane / K * p.weight_g + lane % K * p.weight_c + (lane % K + d) % K * p.weight_k;
        for (int64_t t = 0; t < taps; ++t) {
          Compute<S>* at =
              to + ((d / kRotations * taps + t) * kRotations + d % kRotations) * kLanes;
          for (int64_t lane = 0; lane < lanes; ++lane)
            at[lane] = to_compute(from[offsets[lane] + p.source.taps[t].weight]);
        }
      }
    }
  });
}

// [g][panel][t][c][lanes of the panel]
template <class S>
void pack_broadcast(const Product<S>& p, Compute<S>* packed) {
  using T = Compute<S>;
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const int64_t C = p.source.C, taps = p.source.tap_count;
  const int64_t group_size = divide_up(p.K, kLanes) * kLanes * C * taps;
  const bool inside = taps_are_inside(p) && taps > 1;
  parallel_for(p.G, kGrain / group_size + 1, [&](int64_t begin, int64_t end) {
    Scratch<T> transposed(inside ? 2 * kLanes * C * taps : 0);
    for (int64_t g = begin; g < end; ++g)
      for (int64_t k = 0; k < p.K; k += 2 * kLanes) {
        const int64_t lanes = smaller(p.K - k, 2 * kLanes);
        const int64_t width = divide_up(lanes, kLanes) * kLanes;
        const S* from = p.weight + g * p.weight_g + k * p.weight_k;
        T* to = packed + g * group_size + k * C * taps;
        T* const rows = inside ? transposed.data() : to;
        if (lanes < width) clear_run(rows, width * C * taps);
        if (inside) {
          copy_pixels(rows, width, from, 1, p.weight_k, C * taps, lanes);
          for (int64_t t = 0; t < taps; ++t)
            for (int64_t c = 0; c < C; ++c, to += width)
              copy_run(to, rows + (c * taps + t) * width, 1, width);
        } else {
          for (int64_t t = 0; t < taps; ++t)
            copy_pixels(to + t * C * width, width, from + p.source.taps[t].weight, p.weight_c,
                        p.weight_k, C, lanes);
        }
      }
  });
}

// [g][block of channels][c][t][channels of the block]
template <class S>
void pack_pixels(const Product<S>& p, Compute<S>* packed) {
  const int64_t depth = p.source.depth(), taps = p.source.tap_count;
  const int64_t group_size = padded_channels(p.K) * depth;
  parallel_for(p.G, kGrain / group_size + 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g)
      for (int64_t k = 0, height; k < p.K; k += height) {
        height = block_channels(p.K, k);
        const int64_t count = smaller(height, p.K - k);
        const S* from = p.weight + g * p.weight_g + k * p.weight_k;
        Compute<S>* to = packed + g * group_size + k * depth;
        if (count < height) clear_run(to, height * depth);
        for (int64_t c = 0; c < p.source.C; ++c)
          for (int64_t t = 0; t < taps; ++t, to += height)
            copy_run(to, from + c * p.weight_c + p.source.taps[t].weight, p.weight_k, count);
      }
  });
}

template <class S>
void pack(const Product<S>& p, Compute<S>* packed) {
  switch (grouped_lanes(p)) {
    case GroupedLanes::kRotated:
      return pack_rotated(p, packed);
    case GroupedLanes::kBroadcast:
      return pack_broadcast(p, packed);
    default:
      return pack_pixels(p, packed);
  }
}

}  // namespace

#define FASTCONV_GROUPED(S) \
  void pack_grouped_weight(const Product<S>& p, Compute<S>* packed) { pack(p, packed); }
FASTCONV_GROUPED(float)
FASTCONV_GROUPED(double)
FASTCONV_GROUPED(Float16)
FASTCONV_GROUPED(BFloat16)
#undef FASTCONV_GROUPED

}  // namespace fastconv::cpu::FASTCONV_ISA
