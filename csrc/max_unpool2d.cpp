// max_unpool2d and its gradient: what is legal, what the result looks like, which kernel runs.
#include "kernels/max_unpool2d.h"

#include <algorithm>

#include "pool.h"

namespace fastconv {
namespace {

constexpr const char *kName = "max_unpool2d", *kBackward = "max_unpool2d_backward";
constexpr const char* kDTypes = "float32, float64, float16 or bfloat16 tensors";

void check_indices(const char* operation, const TensorView& indices) {
  if (indices.dtype != DType::kInt64)
    fail(operation, "indices of dtype int64", name_of(indices.dtype));
}

void check_places(const char* operation, const MaxUnpool2dShape& s,
                  const MaxUnpool2dMistake& mistake) {
  if (mistake.found)
    fail(operation, "indices in [0, " + std::to_string(s.H * s.W) + ")",
         std::to_string(mistake.index));
}

MaxUnpool2dShape describe(const char* operation, const TensorView& small, int64_t H, int64_t W) {
  MaxUnpool2dShape s{};
  s.dtype = small.dtype;
  s.N = small.sizes[0], s.C = small.sizes[1], s.P = small.sizes[2], s.Q = small.sizes[3];
  s.H = H, s.W = W;
  const int64_t sizes[4] = {s.N, s.C, H, W};
  check_counts(operation, {s.N, s.C, H, W}, sizes);
  check_counts(operation, {s.N, s.C, s.P, s.Q}, small.sizes);
  return s;
}

void forward(Call& call) {
  const TensorView &given = call.tensor(0), &indices = call.tensor(1);
  check_indices(kName, indices);
  const Value& size = call.ints(2);
  if (size.count != 2 || size.ints[0] < 0 || size.ints[1] < 0)
    fail(kName, "output_size of 2 values >= 0", text_of(size.count, size.ints));
  check_pool_image(kName, given);
  if (indices.ndim != given.ndim ||
      !std::equal(indices.sizes, indices.sizes + indices.ndim, given.sizes))
    fail(kName, "indices of the size of input, " + sizes_of(given), sizes_of(indices));
  check_same_device(kName, given, "input", indices, "indices");
  if (!is_floating(given.dtype)) fail_dtype(kName, kDTypes, given.dtype);

  const TensorView input = batched(given), at = batched(indices);
  const bool unbatched = given.ndim == 3;
  MaxUnpool2dShape s = describe(kName, input, size.ints[0], size.ints[1]);
  const TensorView output =
      new_tensor(kName, call, {s.N, s.C, s.H, s.W}, !unbatched && is_channels_last(input),
                 unbatched, s.dtype, input.device);
  call.results[0] = output;
  if (is_empty(output)) return;
  s.input = strides_of(input), s.indices = strides_of(at), s.output = strides_of(batched(output));
  const int64_t* places = static_cast<const int64_t*>(indices.data);
  if (input.device.type == DeviceType::kCuda) {
    FASTCONV_LAUNCH_CUDA(kName, call, input.device, max_unpool2d_forward, s, input.data, places,
                         output.data);
    return;
  }
  MaxUnpool2dMistake mistake;
  cpu::max_unpool2d_forward(s, input.data, places, output.data, &mistake);
  check_places(kName, s, mistake);
}

void backward(Call& call) {
  const TensorView &given = call.tensor(0), &indices = call.tensor(1);
  check_indices(kBackward, indices);
  if (given.ndim != 3 && given.ndim != 4)
    fail(kBackward, "3-d (unbatched) or 4-d (batched) grad_output", "size " + sizes_of(given));
  if (indices.ndim != given.ndim ||
      !std::equal(indices.sizes, indices.sizes + indices.ndim - 2, given.sizes))
    fail(kBackward, "indices with the batch and channels of grad_output, " + sizes_of(given),
         sizes_of(indices));
  check_same_device(kBackward, given, "grad_output", indices, "indices");
  if (!is_floating(given.dtype)) fail_dtype(kBackward, kDTypes, given.dtype);

  const TensorView grad = batched(given), at = batched(indices);
  const bool unbatched = given.ndim == 3;
  MaxUnpool2dShape s = describe(kBackward, at, grad.sizes[2], grad.sizes[3]);
  s.dtype = grad.dtype;
  const TensorView grad_input =
      new_tensor(kBackward, call, {s.N, s.C, s.P, s.Q}, !unbatched && is_channels_last(at),
                 unbatched, s.dtype, grad.device);
  call.results[0] = grad_input;
  if (is_empty(grad_input)) return;
  s.input = strides_of(batched(grad_input)), s.indices = strides_of(at);
  s.output = strides_of(grad);
  const int64_t* places = static_cast<const int64_t*>(indices.data);
  if (grad.device.type == DeviceType::kCuda) {
    FASTCONV_LAUNCH_CUDA(kBackward, call, grad.device, max_unpool2d_backward, s, grad.data, places,
                         grad_input.data);
    return;
  }
  MaxUnpool2dMistake mistake;
  cpu::max_unpool2d_backward(s, grad.data, places, grad_input.data, &mistake);
  check_places(kBackward, s, mistake);
}

const RegisterOperation kOperations[] = {
    {"max_unpool2d(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor", forward},
    {"max_unpool2d_backward(Tensor grad_output, Tensor indices) -> Tensor", backward},
};

}  // namespace
}  // namespace fastconv
