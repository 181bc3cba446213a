// adaptive_avg_pool2d: the means of P * Q windows that cover the input evenly, and its gradient.
//
//   output[n,c,p,q]     = sum_{h,w} input[n,c,h,w] / (rows * columns)
//   grad_input[n,c,h,w] = sum_{p,q} grad_output[n,c,p,q] / (rows * columns)
//                         over the p, q whose window holds h, w
//
//   window p holds the rows h in [floor(p * H / P), ceil((p + 1) * H / P)), columns likewise
//
// Neighbouring windows share a row where P does not divide H. P may exceed H: windows of one or two
// rows. P = Q = 1 is the mean of a plane.
//
// N batch; C channels; H, W input extents; P, Q output extents.
#pragma once
#include "dtype.h"
#include "window.h"

namespace fastconv {

struct AdaptiveAvgPool2dShape {
  DType dtype;  // a floating one
  int64_t N, C, H, W;
  int64_t P, Q;     // P * H and Q * W are below 2^62
  Strides4 input;   // [N, C, H, W], or those of grad_input
  Strides4 output;  // [N, C, P, Q], or those of grad_output
};

// The start of window o of `outputs` over `inputs` elements; that of window o + 1, rounded up, is
// the end of window o.
static inline constexpr int64_t adaptive_begin(int64_t o, int64_t inputs, int64_t outputs) {
  return o * inputs / outputs;
}
static inline constexpr int64_t adaptive_end(int64_t o, int64_t inputs, int64_t outputs) {
  return ((o + 1) * inputs + outputs - 1) / outputs;
}

// As those of avg_pool2d.h.
namespace cpu {
void adaptive_avg_pool2d_forward(const AdaptiveAvgPool2dShape& shape, const void* input,
                                 void* output);
void adaptive_avg_pool2d_backward(const AdaptiveAvgPool2dShape& shape, const void* grad_output,
                                  void* grad_input);
}  // namespace cpu
namespace cuda {
const char* adaptive_avg_pool2d_forward(const AdaptiveAvgPool2dShape& shape, const void* input,
                                        void* output, void* stream);
const char* adaptive_avg_pool2d_backward(const AdaptiveAvgPool2dShape& shape,
                                         const void* grad_output, void* grad_input, void* stream);
}  // namespace cuda

}  // namespace fastconv
