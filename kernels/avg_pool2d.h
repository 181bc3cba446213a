// avg_pool2d: the mean of every window, and its gradient.
//
//   output[n,c,p,q]     = sum_{r,s} input[n,c,h,w] / divisor[p,q]
//   grad_input[n,c,h,w] = sum_{p,q} grad_output[n,c,p,q] / divisor[p,q]
//                         over the p, q whose window holds h, w
//
//   with  h = p * stride_h - pad_h + r,  w = q * stride_w - pad_w + s,  inside the input
//
// divisor[p,q] is divisor_override if that is not 0; else the number of taps of the window that lie
// inside the input or, with count_include_pad, inside the input and its padding: a last window of
// ceil_mode may reach beyond the padding, and what lies there never counts. Padding adds nothing to
// a sum: a NaN or infinity reaches those outputs alone whose window holds it.
//
// N batch; C channels; H, W input extents; R, S window; P, Q output extents.
#pragma once
#include "dtype.h"
#include "window.h"

namespace fastconv {

struct AvgPool2dShape {
  DType dtype;  // a floating one
  int64_t N, C, H, W;
  int64_t P, Q;
  Window2d window;  // not dilated; padding is at most half of it
  bool count_include_pad;
  int64_t divisor_override;  // 0: none
  Strides4 input;            // [N, C, H, W], or those of grad_input
  Strides4 output;           // [N, C, P, Q], or those of grad_output
};

// Pointers are to element [0,0,0,0]. What is written must not overlap what is read, and must not be
// an expanded view; what is read may be any view. Every element of the result is written. No extent
// is zero. float16 and bfloat16 are summed in float32 and rounded once. The order of a sum depends
// on the shape and the instruction set alone.
namespace cpu {
void avg_pool2d_forward(const AvgPool2dShape& shape, const void* input, void* output);
void avg_pool2d_backward(const AvgPool2dShape& shape, const void* grad_output, void* grad_input);
}  // namespace cpu

// The same on a CUDA device: pointers are to memory of the current device, work is queued on
// `stream` (a cudaStream_t), nothing synchronises, nothing is allocated. Returns null, or the text
// of the first CUDA error.
namespace cuda {
const char* avg_pool2d_forward(const AvgPool2dShape& shape, const void* input, void* output,
                               void* stream);
const char* avg_pool2d_backward(const AvgPool2dShape& shape, const void* grad_output,
                                void* grad_input, void* stream);
}  // namespace cuda

}  // namespace fastconv
