#include "pool.h"

#include <algorithm>

namespace fastconv {
namespace {

constexpr int64_t kLargestWindow = INT32_MAX;

Pair dilated(const Window2d& window) {
  return {(window.R - 1) * window.dilation_h + 1, (window.S - 1) * window.dilation_w + 1};
}

}  // namespace

void check_pool_image(const char* operation, const TensorView& input, bool adaptive) {
  bool legal = input.ndim == 3 || input.ndim == 4;
  for (int i = input.ndim - (adaptive ? 2 : 3); legal && i < input.ndim; ++i)
    legal = input.sizes[i] != 0;
  if (!legal)
    fail(operation,
         std::string("3-d (unbatched) or 4-d (batched) input, empty at most in its batch") +
             (adaptive ? " or channels" : ""),
         "size " + sizes_of(input));
}

Window2d pool_window(const char* operation, Device device, const Value& kernel_size,
                     const Value& stride, const Value& padding, const Value* dilation) {
  const Pair kernel = pair_of(operation, "kernel_size", kernel_size);
  const Pair step = stride.count == 0 ? kernel : pair_of(operation, "stride", stride);
  const Pair pad = pair_of(operation, "padding", padding);
  const Pair distance = dilation ? pair_of(operation, "dilation", *dilation) : Pair{1, 1};
  check_range(operation, "kernel_size", kernel, 1);
  check_range(operation, "stride", step, 1);
  check_range(operation, "padding", pad, 0);
  check_range(operation, "dilation", distance, 1);
  for (const Pair& pair : {kernel, step, pad, distance})
    if (std::max(pair.h, pair.w) > kLargestWindow)
      fail(operation, "parameters below 2^31", std::to_string(std::max(pair.h, pair.w)));
  const Window2d window{kernel.h, kernel.w, step.h, step.w, pad.h, pad.w, distance.h, distance.w};
  // torch's CPU kernels compare with the window itself, its CUDA kernels with the dilated one.
  const Pair extent = device.type == DeviceType::kCpu ? kernel : dilated(window);
  const int64_t half[] = {extent.h / 2, extent.w / 2}, given[] = {pad.h, pad.w};
  if (pad.h > half[0] || pad.w > half[1])
    fail(operation, "padding of at most half the window, " + text_of(2, half), text_of(2, given));
  return window;
}

int64_t pooled_extent(int64_t extent, int64_t pad, int64_t taps, int64_t dilation, int64_t stride,
                      bool ceil_mode) {
  const int64_t room = extent + 2 * pad - (taps - 1) * dilation - 1;
  int64_t positions = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (room < 0) positions = ceil_mode && room + stride - 1 >= 0 ? 1 : 0;
  if (ceil_mode && (positions - 1) * stride >= extent + pad) --positions;
  return positions;
}

Pair pooled_extents(const char* operation, const Window2d& window, int64_t H, int64_t W,
                    bool ceil_mode) {
  const Pair result{
      pooled_extent(H, window.pad_h, window.R, window.dilation_h, window.stride_h, ceil_mode),
      pooled_extent(W, window.pad_w, window.S, window.dilation_w, window.stride_w, ceil_mode)};
  if (result.h < 1 || result.w < 1) {
    const Pair extent = dilated(window);
    const int64_t given[] = {H, W}, needed[] = {extent.h, extent.w};
    fail(operation, "a dilated window that fits the padded input of " + text_of(2, given),
         text_of(2, needed));
  }
  return result;
}

PoolGradient pool_gradient(const char* operation, const TensorView& grad_output,
                           const Value& input_size, bool channels_last, bool adaptive) {
  const int ndim = grad_output.ndim;
  if (ndim != 3 && ndim != 4)
    fail(operation, "3-d (unbatched) or 4-d (batched) grad_output",
         "size " + sizes_of(grad_output));
  const int64_t* sizes = input_size.ints;
  if (input_size.count != ndim || !std::equal(sizes, sizes + ndim - 2, grad_output.sizes) ||
      std::any_of(sizes + ndim - (adaptive ? 2 : 3), sizes + ndim,
                  [](int64_t size) { return size < 1; }))
    fail(operation,
         "input_size with the batch and channels of grad_output, " + sizes_of(grad_output) +
             ", and rows and columns",
         text_of(input_size.count, sizes));
  PoolGradient gradient{batched(grad_output), {1}, ndim == 3, channels_last && ndim == 4};
  std::copy(sizes, sizes + ndim, gradient.input_size + 4 - ndim);
  return gradient;
}

void check_pool_output(const char* operation, const TensorView& grad_output, int64_t P, int64_t Q) {
  const int64_t* planes = grad_output.sizes + grad_output.ndim - 2;
  if (planes[0] != P || planes[1] != Q) {
    const int64_t wanted[] = {P, Q};
    fail(operation, "grad_output with planes of the output's size, " + text_of(2, wanted),
         sizes_of(grad_output));
  }
}

}  // namespace fastconv
