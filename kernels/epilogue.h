// What becomes of a sum before it is stored:
//
//   output[n,k,p,q] = activation(scale[k] * sum[n,k,p,q] + bias[k] + residual[n,k,p,q])
//
// computed in the compute type and rounded once. The activations are torch's, of torch.nn.functional:
//   relu       max(x, 0)                     NaN stays NaN
//   relu6      min(max(x, 0), 6)
//   silu       x / (1 + exp(-x))
//   gelu       x/2 * (1 + erf(x / sqrt(2)))
//   hardswish  x * min(max(x + 3, 0), 6) / 6
#pragma once
#include <cstdint>

namespace fastconv {

enum class Activation : int32_t { kNone, kRelu, kRelu6, kSilu, kGelu, kHardswish, kCount };

struct Epilogue {
  const void* scale = nullptr;     // [K], of the output's dtype; null: 1
  int64_t scale_stride = 0;        // in elements
  const void* residual = nullptr;  // of the output's size, dtype and strides; null: 0
  Activation activation = Activation::kNone;
};

}  // namespace fastconv
