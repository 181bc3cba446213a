// The gradient by the weight of a depthwise convolution:
//
//   grad_weight[k,t] = sum_{n,i,j} grad_output[n,k,i,j] * source[n,k/K,row,column]
//   with  row = i * step_h + h(t),  column = j * step_w + w(t)
//
// Lanes are channels (conv2d_depthwise_weight_sums.h), whatever the layout: planes are transposed on
// their way into cache. The rows of all images are cut into chunks, by the shape alone; each is summed
// for itself, and the sums are added in order, whatever the number of threads. So errors do not grow
// with the number of all pixels either.
// Cost: 2 flops per tap and element of grad_output.
#pragma once
#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

// `source` has the window's taps and one channel per group, `grad` K channels per group; element
// (k, t) of the result lies at k * stride_k + source.taps[t].weight.
#define FASTCONV_DEPTHWISE(S)                                                                     \
  void depthwise_weight_grad(const PixelSource<S>& source, const PixelSource<S>& grad, int64_t G, \
                             int64_t K, S* grad_weight, int64_t stride_k);
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cpu::FASTCONV_ISA
