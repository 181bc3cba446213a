// What the checks of conv2d and conv_transpose2d share.
#pragma once
#include "check.h"

namespace fastconv {

// An image of floating-point numbers, batched or not; a 4-d weight.
void check_image(const char* operation, const char* name, const TensorView& tensor);
void check_weight(const char* operation, const char* name, const TensorView& tensor);

// Sizes of a weight whose axis 0 is shared by the groups: the other image's channels are checked by
// whoever knows them.
void check_weight_sizes(const char* operation, const int64_t* weight, int64_t groups);

// The input's channels are those that the weight asks for, and its pixels are not none.
void check_input_sizes(const char* operation, const int64_t* input, int64_t channels,
                       const int64_t* weight, int64_t groups);

// One element per channel of the result, alike to `input`: a bias, a scale.
void check_per_channel(const char* operation, const char* name, const TensorView& tensor,
                       int64_t channels, const TensorView& input);

// Both of the input and the weight decide.
bool result_is_channels_last(const TensorView& input, const TensorView& weight);

}  // namespace fastconv
