// max_pool2d and its gradient: what is legal, what the result looks like, which kernel runs.
#include "kernels/max_pool2d.h"

#include <algorithm>

#include "check.h"

namespace fastconv {
namespace {

constexpr const char* kName = "max_pool2d";
constexpr int64_t kLargestWindow = INT32_MAX;

// The number of window positions along one axis. With ceil_mode a last window may reach over the
// padding behind the input, but must begin in the input or the padding before it.
int64_t output_extent(int64_t extent, int64_t pad, int64_t taps, int64_t dilation, int64_t stride,
                      bool ceil_mode) {
  const int64_t room = extent + 2 * pad - (taps - 1) * dilation - 1;
  int64_t positions = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (room < 0) positions = ceil_mode && room + stride - 1 >= 0 ? 1 : 0;
  if (ceil_mode && (positions - 1) * stride >= extent + pad) --positions;
  return positions;
}

// An image that pools: 3-d or 4-d, nothing but the batch may be empty.
void check_image(const TensorView& input) {
  bool legal = input.ndim == 3 || input.ndim == 4;
  for (int i = input.ndim == 4 ? 1 : 0; i < input.ndim; ++i) legal = legal && input.sizes[i] != 0;
  if (!legal)
    fail(kName, "3-d (unbatched) or 4-d (batched) input, empty at most in its batch",
         "size " + sizes_of(input));
}

MaxPool2dShape describe(const Call& call, const TensorView& input) {
  const int64_t* sizes = input.sizes;
  check_counts(kName, {sizes[0], sizes[1], sizes[2], sizes[3]}, sizes);
  const Pair kernel = pair_of(kName, "kernel_size", call.ints(1));
  const Pair stride = call.ints(2).count == 0 ? kernel : pair_of(kName, "stride", call.ints(2));
  const Pair padding = pair_of(kName, "padding", call.ints(3)),
             dilation = pair_of(kName, "dilation", call.ints(4));
  check_range(kName, "kernel_size", kernel, 1);
  check_range(kName, "stride", stride, 1);
  check_range(kName, "padding", padding, 0);
  check_range(kName, "dilation", dilation, 1);
  for (const Pair& pair : {kernel, stride, padding, dilation})
    if (std::max(pair.h, pair.w) > kLargestWindow)
      fail(kName, "parameters below 2^31", std::to_string(std::max(pair.h, pair.w)));
  const int64_t extent_h = (kernel.h - 1) * dilation.h + 1,
                extent_w = (kernel.w - 1) * dilation.w + 1;
  // torch's CPU kernels compare with the window itself, its CUDA kernels with the dilated one.
  const bool on_cpu = input.device.type == DeviceType::kCpu;
  const int64_t half[] = {(on_cpu ? kernel.h : extent_h) / 2, (on_cpu ? kernel.w : extent_w) / 2};
  if (padding.h > half[0] || padding.w > half[1]) {
    const int64_t given[] = {padding.h, padding.w};
    fail(kName, "padding of at most half the window, " + text_of(2, half), text_of(2, given));
  }
  MaxPool2dShape s{};
  s.dtype = input.dtype;
  s.N = input.sizes[0], s.C = input.sizes[1], s.H = input.sizes[2], s.W = input.sizes[3];
  s.window = {kernel.h, kernel.w, stride.h, stride.w, padding.h, padding.w, dilation.h, dilation.w};
  const bool ceil_mode = call.integer(5);
  s.P = output_extent(s.H, padding.h, kernel.h, dilation.h, stride.h, ceil_mode);
  s.Q = output_extent(s.W, padding.w, kernel.w, dilation.w, stride.w, ceil_mode);
  if (s.P < 1 || s.Q < 1) {
    const int64_t extent[] = {s.H, s.W}, window[] = {extent_h, extent_w};
    fail(kName, "a dilated window that fits the padded input of " + text_of(2, extent),
         text_of(2, window));
  }
  if (std::min(kernel.h, s.H) * std::min(kernel.w, s.W) > kLargestWindow)
    fail(kName, "a window over fewer than 2^31 elements of input", "size " + sizes_of(input));
  return s;
}

void forward(Call& call, bool with_indices) {
  const TensorView& given = call.tensor(0);
  check_image(given);
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
