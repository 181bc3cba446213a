// attention: softmax-weighted means of values, and their gradients.
//
//   score[b,h,l,s]  = cap(scale * sum_d query[b,h,l,d] * key[b,g,s,d])
//                     - slopes[b,h] * |s - l - (S - L)| + mask[b,h,l,s]
//   weight[b,h,l,s] = exp(score[b,h,l,s] - lse[b,h,l]),  lse[b,h,l] = log sum_s exp(score[b,h,l,s])
//   output[b,h,l,e] = sum_s keep[b,h,l,s] / (1 - dropout_p) * weight[b,h,l,s] * value[b,g,s,e]
//
// with g = h / (H/G) and cap(x) = softcap * tanh(x / softcap) where softcap > 0. Only keys s in
// [l + first, l + last] take part, and where a mask of bytes is not 0. A query without a key has output
// 0 and lse -inf.
//
// keep is 0 for 32-bit hashes below dropout_p * 2^32: with r = splitmix64 of dropout_seed at
// (b * H + h) * L + l, whose halves are low and high,
//   x = s * 0x9e3779b1 ^ low;           x = (x ^ x >> 16) * 0x85ebca6b + high;
//   x = (x ^ x >> 13) * 0xc2b2ae35;     hash = x ^ x >> 16
//
// B batch; H heads of query, G of key and value, which divides H; L queries; S keys; D, E features of
// keys and of values.
#pragma once
#include "dtype.h"
#include "window.h"

namespace fastconv {

struct AttentionShape {
  DType dtype;         // floating
  DType mask_dtype;    // kUInt8, kFloat32 or dtype
  DType slopes_dtype;  // floating
  int64_t B, H, G, L, S, D, E;
  int64_t first, last;  // far outside of [-L, S] where there is no bound
  double scale, softcap, dropout_p;
  Strides4 query, key, value;  // [B, H, L, D], [B, G, S, D], [B, G, S, E]
  Strides4 output;             // [B, H, L, E]
  Strides4 mask;               // [B, H, L, S], 0 along an axis that the mask lacks
  int64_t slopes[2];           // [B, H]
};

// Pointers are to the first element. mask, slopes and dropout_seed may be null; the seed is not where
// dropout_p > 0.
struct AttentionInputs {
  const void* query;
  const void* key;
  const void* value;
  const void* mask;
  const void* slopes;
  const int64_t* dropout_seed;
};

// What the gradients take besides; grad_query, grad_key and grad_value are the strides of the results.
struct AttentionGradShape {
  AttentionShape forward;
  Strides4 grad_output;
  int64_t lse[3];  // [B, H, L]
  Strides4 grad_query, grad_key, grad_value;
};
struct AttentionGradInputs {
  AttentionInputs forward;
  const void* grad_output;
  const void* output;
  const void* lse;
};

// lse is [B, H, L], contiguous, of float32, for float64 of float64. Sums and weights of float16 are
// float32, and those of bfloat16 too, but for the weights that an instruction for bfloat16 multiplies.
// What is written must not overlap what is read. No extent of the output is zero; S and D may be. A
// query's result depends on its position and on the shape alone.
namespace cpu {
void attention_forward(const AttentionShape& shape, const AttentionInputs& inputs, void* output,
                       void* lse);
// Every element of the three gradients is written. None of B, H, G, L, S is zero.
void attention_backward(const AttentionGradShape& shape, const AttentionGradInputs& inputs,
                        void* grad_query, void* grad_key, void* grad_value);
// grad_mask, of mask_dtype, is contiguous and of the extents [B, H, L, S], or 1 where the mask's stride
// is 0 in `mask`: there the gradient is summed. No extent is zero.
void attention_mask_grad(const AttentionGradShape& shape, const AttentionGradInputs& inputs,
                         const int64_t* mask_sizes, void* grad_mask);
}  // namespace cpu

}  // namespace fastconv
