// conv2d's gradient by an input in NCHW where windows are few and the weight is large: the weight is
// read once, in its own order, each piece packed where it is used. Lanes are elements of the weight that
// follow each other, and what they hold is added where the window lies:
//
//   products[m][c, r, s] = sum_k grad_output[m, k] * weight[k][c, r, s]           m = (n, p, q)
//   grad_input[n, c, p * stride_h - pad_h + r * dilation_h, q * stride_w - pad_w + s]
//     += products[m][c, r, s]
//
// The phases of conv2d.cpp instead pack the whole weight into memory, and leave lanes empty where a phase
// has few pixels. One task = a block of input channels of a group, all windows; they are added in the
// order of m, so that the sums do not depend on blocks or threads.
// Cost: 2 * N*P*Q * C/G*R*S * K flops; N*P*Q * C*R*S additions.
#pragma once
#include "../conv2d.h"
#include "isa.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Whether that is faster, and layouts allow it.
bool windows_pay(const Conv2dShape& shape);

// `bias`: of the input's channels, or null.
void input_grad_windows(const Conv2dShape& shape, const float* grad_output, const float* weight,
                        const float* bias, float* grad_input);
void input_grad_windows(const Conv2dShape& shape, const double* grad_output, const double* weight,
                        const double* bias, double* grad_input);

}  // namespace fastconv::cpu::FASTCONV_ISA
