// conv2d: two-dimensional cross-correlation and its two gradients.
//
//   output[n,k,p,q] = bias[k] + sum_{c,r,s} input[n, g*C/G + c, h, w] * weight[k,c,r,s]
//   grad_input[n, g*C/G + c, h, w] = sum_{k in g, r, s} grad_output[n,k,p,q] * weight[k,c,r,s]
//   grad_weight[k,c,r,s]           = sum_{n,p,q} grad_output[n,k,p,q] * input[n, g*C/G + c, h, w]
//
//   with  h = p * stride_h - pad_h + r * dilation_h,  w = q * stride_w - pad_w + s * dilation_w,
//   g = k / (K/G);  input outside [0,H) x [0,W) counts as 0. Whether that zero meets an infinite
//   weight, giving NaN, is left to the algorithm, as in torch.
//
// N batch; C input channels; H, W input extents; K output channels; R, S window; P, Q output
// extents; G groups.
// The gradient by the input with a bias added, grad_input[n,c,h,w] += bias[c], is conv_transpose2d of
// grad_output: described from its output's side, which is the input here. There P and Q may be smaller
// than a window that moves over H and W would give: what no window reaches is the bias alone.
// float16 and bfloat16 are accumulated in float32 and rounded once, to nearest even; float64 in
// float64. The order of every sum depends on the shape and the instruction set alone, never on the
// number of threads.
#pragma once
#include "conv2d_choice.h"
#include "dtype.h"
#include "epilogue.h"
#include "window.h"

namespace fastconv {

struct Conv2dShape {
  DType dtype;  // of every tensor: float32, float64, float16 or bfloat16
  int64_t N, C, H, W;
  int64_t K, P, Q;
  int64_t G;  // divides C and K
  Window2d window;
  Strides4 input;       // [N, C, H, W], or those of grad_input
  Strides4 weight;      // [K, C/G, R, S], or those of grad_weight
  Strides4 output;      // [N, K, P, Q], or those of grad_output
  int64_t bias_stride;  // of the bias, in elements: K of them, or C of conv2d_input_grad's
};

// A weight arranged once, for many calls with the same geometry, begins with this; the rest is the
// business of the algorithm. It serves a call whose own choice of algorithm, instruction set and
// weight size are the same and whose weight still has the sampled elements; any other ignores it.
constexpr int kConv2dSamples = 32;
struct Conv2dPreparedHeader {
  uint64_t magic;
  Conv2dAlgorithm algorithm;
  int32_t isa;
  DType dtype;
  int32_t arrangement;  // of the algorithm, where it has several
  int64_t bytes;        // of the whole, header included
  int64_t K, C, G, R, S;
  double direct_cost, winograd_cost;  // in products, as the rule estimates them; 1e300: impossible
  double samples[kConv2dSamples];     // of the weight, evenly spread
};
constexpr int64_t kConv2dPreparedHeaderBytes = 384;
static_assert(sizeof(Conv2dPreparedHeader) <= kConv2dPreparedHeaderBytes, "");

// Pointers are to element [0,0,0,0]. What is written must not overlap what is read, and must not be
// an expanded view (no zero or overlapping strides); what is read may be any view. Every element of
// the result is written once, also where the sum is empty. No extent of the result is zero. `bias`
// is null for none.
// `prepared` is null, or what conv2d_prepare made, 8-byte aligned. `epilogue` is null, or says what
// else becomes of a sum; the residual may be the output itself in no case.
// May throw std::bad_alloc for scratch memory; then the result is unspecified and nothing else has
// changed.
namespace cpu {
void conv2d_forward(const Conv2dShape& shape, const void* input, const void* weight,
                    const void* bias, const void* prepared, const Epilogue* epilogue, void* output);
void conv2d_input_grad(const Conv2dShape& shape, const void* grad_output, const void* weight,
                       const void* bias, void* grad_input);
void conv2d_weight_grad(const Conv2dShape& shape, const void* grad_output, const void* input,
                        void* grad_weight);
// Arranges the weight as conv2d_forward of this shape and these strides would have to in every call;
// with `prepared` null only says how many bytes that takes.
void conv2d_prepare(const Conv2dShape& shape, const void* weight, void* prepared, int64_t* bytes);
}  // namespace cpu

// The same on a CUDA device: pointers are to memory of the current device, work is queued on
// `stream` (a cudaStream_t), nothing synchronises, nothing is allocated. Returns null, or the text
// of the first CUDA error.
namespace cuda {
const char* conv2d_forward(const Conv2dShape& shape, const void* input, const void* weight,
                           const void* bias, void* output, void* stream);
const char* conv2d_input_grad(const Conv2dShape& shape, const void* grad_output, const void* weight,
                              const void* bias, void* grad_input, void* stream);
const char* conv2d_weight_grad(const Conv2dShape& shape, const void* grad_output, const void* input,
                               void* grad_weight, void* stream);
}  // namespace cuda

}  // namespace fastconv
