// The sums of the gradient by a depthwise weight, lanes are channels: some taps in registers while
// pixel after pixel passes by.
//
//   sums[r][s][lane] += sum_{i,j} grad[i][j][lane] * source[h(i,r)][j * step + s * dilation][lane]
//   with  h(i,r) = h + i * step_h + r * dilation_h
//
// Where neighbouring taps meet neighbouring pixels, a source vector that was loaded meets all of them.
// What lies outside of the source is left out, not multiplied. Every sum runs over i, then j.
// Cost: one multiplication-addition per tap and vector of grad.
#pragma once
#include "conv2d_depthwise_window.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class E>
struct WeightSumsTask {
  using T = Compute<E>;

  // Element x of source row h lies at source + h * source_row + x * pitch; x counts from the first
  // tap of pixel 0 on.
  const E* source;
  int64_t source_row, pitch;
  int64_t H;
  int64_t h, step_h, dilation_h;
  int64_t step, dilation;  // in x
  int64_t x_begin, x_end;  // that lie inside

  const E* grad;  // pixel j of row i at i * grad_row + j * grad_step
  int64_t grad_row, grad_step;
  int64_t pixels;  // of a row

  int64_t window_rows, window_columns;
  T* sums;  // [window_rows][window_columns][kLanes]
};

// Adds rows [i, i_end) of grad.
#define FASTCONV_DEPTHWISE(E) \
  void add_weight_sums(const WeightSumsTask<E>& task, int64_t i, int64_t i_end);
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cpu::FASTCONV_ISA
