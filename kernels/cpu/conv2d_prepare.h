// The weight arranged once for many calls: a header that says for which, then what the algorithm would
// else arrange in every call.
#pragma once
#include "conv2d_algorithm.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr uint64_t kPreparedMagic = 0x32642d6b63617066;  // changes with the meaning of the bytes

// Elements behind the header, each as large as one of the compute type.
template <class S>
int64_t prepared_size(const Product<S>& p, Conv2dAlgorithm algorithm) {
  switch (algorithm) {
    case Conv2dAlgorithm::kWinograd:
      return winograd_weight_size(p);
    case Conv2dAlgorithm::kChannels:
      return channel_panels_size(p);
    case Conv2dAlgorithm::kGrouped:
      return grouped_weight_size(p);
    case Conv2dAlgorithm::kPixels:
    case Conv2dAlgorithm::kShifted:
      return weight_is_plain(p) ? 0 : weight_rows_size(p);
    default:
      return 0;
  }
}

// Elements of the weight, evenly spread: a change of the whole weight, as by an optimizer or a moving
// average, changes them, whichever way torch counts it.
template <class S>
void sample_weight(const Conv2dShape& s, const S* weight, double (&samples)[kConv2dSamples]) {
  const int64_t depth = s.C / s.G, count = s.K * depth * s.window.R * s.window.S;
  for (int64_t i = 0; i < kConv2dSamples; ++i) {
    int64_t rest = i * (count - 1) / (kConv2dSamples - 1);
    const int64_t q = rest % s.window.S, r = (rest /= s.window.S) % s.window.R;
    const int64_t c = (rest /= s.window.R) % depth, k = rest / depth;
    samples[i] = to_compute(
        weight[k * s.weight.s[0] + c * s.weight.s[1] + r * s.weight.s[2] + q * s.weight.s[3]]);
  }
}

template <class S>
Conv2dPreparedHeader header_for(const Conv2dShape& s, const Product<S>& p) {
  const Conv2dChoice choice = choose_algorithm(p, true);
  const int64_t bytes =
      kConv2dPreparedHeaderBytes + prepared_size(p, choice.algorithm) * int64_t{sizeof(Compute<S>)};
  Conv2dPreparedHeader header = {
      kPreparedMagic,
      choice.algorithm,
      static_cast<int32_t>(Isa::FASTCONV_ISA),
      s.dtype,
      choice.algorithm == Conv2dAlgorithm::kGrouped ? static_cast<int32_t>(grouped_lanes(p)) : 0,
      bytes,
      s.K,
      s.C,
      s.G,
      s.window.R,
      s.window.S,
      choice.direct_cost,
      choice.winograd_cost,
      {}};
  sample_weight(s, p.weight, header.samples);
  return header;
}

// The arranged weight, if it is what this call would arrange; else null.
template <class S>
const void* prepared_weight(const Conv2dShape& s, const Product<S>& p, const void* prepared) {
  if (!prepared) return nullptr;
  const auto& given = *static_cast<const Conv2dPreparedHeader*>(prepared);
  if (given.magic != kPreparedMagic) return nullptr;
  const Conv2dPreparedHeader wanted = header_for(s, p);
  if (__builtin_memcmp(given.samples, wanted.samples, sizeof(wanted.samples)) != 0) return nullptr;
  const bool same = given.algorithm == wanted.algorithm && given.isa == wanted.isa &&
                    given.dtype == wanted.dtype && given.arrangement == wanted.arrangement &&
                    given.bytes == wanted.bytes && given.K == wanted.K && given.C == wanted.C &&
                    given.G == wanted.G && given.R == wanted.R && given.S == wanted.S;
  if (!same || wanted.bytes == kConv2dPreparedHeaderBytes) return nullptr;
  return static_cast<const char*>(prepared) + kConv2dPreparedHeaderBytes;
}

// Returns the bytes it takes; writes them if `prepared` is not null.
template <class S>
int64_t prepare_weight(const Conv2dShape& s, const Product<S>& p, void* prepared) {
  const Conv2dPreparedHeader header = header_for(s, p);
  if (!prepared) return header.bytes;
  *static_cast<Conv2dPreparedHeader*>(prepared) = header;
  void* const to = static_cast<char*>(prepared) + kConv2dPreparedHeaderBytes;
  if (header.bytes == kConv2dPreparedHeaderBytes) return header.bytes;
  if (header.algorithm == Conv2dAlgorithm::kChannels)
    pack_channel_panels(p, static_cast<Packed<S>*>(to));
  else if (header.algorithm == Conv2dAlgorithm::kGrouped)
    pack_grouped_weight(p, static_cast<Compute<S>*>(to));
  else if (header.algorithm != Conv2dAlgorithm::kWinograd)
    pack_weight_rows(p, static_cast<Packed<S>*>(to));
  else if constexpr (kSame<Compute<S>, float>)
    winograd_transform_weight(p, static_cast<float*>(to));
  return header.bytes;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
