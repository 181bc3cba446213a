// max_unpool2d: every element back to the place that an index names, zeros elsewhere; and its
// gradient.
//
//   output[n,c,h,w]     = input[n,c,p,q] of the last p, q in row-major order with
//                         indices[n,c,p,q] == h * W + w, 0 if there is none
//   grad_input[n,c,p,q] = grad_output[n,c,h,w] with h * W + w = indices[n,c,p,q]
//
// N batch; C channels; P, Q extents of the input; H, W of the output.
#pragma once
#include "dtype.h"
#include "window.h"

namespace fastconv {

struct MaxUnpool2dShape {
  DType dtype;  // a floating one
  int64_t N, C, H, W;
  int64_t P, Q;
  Strides4 input;    // [N, C, P, Q], or those of grad_input
  Strides4 indices;  // [N, C, P, Q]
  Strides4 output;   // [N, C, H, W], or those of grad_output
};

// The first index outside [0, H * W) in row-major order.
struct MaxUnpool2dMistake {
  bool found = false;
  int64_t index = 0;
};

// Pointers are to element [0,0,0,0]. What is written must not overlap what is read, and must not be
// an expanded view; what is read may be any view. Every element of the result is written. No extent
// of the result is zero.
//
// An index outside [0, H * W) is a mistake: on the CPU it is told, and the result is of no use.
// Nothing outside of the result is written.
namespace cpu {
void max_unpool2d_forward(const MaxUnpool2dShape& shape, const void* input, const int64_t* indices,
                          void* output, MaxUnpool2dMistake* mistake);
void max_unpool2d_backward(const MaxUnpool2dShape& shape, const void* grad_output,
                           const int64_t* indices, void* grad_input, MaxUnpool2dMistake* mistake);
}  // namespace cpu

// The same on a CUDA device: pointers are to memory of the current device, work is queued on
// `stream` (a cudaStream_t), nothing synchronises, nothing is allocated. Returns null, or the text
// of the first CUDA error. An index outside is left out, and its gradient is zero: to tell, the
// device would have to be waited for. Of several equal indices any one's element is kept.
namespace cuda {
const char* max_unpool2d_forward(const MaxUnpool2dShape& shape, const void* input,
                                 const int64_t* indices, void* output, void* stream);
const char* max_unpool2d_backward(const MaxUnpool2dShape& shape, const void* grad_output,
                                  const int64_t* indices, void* grad_input, void* stream);
}  // namespace cuda

}  // namespace fastconv
