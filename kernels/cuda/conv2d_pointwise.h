// A correlation with a window of one tap that moves by one and stays inside is a plain product, when
// pixels lie side by side with their channels inside:
//
//   dest[m, column] = bias[column] + sum over c of source[m, c] * weight[column, c],  m = (n,h,w)
//
// 16-bit elements only: the tensor cores multiply, sums are float32.
#pragma once
#include "kernels/cuda/conv2d_correlation.h"

namespace fastconv {
namespace cuda {

// Strides in elements, between lines of neighbours; each a multiple of 8, as are addresses (in
// elements) and the channels: what 16-byte copies need.
struct Pointwise {
  const void* source;
  const void* weight;
  const void* bias;  // or null
  void* dest;
  int64_t bias_stride;
  int64_t pixels, channels, columns;
  int64_t source_line, weight_line, dest_line;
};

// Is it one? Then fills `pointwise`. The lines of `dest` may be of any length and address.
inline bool is_pointwise(DType dtype, const Correlation& of, Pointwise& pointwise) {
  if (dtype != DType::kFloat16 && dtype != DType::kBFloat16) return false;
  for (const Axis& axis : {of.h, of.w}) {
    if (axis.taps != 1 || axis.stride != 1 || axis.pad != 0 || axis.dest != axis.source)
      return false;
  }
  if (of.G != 1 || of.channels == 0 || of.channels % 8 != 0 || of.weight_channel != 1) return false;

  // Pixels one line apart, in every direction
  const int64_t H = of.h.dest, W = of.w.dest;
  const auto line_of = [&](const Strides4& strides) -> int64_t {
    const int64_t* s = strides.s;
    const int64_t line = W > 1 ? s[3] : H > 1 ? s[2] : s[0];
    const bool even = (H == 1 || s[2] == W * line) && (of.N == 1 || s[0] == H * W * line);
    return s[1] == 1 && even ? line : -1;
  };
  pointwise = {of.source,
               of.weight,
               of.bias,
               of.dest,
               of.bias_stride,
               of.N * H * W,
               of.channels,
               of.columns,
               line_of(of.source_strides),
               of.weight_column,
               line_of(of.dest_strides)};
  if (pointwise.pixels == 1) pointwise.source_line = of.channels, pointwise.dest_line = of.columns;
  if (of.columns == 1) pointwise.weight_line = of.channels;
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return pointwise.source_line >= of.channels && pointwise.source_line % 8 == 0 &&
         pointwise.weight_line >= of.channels && pointwise.weight_line % 8 == 0 &&
         pointwise.dest_line >= of.columns && aligned(of.source) && aligned(of.weight);
}

// On any device since sm_80: conv2d_pointwise.cu.
const char* correlate_pointwise(DType dtype, const Pointwise& pointwise, void* stream);

// Compute capability 9.0 alone: conv2d_pointwise_sm90.cu. False: this device, this build or these
// strides are not for it, and nothing was done.
bool correlate_pointwise_sm90(DType dtype, const Pointwise& pointwise, void* stream,
                              const char*& error);

}  // namespace cuda
}  // namespace fastconv
