// adaptive_avg_pool2d on CUDA, forward and backward: averages over windows that cover the input
// evenly. What computes them is average.cu's.
#include "kernels/adaptive_avg_pool2d.h"

#include "kernels/cuda/average.h"

namespace fastconv {
namespace cuda {

const char* adaptive_avg_pool2d_forward(const AdaptiveAvgPool2dShape& shape, const void* input,
                                        void* output, void* stream) {
  return average(average_of(shape, false), input, output, stream);
}
const char* adaptive_avg_pool2d_backward(const AdaptiveAvgPool2dShape& shape,
                                         const void* grad_output, void* grad_input, void* stream) {
  return average(average_of(shape, true), grad_output, grad_input, stream);
}

}  // namespace cuda
}  // namespace fastconv
