// adaptive_max_pool2d: the largest elements of P * Q windows that cover the input evenly.
//
//   output[n,c,p,q]  = max_{h,w} input[n,c,h,w]
//   indices[n,c,p,q] = h * W + w of the element taken
//
//   window p holds the rows h in [floor(p * H / P), ceil((p + 1) * H / P)), columns likewise
//
// Neighbouring windows share a row where P does not divide H; P may exceed H. Where both extents are
// divided evenly this is max_pool2d; P = Q = 1 is the largest element of a plane. NaN and ties as
// there. The gradient is max_pool2d's: indices tell all that it needs.
//
// N batch; C channels; H, W input extents; P, Q output extents.
#pragma once
#include "dtype.h"
#include "window.h"

namespace fastconv {

struct AdaptiveMaxPool2dShape {
  DType dtype;  // a floating one
  int64_t N, C, H, W;
  int64_t P, Q;      // P * H and Q * W are below 2^62
  Strides4 input;    // [N, C, H, W]
  Strides4 output;   // [N, C, P, Q]
  Strides4 indices;  // [N, C, P, Q]
};

// As those of max_pool2d.h; `indices` may be null.
namespace cpu {
void adaptive_max_pool2d_forward(const AdaptiveMaxPool2dShape& shape, const void* input,
                                 void* output, int64_t* indices);
}  // namespace cpu
namespace cuda {
const char* adaptive_max_pool2d_forward(const AdaptiveMaxPool2dShape& shape, const void* input,
                                        void* output, int64_t* indices, void* stream);
}  // namespace cuda

}  // namespace fastconv
