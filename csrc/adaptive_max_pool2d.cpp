// adaptive_max_pool2d: what is legal, what the result looks like, which kernel runs. Its gradient is
// max_pool2d's.
#include "kernels/adaptive_max_pool2d.h"

#include "pool.h"

namespace fastconv {
namespace {

constexpr const char* kName = "adaptive_max_pool2d";

// An image that pools: 3-d or 4-d, of which the first axis alone may be empty.
void check_image(const TensorView& input) {
  bool legal = input.ndim == 3 || input.ndim == 4;
  for (int i = 1; legal && i < input.ndim; ++i) legal = input.sizes[i] != 0;
  if (!legal)
    fail(kName, "3-d (unbatched) or 4-d (batched) input, empty at most in its first axis",
         "size " + sizes_of(input));
}

AdaptiveMaxPool2dShape describe(const TensorView& input, const Value& output_size) {
  if (output_size.count != 2 || output_size.ints[0] < 0 || output_size.ints[1] < 0)
    fail(kName, "output_size of 2 values >= 0", text_of(output_size.count, output_size.ints));
  if (!is_floating(input.dtype))
    fail_dtype(kName, "float32, float64, float16 or bfloat16 tensors", input.dtype);
  check_counts(kName, {input.sizes[0], input.sizes[1], input.sizes[2], input.sizes[3]},
               input.sizes);
  AdaptiveMaxPool2dShape s{};
  s.dtype = input.dtype;
  s.N = input.sizes[0], s.C = input.sizes[1], s.H = input.sizes[2], s.W = input.sizes[3];
  s.P = output_size.ints[0], s.Q = output_size.ints[1];
  int64_t product;
  for (const auto& [inputs, outputs] : {Pair{s.H, s.P}, Pair{s.W, s.Q}})
    if (__builtin_mul_overflow(inputs + 1, outputs + 1, &product) || product >> 62)
      fail(kName, "extents of input and output whose product is below 2^62",
           std::to_string(inputs) + " and " + std::to_string(outputs));
  return s;
}

void forward(Call& call, bool with_indices) {
  const TensorView& given = call.tensor(0);
  check_image(given);
  const TensorView input = batched(given);
  AdaptiveMaxPool2dShape s = describe(input, call.ints(1));
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
  s.input = strides_of(input), s.output = s.indices = strides_of(batched(output));
  int64_t* places = static_cast<int64_t*>(indices.data);
  if (input.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kName, call, input.device, adaptive_max_pool2d_forward, s, input.data,
                         output.data, places);
  else
    cpu::adaptive_max_pool2d_forward(s, input.data, output.data, places);
}

const RegisterOperation kOperations[] = {
    {"adaptive_max_pool2d(Tensor input, SymInt[] output_size) -> Tensor",
     [](Call& call) { forward(call, false); }},
    {"adaptive_max_pool2d_with_indices(Tensor input, SymInt[] output_size) -> (Tensor, Tensor)",
     [](Call& call) { forward(call, true); }},
};

}  // namespace
}  // namespace fastconv
