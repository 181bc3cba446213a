// What the checks of pooling share: which images pool, which windows are legal, how many there are.
#pragma once
#include "check.h"

#pragma GCC visibility push(default)
namespace fastconv {

// An image that pools: 3-d or 4-d, nothing but the batch may be empty; adaptive pooling does not mind
// a lack of channels.
void check_pool_image(const char* operation, const TensorView& input, bool adaptive = false);

// The window that the arguments describe: an empty stride is the kernel_size, a null dilation 1.
// Every number is legal and below 2^31; padding is at most half the window, as the device's torch
// measures it.
Window2d pool_window(const char* operation, Device device, const Value& kernel_size,
                     const Value& stride, const Value& padding, const Value* dilation);

// The number of window positions along one axis. With ceil_mode a last window may reach over the
// padding behind the input, but must begin in the input or the padding before it.
int64_t pooled_extent(int64_t extent, int64_t pad, int64_t taps, int64_t dilation, int64_t stride,
                      bool ceil_mode);

// Both extents of the output; refuses windows that do not fit the padded input.
Pair pooled_extents(const char* operation, const Window2d& window, int64_t H, int64_t W,
                    bool ceil_mode);

// The gradient of a pooling that never looks at its input again: what came in, batched, and what
// the input was.
struct PoolGradient {
  TensorView grad_output;
  int64_t input_size[4];
  bool unbatched, channels_last;
};
PoolGradient pool_gradient(const char* operation, const TensorView& grad_output,
                           const Value& input_size, bool channels_last, bool adaptive = false);

// Refuses a grad_output that is not of the output's extents.
void check_pool_output(const char* operation, const TensorView& grad_output, int64_t P, int64_t Q);

}  // namespace fastconv
#pragma GCC visibility pop
