// max_pool2d and its gradient: what is legal, what the result looks like, which kernel runs.
#include "kernels/max_pool2d.h"

#include <algorithm>

#include "pool.h"

namespace fastconv {
namespace {

constexpr const char* kName = "max_pool2d";
constexpr int64_t kLargestWindow = INT32_MAX;

MaxPool2dShape describe(const Call& call, const TensorView& input) {
  const int64_t* sizes = input.sizes;
  check_counts(kName, {sizes[0], sizes[1], sizes[2], sizes[3]}, sizes);
  MaxPool2dShape s{};
  s.dtype = input.dtype;
  s.N = input.sizes[0], s.C = input.sizes[1], s.H = input.sizes[2], s.W = input.sizes[3];
  s.window =
      pool_window(kName, input.device, call.ints(1), call.ints(2), call.ints(3), &call.ints(4));
  const Pair extents = pooled_extents(kName, s.window, s.H, s.W, call.integer(5));
  s.P = extents.h, s.Q = extents.w;
  if (std::min(s.window.R, s.H) * std::min(s.window.S, s.W) > kLargestWindow)
    fail(kName, "a window over fewer than 2^31 elements of input", "size " + sizes_of(input));
  return s;
}

void forward(Call& call, bool with_indices) {
  const TensorView& given = call.tensor(0);
  check_pool_image(kName, given);
  const TensorView input = batched(given);
  MaxPool2dShape s = describe(call, input);
  const int64_t sizes[4] = {s.N, s.C, s.P, s.Q};
  const bool unbatched = given.ndim == 3, channels_last = !unbatched && is_channels_last(input);
  const TensorView output =
      new_tensor(kName, call, sizes, channels_last, unbatched, s.dtype, input.device);
  call.results[0] = output;
  TensorView indices;
  if (with_indices)
    call.results[1] = indices =
        new_tensor(kName, call, sizes, channels_last, unbatched, DType::kInt64, input.device);
  if (is_empty(output)) return;

  s.input = strides_of(input);
  s.output = s.indices = strides_of(batched(output));
  int64_t* indices_data = static_cast<int64_t*>(indices.data);
  if (input.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kName, call, input.device, max_pool2d_forward, s, input.data, output.data,
                         indices_data);
  else
    cpu::max_pool2d_forward(s, input.data, output.data, indices_data);
}

void backward(Call& call) {
  constexpr const char* kBackward = "max_pool2d_backward";
  const TensorView &grad_output = call.tensor(0), &indices = call.tensor(1);
  const Value& list = call.ints(2);
  if (grad_output.ndim != 3 && grad_output.ndim != 4)
    fail(kBackward, "3-d (unbatched) or 4-d (batched) grad_output",
         "size " + sizes_of(grad_output));
  if (!is_floating(grad_output.dtype))
    fail_dtype(kBackward, "float32, float64, float16 or bfloat16 grad_output", grad_output.dtype);
  if (indices.dtype != DType::kInt64)
    fail(kBackward, "indices of dtype int64", name_of(indices.dtype));
  check_same_device(kBackward, grad_output, "grad_output", indices, "indices");
  if (indices.ndim != grad_output.ndim ||
      !std::equal(indices.sizes, indices.sizes + indices.ndim, grad_output.sizes))
    fail(kBackward, "indices of the size of grad_output, " + sizes_of(grad_output),
         sizes_of(indices));
  const int planes = grad_output.ndim - 2;
  if (list.count != grad_output.ndim ||
      !std::equal(list.ints, list.ints + planes, grad_output.sizes) ||
      *std::min_element(list.ints, list.ints + list.count) < 0)
    fail(kBackward,
         "input_size with the batch and channels of grad_output, " + sizes_of(grad_output),
         text_of(list.count, list.ints));

  const TensorView grad = batched(grad_output), at = batched(indices);
  const bool unbatched = grad_output.ndim == 3;
  MaxPool2dShape s{};
  s.dtype = grad.dtype;
  s.N = grad.sizes[0], s.C = grad.sizes[1], s.P = grad.sizes[2], s.Q = grad.sizes[3];
  s.H = list.ints[list.count - 2], s.W = list.ints[list.count - 1];
  const TensorView grad_input =
      new_tensor(kBackward, call, {s.N, s.C, s.H, s.W}, !unbatched && is_channels_last(at),
                 unbatched, s.dtype, grad.device);
  call.results[0] = grad_input;
  if (is_empty(grad_input)) return;
  s.window = {1, 1, 1, 1, 0, 0, 1, 1};
  s.input = strides_of(batched(grad_input)), s.output = strides_of(grad),
  s.indices = strides_of(at);
  const int64_t* indices_data = static_cast<const int64_t*>(indices.data);
  if (grad.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kBackward, call, grad.device, max_pool2d_backward, s, grad.data,
                         indices_data, grad_input.data);
  else
    cpu::max_pool2d_backward(s, grad.data, indices_data, grad_input.data);
}

const RegisterOperation kOperations[] = {
    {"max_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] "
     "dilation=1, "
     "bool ceil_mode=False) -> Tensor",
     [](Call& call) { forward(call, false); }},
    {"max_pool2d_with_indices(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] "
     "padding=0, "
     "int[2] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)",
     [](Call& call) { forward(call, true); }},
    {"max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt[] input_size) -> Tensor",
     backward},
};

}  // namespace
}  // namespace fastconv
