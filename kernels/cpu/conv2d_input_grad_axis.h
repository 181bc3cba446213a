// How the taps of a window's row or column lie over the gradient by the input.
#pragma once
#include "gemm.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {  // of conv2d.cpp alone

// One row or column of the window: which rows or columns of grad_output it brings inside.
struct AxisTap {
  int64_t begin, end;
  int64_t offset;  // grad_output's row p goes to row p * stride + offset
  bool leads;      // it alone reaches every row of its phase, and no tap before it does

  FASTCONV_INLINE int64_t count() const { return end - begin; }
};

// Fills in all taps of an axis; returns whether every phase of the stride has one that leads.
static bool set_axis_taps(int64_t taps, int64_t stride, int64_t pad, int64_t dilation,
                          int64_t sources, int64_t targets, AxisTap* tap) {
  int64_t led = 0;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t offset = t * dilation - pad;
    const int64_t begin = offset >= 0 ? 0 : divide_up(-offset, stride);
    const int64_t end =
        offset >= targets ? 0 : smaller((targets - 1 - offset) / stride + 1, sources);
    const int64_t phase = (offset % stride + stride) % stride;
    const int64_t wanted = phase < targets ? (targets - 1 - phase) / stride + 1 : 0;
    bool leads = end > begin && end - begin == wanted;
    for (int64_t other = 0; leads && other < t; ++other)
      leads = !tap[other].leads || (offset - tap[other].offset) % stride != 0;
    tap[t] = {begin, larger(end, begin), offset, leads};
    led += leads;
  }
  return led == smaller(stride, targets);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
