// avg_pool2d and its gradient: what is legal, what the result looks like, which kernel runs.
#include "kernels/avg_pool2d.h"

#include <algorithm>

#include "pool.h"

namespace fastconv {
namespace {

constexpr const char* kName = "avg_pool2d";
constexpr const char* kBackward = "avg_pool2d_backward";
constexpr const char* kDTypes = "float32, float64, float16 or bfloat16 tensors";

// `at` is the place of kernel_size among the arguments, which the others follow.
AvgPool2dShape describe(const char* operation, const Call& call, const TensorView& any,
                        const int64_t* sizes, int at) {
  if (!is_floating(any.dtype)) fail_dtype(operation, kDTypes, any.dtype);
  check_counts(operation, {sizes[0], sizes[1], sizes[2], sizes[3]}, sizes);
  AvgPool2dShape s{};
  s.dtype = any.dtype;
  s.N = sizes[0], s.C = sizes[1], s.H = sizes[2], s.W = sizes[3];
  s.window = pool_window(operation, any.device, call.ints(at), call.ints(at + 1), call.ints(at + 2),
                         nullptr);
  const Pair extents = pooled_extents(operation, s.window, s.H, s.W, call.integer(at + 3));
  s.P = extents.h, s.Q = extents.w;
  s.count_include_pad = call.integer(at + 4);
  const int64_t* divisor = call.optional_integer(at + 5);
  if (divisor && *divisor == 0) fail(operation, "a divisor_override other than 0", "0");
  s.divisor_override = divisor ? *divisor : 0;
  return s;
}

void forward(Call& call) {
  const TensorView& given = call.tensor(0);
  check_pool_image(kName, given);
  const TensorView input = batched(given);
  AvgPool2dShape s = describe(kName, call, input, input.sizes, 1);
  const bool unbatched = given.ndim == 3;
  const TensorView output =
      new_tensor(kName, call, {s.N, s.C, s.P, s.Q}, !unbatched && is_channels_last(input),
                 unbatched, s.dtype, input.device);
  call.results[0] = output;
  if (is_empty(output)) return;
  s.input = strides_of(input), s.output = strides_of(batched(output));
  if (input.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kName, call, input.device, avg_pool2d_forward, s, input.data, output.data);
  else
    cpu::avg_pool2d_forward(s, input.data, output.data);
}

void backward(Call& call) {
  const TensorView& given = call.tensor(0);
  const PoolGradient gradient = pool_gradient(kBackward, given, call.ints(1), call.integer(2));
  const TensorView& grad = gradient.grad_output;
  AvgPool2dShape s = describe(kBackward, call, grad, gradient.input_size, 3);
  check_pool_output(kBackward, given, s.P, s.Q);
  const TensorView grad_input =
      new_tensor(kBackward, call, {s.N, s.C, s.H, s.W}, gradient.channels_last, gradient.unbatched,
                 s.dtype, grad.device);
  call.results[0] = grad_input;
  if (is_empty(grad_input)) return;
  s.input = strides_of(batched(grad_input)), s.output = strides_of(grad);
  if (grad.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kBackward, call, grad.device, avg_pool2d_backward, s, grad.data,
                         grad_input.data);
  else
    cpu::avg_pool2d_backward(s, grad.data, grad_input.data);
}

const RegisterOperation kOperations[] = {
    {"avg_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, "
     "bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor",
     forward},
    {"avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, bool channels_last, "
     "int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False, "
     "bool count_include_pad=True, int? divisor_override=None) -> Tensor",
     backward},
};

}  // namespace
}  // namespace fastconv
