// adaptive_avg_pool2d and its gradient: what is legal, what the result looks like, which kernel
// runs.
#include "kernels/adaptive_avg_pool2d.h"

#include "pool.h"

namespace fastconv {
namespace {

constexpr const char* kName = "adaptive_avg_pool2d";
constexpr const char* kBackward = "adaptive_avg_pool2d_backward";
constexpr const char* kDTypes = "float32, float64, float16 or bfloat16 tensors";

AdaptiveAvgPool2dShape describe(const char* operation, const TensorView& any, const int64_t* sizes,
                                int64_t P, int64_t Q) {
  if (!is_floating(any.dtype)) fail_dtype(operation, kDTypes, any.dtype);
  check_counts(operation, {sizes[0], sizes[1], sizes[2], sizes[3]}, sizes);
  AdaptiveAvgPool2dShape s{};
  s.dtype = any.dtype;
  s.N = sizes[0], s.C = sizes[1], s.H = sizes[2], s.W = sizes[3];
  s.P = P, s.Q = Q;
  int64_t product;
  for (const auto& [inputs, outputs] : {Pair{s.H, P}, Pair{s.W, Q}})
    if (__builtin_mul_overflow(inputs + 1, outputs + 1, &product) || product >> 62)
      fail(operation, "extents of input and output whose product is below 2^62",
           std::to_string(inputs) + " and " + std::to_string(outputs));
  return s;
}

void forward(Call& call) {
  const TensorView& given = call.tensor(0);
  check_pool_image(kName, given, true);
  const TensorView input = batched(given);
  const Value& output_size = call.ints(1);
  if (output_size.count != 2 || output_size.ints[0] < 0 || output_size.ints[1] < 0)
    fail(kName, "output_size of 2 values >= 0", text_of(output_size.count, output_size.ints));
  AdaptiveAvgPool2dShape s =
      describe(kName, input, input.sizes, output_size.ints[0], output_size.ints[1]);
  const bool unbatched = given.ndim == 3;
  const TensorView output =
      new_tensor(kName, call, {s.N, s.C, s.P, s.Q}, !unbatched && is_channels_last(input),
                 unbatched, s.dtype, input.device);
  call.results[0] = output;
  if (is_empty(output)) return;
  s.input = strides_of(input), s.output = strides_of(batched(output));
  if (input.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kName, call, input.device, adaptive_avg_pool2d_forward, s, input.data,
                         output.data);
  else
    cpu::adaptive_avg_pool2d_forward(s, input.data, output.data);
}

void backward(Call& call) {
  const TensorView& given = call.tensor(0);
  const PoolGradient gradient =
      pool_gradient(kBackward, given, call.ints(1), call.integer(2), true);
  const TensorView& grad = gradient.grad_output;
  AdaptiveAvgPool2dShape s =
      describe(kBackward, grad, gradient.input_size, grad.sizes[2], grad.sizes[3]);
  const TensorView grad_input =
      new_tensor(kBackward, call, {s.N, s.C, s.H, s.W}, gradient.channels_last, gradient.unbatched,
                 s.dtype, grad.device);
  call.results[0] = grad_input;
  if (is_empty(grad_input)) return;
  s.input = strides_of(batched(grad_input)), s.output = strides_of(grad);
  if (grad.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kBackward, call, grad.device, adaptive_avg_pool2d_backward, s, grad.data,
                         grad_input.data);
  else
    cpu::adaptive_avg_pool2d_backward(s, grad.data, grad_input.data);
}

const RegisterOperation kOperations[] = {
    {"adaptive_avg_pool2d(Tensor input, SymInt[] output_size) -> Tensor", forward},
    {"adaptive_avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, bool channels_last) -> "
     "Tensor",
     backward},
};

}  // namespace
}  // namespace fastconv
