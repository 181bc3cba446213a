// max_pool2d and its gradient: what is legal, what the result looks like, which kernel runs.
#include "kernels/max_pool2d.h"

#include <algorithm>

#include "pool.h"

namespace fastconv {
namespace {

constexpr const char *kName = "max_pool2d", *kBackward = "max_pool2d_backward";
constexpr int64_t kLargestWindow = INT32_MAX;
constexpr int64_t kMostTaps = 255;  // that a byte tells apart, and none

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

// Whether taps tell an element of the window apart.
bool has_taps(const Window2d& window) {
  return window.R <= kMostTaps && window.S <= kMostTaps && window.R * window.S <= kMostTaps;
}

enum class Places { kNone, kIndices, kTaps };

void forward(Call& call, Places places) {
  const TensorView& given = call.tensor(0);
  check_pool_image(kName, given);
  if (places == Places::kTaps && !is_floating(given.dtype))
    fail_dtype(kName, "float32, float64, float16 or bfloat16 input", given.dtype);
  const TensorView input = batched(given);
  MaxPool2dShape s = describe(call, input);
  s.where = places == Places::kTaps && has_taps(s.window) ? DType::kUInt8 : DType::kInt64;
  const int64_t sizes[4] = {s.N, s.C, s.P, s.Q};
  const bool unbatched = given.ndim == 3, channels_last = !unbatched && is_channels_last(input);
  const TensorView output =
      new_tensor(kName, call, sizes, channels_last, unbatched, s.dtype, input.device);
  call.results[0] = output;
  TensorView where;
  if (places != Places::kNone)
    call.results[1] = where =
        new_tensor(kName, call, sizes, channels_last, unbatched, s.where, input.device);
  if (is_empty(output)) return;

  s.input = strides_of(input);
  s.output = s.indices = strides_of(batched(output));
  if (input.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kName, call, input.device, max_pool2d_forward, s, input.data, output.data,
                         where.data);
  else
    cpu::max_pool2d_forward(s, input.data, output.data, where.data);
}

// The window of a gradient, if the caller gave one: then the output is of its extents, rounded down
// or up.
Window2d gradient_window(const Call& call, const MaxPool2dShape& s, const TensorView& grad_output) {
  if (call.ints(3).count == 0) {
    if (s.where == DType::kUInt8)
      fail(kBackward, "a kernel_size, to which indices of uint8 are taps", "none");
    return Window2d{};
  }
  const Window2d window = pool_window(kBackward, grad_output.device, call.ints(3), call.ints(4),
                                      call.ints(5), &call.ints(6));
  if (s.where == DType::kUInt8 && !has_taps(window)) {
    const int64_t extents[] = {window.R, window.S};
    fail(kBackward, "a window of at most 255 taps", text_of(2, extents));
  }
  if (s.H < 1 || s.W < 1) return window;
  const Pair up = pooled_extents(kBackward, window, s.H, s.W, true);
  const int64_t down_h =
      pooled_extent(s.H, window.pad_h, window.R, window.dilation_h, window.stride_h, false);
  const int64_t down_w =
      pooled_extent(s.W, window.pad_w, window.S, window.dilation_w, window.stride_w, false);
  if ((s.P != up.h && s.P != down_h) || (s.Q != up.w && s.Q != down_w))
    check_pool_output(kBackward, grad_output, up.h, up.w);
  return window;
}

void backward(Call& call) {
  const TensorView &grad_output = call.tensor(0), &indices = call.tensor(1);
  const Value& list = call.ints(2);
  if (grad_output.ndim != 3 && grad_output.ndim != 4)
    fail(kBackward, "3-d (unbatched) or 4-d (batched) grad_output",
         "size " + sizes_of(grad_output));
  if (!is_floating(grad_output.dtype))
    fail_dtype(kBackward, "float32, float64, float16 or bfloat16 grad_output", grad_output.dtype);
  if (indices.dtype != DType::kInt64 && indices.dtype != DType::kUInt8)
    fail(kBackward, "indices of dtype int64, or taps of uint8", name_of(indices.dtype));
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
  s.dtype = grad.dtype, s.where = indices.dtype;
  s.N = grad.sizes[0], s.C = grad.sizes[1], s.P = grad.sizes[2], s.Q = grad.sizes[3];
  s.H = list.ints[list.count - 2], s.W = list.ints[list.count - 1];
  s.window = gradient_window(call, s, grad_output);
  const TensorView grad_input =
      new_tensor(kBackward, call, {s.N, s.C, s.H, s.W}, !unbatched && is_channels_last(at),
                 unbatched, s.dtype, grad.device);
  call.results[0] = grad_input;
  if (is_empty(grad_input)) return;
  s.input = strides_of(batched(grad_input)), s.output = strides_of(grad),
  s.indices = strides_of(at);
  if (grad.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kBackward, call, grad.device, max_pool2d_backward, s, grad.data,
                         indices.data, grad_input.data);
  else
    cpu::max_pool2d_backward(s, grad.data, indices.data, grad_input.data);
}

#define FASTCONV_WINDOW                                                                        \
  "(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, " \
  "bool ceil_mode=False)"

const RegisterOperation kOperations[] = {
    {"max_pool2d" FASTCONV_WINDOW " -> Tensor", [](Call& call) { forward(call, Places::kNone); }},
    {"max_pool2d_with_indices" FASTCONV_WINDOW " -> (Tensor, Tensor)",
     [](Call& call) { forward(call, Places::kIndices); }},
    {"max_pool2d_with_taps" FASTCONV_WINDOW " -> (Tensor, Tensor)",
     [](Call& call) { forward(call, Places::kTaps); }},
    {"max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt[] input_size, "
     "int[2] kernel_size=[], int[2] stride=[], int[2] padding=0, int[2] dilation=1) -> Tensor",
     backward},
};

}  // namespace
}  // namespace fastconv
