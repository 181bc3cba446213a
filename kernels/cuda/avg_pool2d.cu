// avg_pool2d on CUDA, forward and backward: averages over sliding windows. What computes them is
// average.cu's.
#include "kernels/avg_pool2d.h"

#include "kernels/cuda/average.h"

namespace fastconv {
namespace cuda {

const char* avg_pool2d_forward(const AvgPool2dShape& shape, const void* input, void* output,
                               void* stream) {
  return average(average_of(shape, false), input, output, stream);
}
const char* avg_pool2d_backward(const AvgPool2dShape& shape, const void* grad_output,
                                void* grad_input, void* stream) {
  return average(average_of(shape, true), grad_output, grad_input, stream);
}

}  // namespace cuda
}  // namespace fastconv
