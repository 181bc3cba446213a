#include "convolution.h"

namespace fastconv {

void check_image(const char* operation, const char* name, const TensorView& tensor) {
  if (tensor.ndim != 3 && tensor.ndim != 4)
    fail(operation, std::string("3-d (unbatched) or 4-d (batched) ") + name,
         "size " + sizes_of(tensor));
  if (!is_floating(tensor.dtype))
    fail_dtype(operation, "float32, float64, float16 or bfloat16 tensors", tensor.dtype);
}

void check_weight(const char* operation, const char* name, const TensorView& tensor) {
  if (tensor.ndim != 4) fail(operation, std::string("4-d ") + name, "size " + sizes_of(tensor));
}

void check_weight_sizes(const char* operation, const int64_t* weight, int64_t groups) {
  if (groups < 1) fail(operation, "groups >= 1", std::to_string(groups));
  if (weight[0] < groups || weight[0] % groups != 0)
    fail(operation,
         "a weight whose size 0 is a positive multiple of groups=" + std::to_string(groups),
         text_of(4, weight));
  if (weight[2] < 1 || weight[3] < 1)
    fail(operation, "a weight with a window of at least 1 x 1", text_of(4, weight));
  // Views may be of any size; what is counted in 64 bits must stay far below it.
  check_counts(operation, {weight[0] + 64, weight[1] + 64, weight[2], weight[3]}, weight);
}

void check_input_sizes(const char* operation, const int64_t* input, int64_t channels,
                       const int64_t* weight, int64_t groups) {
  check_counts(operation, {input[0], input[1], input[2], input[3]}, input);
  if (input[1] != channels)
    fail(operation,
         "input with " + std::to_string(channels) + " channels, as weight of size " +
             text_of(4, weight) + " and groups=" + std::to_string(groups) + " ask for",
         text_of(4, input));
  if (input[2] < 1 || input[3] < 1)
    fail(operation, "input whose height and width are not 0", text_of(4, input));
}

void check_per_channel(const char* operation, const char* name, const TensorView& tensor,
                       int64_t channels, const TensorView& input) {
  if (tensor.ndim != 1 || tensor.sizes[0] != channels)
    fail(operation, std::string("1-d ") + name + " with " + std::to_string(channels) + " elements",
         "size " + sizes_of(tensor));
  check_same_dtype(operation, input, "input", tensor, name);
  check_same_device(operation, input, "input", tensor, name);
}

bool result_is_channels_last(const TensorView& input, const TensorView& weight) {
  return is_channels_last(input) || is_channels_last(weight);
}

}  // namespace fastconv
