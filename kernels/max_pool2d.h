// max_pool2d: the largest element of every window, and its gradient.
//
//   output[n,c,p,q]     = max_{r,s} input[n,c,h,w]
//   indices[n,c,p,q]    = h * W + w of the element taken
//   taps[n,c,p,q]       = r * S + s of it
//   grad_input[n,c,h,w] = sum of grad_output[n,c,p,q] over p, q whose window took h, w
//
//   with  h = p * stride_h - pad_h + r * dilation_h,  w = q * stride_w - pad_w + s * dilation_w
//
// Padding is never taken. Among equal elements the first in row-major order is taken; a NaN is
// larger than everything, and of several NaNs the last is taken (as torch does). Zeros of either
// sign are equal; of values alone it is open whose sign the largest has. A window of -inf alone
// gives -inf and the index of its first element inside. A window that lies in the padding
// altogether gives the type's lowest value (-inf), no tap (255), and the index that its first row
// and column not before the input would have: it may be >= H * W, and the gradient leaves it out.
//
// N batch; C channels; H, W input extents; R, S window; P, Q output extents.
#pragma once
#include "dtype.h"
#include "window.h"

namespace fastconv {

struct MaxPool2dShape {
  DType dtype;  // any DType forward, a floating one backward
  DType where;  // of what says which elements were taken: kInt64 indices, or kUInt8 taps
  int64_t N, C, H, W;
  int64_t P, Q;
  Window2d window;   // backward from indices: R = 0 if it is not known
  Strides4 input;    // [N, C, H, W], or those of grad_input
  Strides4 output;   // [N, C, P, Q], or those of grad_output
  Strides4 indices;  // [N, C, P, Q], or those of taps
};

// Pointers are to element [0,0,0,0]. What is written must not overlap what is read, and must not be
// an expanded view; what is read may be any view. `where`, indices or taps, may be null in forward:
// then none are computed; taps need a window of at most 255. Every element of the result is
// written. No extent of the result is zero. Backward adds in row-major order of p, q, and
// accumulates float16 and bfloat16 in float32. It ignores an index outside [0, H * W); one that a
// known window does not hold may be ignored or added where it points; a tap that no forward pass
// gives may be added to any element of the plane.
namespace cpu {
void max_pool2d_forward(const MaxPool2dShape& shape, const void* input, void* output, void* where);
void max_pool2d_backward(const MaxPool2dShape& shape, const void* grad_output, const void* where,
                         void* grad_input);
}  // namespace cpu

// The same on a CUDA device: pointers are to memory of the current device, work is queued on
// `stream` (a cudaStream_t), nothing synchronises, nothing is allocated. Returns null, or the text
// of the first CUDA error.
namespace cuda {
const char* max_pool2d_forward(const MaxPool2dShape& shape, const void* input, void* output,
                               void* where, void* stream);
const char* max_pool2d_backward(const MaxPool2dShape& shape, const void* grad_output,
                                const void* where, void* grad_input, void* stream);
}  // namespace cuda

}  // namespace fastconv
