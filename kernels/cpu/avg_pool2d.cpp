// avg_pool2d, forward and backward: averages over sliding windows. What computes them is average.h's.
#include "../avg_pool2d.h"

#include "average.h"

namespace fastconv::cpu::FASTCONV_ISA {

void avg_pool2d_forward(const AvgPool2dShape& shape, const void* input, void* output) {
  average(average_of(shape, false), input, output);
}
void avg_pool2d_backward(const AvgPool2dShape& shape, const void* grad_output, void* grad_input) {
  average(average_of(shape, true), grad_output, grad_input);
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(avg_pool2d_forward,
                  (const AvgPool2dShape& shape, const void* input, void* output),
                  (shape, input, output))
FASTCONV_DISPATCH(avg_pool2d_backward,
                  (const AvgPool2dShape& shape, const void* grad_output, void* grad_input),
                  (shape, grad_output, grad_input))
