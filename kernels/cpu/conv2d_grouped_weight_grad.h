// Grouped convolution's weight gradient, lanes are channels, in the arrangements of conv2d_grouped.h:
//
//   rotated     C/G = K/G, at most half a register: lanes are the source channels of several groups,
//               sums[t][d][g,i] += source[g,i] * grad[g, (i + d) mod K], the rotations of grad made once
//   broadcast   K/G larger: sums[t][c][k] += source[c] * grad[k], lanes are k
//
// A source of any layout is brought into lanes of channels while it is padded.
#pragma once
#include "conv2d_grouped.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class S>
bool grouped_weight_grad_pays(const PixelSource<S>& source, const PixelSource<S>& grad, int64_t G) {
  const int64_t C = source.C, K = grad.C;
  if (G == 1 || C == 0 || C > kWidestGroup || K > kWidestGroup || source.grid.count() == 0)
    return false;
  const WindowSpan span(source);
  if (span.rows > kWidestWindow || span.columns > kWidestWindow) return false;
  return 2 * K > Vec<Compute<S>>::kLanes || (C == K && K > 1);
}

// grad_weight[g * K + k][c][t] at (g * K + k) * stride_k + c * stride_c + source.taps[t].weight.
// `grad`: grad_output, read pixel by pixel by its one tap.
#define FASTCONV_GROUPED(S)                                                                     \
  void grouped_weight_grad(const PixelSource<S>& source, const PixelSource<S>& grad, int64_t G, \
                           S* grad_weight, int64_t stride_k, int64_t stride_c);
FASTCONV_GROUPED(float)
FASTCONV_GROUPED(double)
FASTCONV_GROUPED(Float16)
FASTCONV_GROUPED(BFloat16)
#undef FASTCONV_GROUPED

}  // namespace fastconv::cpu::FASTCONV_ISA
