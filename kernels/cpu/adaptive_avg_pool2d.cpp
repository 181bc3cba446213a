// adaptive_avg_pool2d, forward and backward: averages over windows that cover the input evenly. What
// computes them is average.h's.
#include "../adaptive_avg_pool2d.h"

#include "average.h"

namespace fastconv::cpu::FASTCONV_ISA {

void adaptive_avg_pool2d_forward(const AdaptiveAvgPool2dShape& shape, const void* input,
                                 void* output) {
  average(average_of(shape, false), input, output);
}
void adaptive_avg_pool2d_backward(const AdaptiveAvgPool2dShape& shape, const void* grad_output,
                                  void* grad_input) {
  average(average_of(shape, true), grad_output, grad_input);
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(adaptive_avg_pool2d_forward,
                  (const AdaptiveAvgPool2dShape& shape, const void* input, void* output),
                  (shape, input, output))
FASTCONV_DISPATCH(adaptive_avg_pool2d_backward,
                  (const AdaptiveAvgPool2dShape& shape, const void* grad_output, void* grad_input),
                  (shape, grad_output, grad_input))
