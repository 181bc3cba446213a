// The operations by names that ctypes can find. Shapes are passed as they are:
// ../test_cuda_emulation.py mirrors them.
#include "kernels/adaptive_avg_pool2d.h"
#include "kernels/adaptive_max_pool2d.h"
#include "kernels/avg_pool2d.h"
#include "kernels/conv2d.h"
#include "kernels/max_pool2d.h"
#include "kernels/max_unpool2d.h"

namespace cuda = fastconv::cuda;

extern "C" {

const char* emulate_conv2d(const fastconv::Conv2dShape* shape, const void* input,
                           const void* weight, const void* bias, void* output) {
  return cuda::conv2d_forward(*shape, input, weight, bias, output, nullptr);
}
const char* emulate_conv2d_input_grad(const fastconv::Conv2dShape* shape, const void* grad_output,
                                      const void* weight, const void* bias, void* grad_input) {
  return cuda::conv2d_input_grad(*shape, grad_output, weight, bias, grad_input, nullptr);
}
const char* emulate_conv2d_weight_grad(const fastconv::Conv2dShape* shape, const void* grad_output,
                                       const void* input, void* grad_weight) {
  return cuda::conv2d_weight_grad(*shape, grad_output, input, grad_weight, nullptr);
}
const char* emulate_max_pool2d(const fastconv::MaxPool2dShape* shape, const void* input,
                               void* output, void* where) {
  return cuda::max_pool2d_forward(*shape, input, output, where, nullptr);
}
const char* emulate_max_pool2d_backward(const fastconv::MaxPool2dShape* shape,
                                        const void* grad_output, const void* where,
                                        void* grad_input) {
  return cuda::max_pool2d_backward(*shape, grad_output, where, grad_input, nullptr);
}

const char* emulate_adaptive_max_pool2d(const fastconv::AdaptiveMaxPool2dShape* shape,
                                        const void* input, void* output, int64_t* indices) {
  return cuda::adaptive_max_pool2d_forward(*shape, input, output, indices, nullptr);
}
const char* emulate_max_unpool2d(const fastconv::MaxUnpool2dShape* shape, const void* input,
                                 const int64_t* indices, void* output) {
  return cuda::max_unpool2d_forward(*shape, input, indices, output, nullptr);
}
const char* emulate_max_unpool2d_backward(const fastconv::MaxUnpool2dShape* shape,
                                          const void* grad_output, const int64_t* indices,
                                          void* grad_input) {
  return cuda::max_unpool2d_backward(*shape, grad_output, indices, grad_input, nullptr);
}

const char* emulate_avg_pool2d(const fastconv::AvgPool2dShape* shape, const void* input,
                               void* output) {
  return cuda::avg_pool2d_forward(*shape, input, output, nullptr);
}
const char* emulate_avg_pool2d_backward(const fastconv::AvgPool2dShape* shape,
                                        const void* grad_output, void* grad_input) {
  return cuda::avg_pool2d_backward(*shape, grad_output, grad_input, nullptr);
}
const char* emulate_adaptive_avg_pool2d(const fastconv::AdaptiveAvgPool2dShape* shape,
                                        const void* input, void* output) {
  return cuda::adaptive_avg_pool2d_forward(*shape, input, output, nullptr);
}
const char* emulate_adaptive_avg_pool2d_backward(const fastconv::AdaptiveAvgPool2dShape* shape,
                                                 const void* grad_output, void* grad_input) {
  return cuda::adaptive_avg_pool2d_backward(*shape, grad_output, grad_input, nullptr);
}

}  // extern "C"
