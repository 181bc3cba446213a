// conv2d and its two gradients: what is legal, what the result looks like, which kernel runs.
#include "kernels/conv2d.h"

#include <algorithm>

#include "convolution.h"

namespace fastconv {
namespace {

// Stride, padding, dilation and groups as every conv2d operation takes them.
struct Parameters {
  Pair stride, dilation;
  int64_t top, bottom, left, right;
  int64_t groups;

  // Arguments `first` ... `first + 3` of the call.
  Parameters(const char* operation, const Call& call, int first)
      : stride(pair_of(operation, "stride", call.ints(first))),
        dilation(pair_of(operation, "dilation", call.ints(first + 2))),
        groups(call.integer(first + 3)) {
    const Value& padding = call.ints(first + 1);
    if (padding.count == 4) {
      top = padding.ints[0], bottom = padding.ints[1], left = padding.ints[2],
      right = padding.ints[3];
    } else {
      const Pair pair = pair_of(operation, "padding", padding);
      top = bottom = pair.h, left = right = pair.w;
    }
    check_range(operation, "stride", stride, 1);
    check_range(operation, "padding", {top, left}, 0);
    check_range(operation, "padding", {bottom, right}, 0);
    check_range(operation, "dilation", dilation, 1);
  }
};

// The number of window positions along one axis.
int64_t output_extent(const char* operation, const char* axis, int64_t extent, int64_t before,
                      int64_t after, int64_t taps, int64_t dilation, int64_t stride) {
  int64_t reach;
  const int64_t padded = extent + before + after;
  if (__builtin_mul_overflow(taps - 1, dilation, &reach) || reach >= padded)
    fail(operation,
         std::string("a window no larger than the padded input's ") + axis + ", " +
             std::to_string(padded),
         std::to_string(taps) + " taps at dilation " + std::to_string(dilation));
  return (padded - reach - 1) / stride + 1;
}

// Checks sizes and fills everything but strides. `input` and `weight` are [N, C, H, W] and [K, C/G,
// R, S].
Conv2dShape describe(const char* operation, const Parameters& p, const int64_t* input,
                     const int64_t* weight, DType dtype) {
  Conv2dShape s{};
  s.dtype = dtype;
  s.N = input[0], s.C = input[1], s.H = input[2], s.W = input[3];
  s.K = weight[0];
  s.G = p.groups;
  s.window = {weight[2], weight[3], p.stride.h,   p.stride.w,
              p.top,     p.left,    p.dilation.h, p.dilation.w};
  check_weight_sizes(operation, weight, s.G);
  check_input_sizes(operation, input, weight[1] * s.G, weight, s.G);
  s.P = output_extent(operation, "height", s.H, p.top, p.bottom, s.window.R, p.dilation.h,
                      p.stride.h);
  s.Q =
      output_extent(operation, "width", s.W, p.left, p.right, s.window.S, p.dilation.w, p.stride.w);
  return s;
}

void check_sizes(const char* operation, const char* name, const TensorView& tensor,
                 const int64_t (&sizes)[4]) {
  if (!std::equal(sizes, sizes + 4, tensor.sizes))
    fail(operation, std::string(name) + " of size " + text_of(4, sizes), sizes_of(tensor));
}

// The sizes of an image given as a list of 3 or 4.
void read_image_sizes(const char* operation, const Value& list, int ndim, int64_t (&sizes)[4]) {
  if (list.count != ndim)
    fail(operation, "input_size of " + std::to_string(ndim) + " values, as grad_output has",
         text_of(list.count, list.ints));
  sizes[0] = 1;
  std::copy(list.ints, list.ints + ndim, sizes + 4 - ndim);
  if (*std::min_element(sizes, sizes + 4) < 0)
    fail(operation, "input_size >= 0", text_of(list.count, list.ints));
}

// A forward call, checked and described.
struct Forward {
  const char* name;
  const TensorView &given, &weight;
  TensorView input;
  Conv2dShape shape;

  // The geometry begins with argument `first`.
  Forward(const char* operation, const Call& call, int first)
      : name(operation), given(call.tensor(0)), weight(call.tensor(1)) {
    check_image(name, "input", given);
    check_weight(name, "weight", weight);
    check_same_dtype(name, given, "input", weight, "weight");
    check_same_device(name, given, "input", weight, "weight");
    const Parameters parameters(name, call, first);
    input = batched(given);
    shape = describe(name, parameters, input.sizes, weight.sizes, input.dtype);
    shape.input = strides_of(input), shape.weight = strides_of(weight);
  }

  const void* add_bias(const TensorView* bias) {
    if (!bias) return nullptr;
    check_per_channel(name, "bias", *bias, shape.K, given);
    shape.bias_stride = bias->strides[0];
    return bias->data;
  }

  Epilogue read_epilogue(const TensorView* scale, const TensorView* residual,
                         int64_t activation) const {
    constexpr int64_t kCount = static_cast<int64_t>(Activation::kCount);
    if (activation < 0 || activation >= kCount)
      fail(name, "activation in [0, " + std::to_string(kCount) + ")", std::to_string(activation));
    Epilogue epilogue;
    epilogue.activation = static_cast<Activation>(activation);
    if (scale) {
      check_per_channel(name, "scale", *scale, shape.K, given);
      epilogue.scale = scale->data, epilogue.scale_stride = scale->strides[0];
    }
    if (residual) {
      check_residual(*residual);
      epilogue.residual = residual->data;
    }
    return epilogue;
  }

  void check_residual(const TensorView& residual) const {
    const Conv2dShape& s = shape;
    const int64_t sizes[4] = {s.N, s.K, s.P, s.Q};
    if (residual.ndim != given.ndim)
      fail(name, "residual of " + std::to_string(given.ndim) + " dimensions, as input has",
           "size " + sizes_of(residual));
    const TensorView image = batched(residual);
    check_sizes(name, "residual", image, sizes);
    check_same_dtype(name, given, "input", residual, "residual");
    check_same_device(name, given, "input", residual, "residual");
    const Strides4 wanted = new_strides(sizes, is_channels_last());
    for (int axis = 0; axis < 4; ++axis)
      if (sizes[axis] > 1 && image.strides[axis] != wanted.s[axis] && !is_empty(image))
        fail(name, "residual laid out as the output, strides " + text_of(4, wanted.s),
             "strides " + text_of(4, image.strides));
  }

  bool is_channels_last() const { return result_is_channels_last(input, weight); }

  void run(Call& call, const void* bias, const void* prepared, const Epilogue* epilogue = nullptr) {
    const Conv2dShape& s = shape;
    const TensorView output = new_tensor(name, call, {s.N, s.K, s.P, s.Q}, is_channels_last(),
                                         given.ndim == 3, s.dtype, input.device);
    call.results[0] = output;
    if (is_empty(output)) return;
    shape.output = strides_of(batched(output));
    if (input.device.type == DeviceType::kCuda)
      FASTCONV_LAUNCH_CUDA(name, call, input.device, conv2d_forward, s, input.data, weight.data,
                           bias, output.data);
    else
      cpu::conv2d_forward(s, input.data, weight.data, bias, prepared, epilogue, output.data);
  }
};

void forward(Call& call) {
  Forward conv("conv2d", call, 3);
  const void* bias = conv.add_bias(call.optional_tensor(2));
  conv.run(call, bias, nullptr);
}

// The prepared weight as the kernels take it. What was made for another call is ignored by them, if
// it is whole.
const void* read_prepared(const char* name, const TensorView& prepared) {
  if (prepared.ndim != 1 || prepared.dtype != DType::kUInt8 ||
      prepared.device.type != DeviceType::kCpu ||
      (prepared.sizes[0] > 1 && prepared.strides[0] != 1))
    fail(name, "prepared to be a result of conv2d_prepare",
         "another tensor, of size " + sizes_of(prepared));
  const auto* header = static_cast<const Conv2dPreparedHeader*>(prepared.data);
  const bool whole = prepared.sizes[0] >= kConv2dPreparedHeaderBytes &&
                     reinterpret_cast<uintptr_t>(header) % alignof(Conv2dPreparedHeader) == 0 &&
                     header->bytes == prepared.sizes[0];
  return whole ? header : nullptr;
}

void forward_prepared(Call& call) {
  Forward conv("conv2d_prepared", call, 4);
  const void* prepared = read_prepared(conv.name, call.tensor(2));
  const void* bias = conv.add_bias(call.optional_tensor(3));
  conv.run(call, bias, prepared);
}

void forward_fused(Call& call) {
  Forward conv("conv2d_fused", call, 7);
  if (conv.input.device.type != DeviceType::kCpu)
    fail(conv.name, "CPU tensors", text_of(conv.input.device));
  const void* bias = conv.add_bias(call.optional_tensor(2));
  const TensorView* prepared = call.optional_tensor(5);
  const Epilogue epilogue =
      conv.read_epilogue(call.optional_tensor(3), call.optional_tensor(4), call.integer(6));
  conv.run(call, bias, prepared ? read_prepared(conv.name, *prepared) : nullptr, &epilogue);
}

void prepare(Call& call) {
  Forward conv("conv2d_prepare", call, 2);
  if (conv.input.device.type != DeviceType::kCpu)
    fail(conv.name, "CPU tensors", text_of(conv.input.device));
  Conv2dShape& s = conv.shape;
  int64_t bytes = 0;
  if (s.N > 0 && s.C > 0) {
    s.output = new_strides({s.N, s.K, s.P, s.Q}, conv.is_channels_last());
    cpu::conv2d_prepare(s, conv.weight.data, nullptr, &bytes);
  }
  const int64_t stride = 1;
  const TensorView prepared =
      call.door.empty_strided(1, &bytes, &stride, DType::kUInt8, conv.input.device);
  call.results[0] = prepared;
  if (bytes > 0) cpu::conv2d_prepare(s, conv.weight.data, prepared.data, &bytes);
}

void input_grad(Call& call) {
  constexpr const char* kName = "conv2d_input_grad";
  const TensorView &given = call.tensor(0), &weight = call.tensor(1);
  check_image(kName, "grad_output", given);
  check_weight(kName, "weight", weight);
  check_same_dtype(kName, given, "grad_output", weight, "weight");
  check_same_device(kName, given, "grad_output", weight, "weight");
  const Parameters parameters(kName, call, 3);
  int64_t sizes[4];
  read_image_sizes(kName, call.ints(2), given.ndim, sizes);
  Conv2dShape s = describe(kName, parameters, sizes, weight.sizes, given.dtype);
  const TensorView grad_output = batched(given);
  check_sizes(kName, "grad_output", grad_output, {s.N, s.K, s.P, s.Q});

  const TensorView grad_input =
      new_tensor(kName, call, sizes, result_is_channels_last(grad_output, weight), given.ndim == 3,
                 s.dtype, given.device);
  call.results[0] = grad_input;
  if (is_empty(grad_input)) return;
  s.input = strides_of(batched(grad_input)), s.weight = strides_of(weight),
  s.output = strides_of(grad_output);
  if (given.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kName, call, given.device, conv2d_input_grad, s, given.data, weight.data,
                         nullptr, grad_input.data);
  else
    cpu::conv2d_input_grad(s, given.data, weight.data, nullptr, grad_input.data);
}

void weight_grad(Call& call) {
  constexpr const char* kName = "conv2d_weight_grad";
  const TensorView &given_grad = call.tensor(0), &given_input = call.tensor(1);
  check_image(kName, "grad_output", given_grad);
  check_image(kName, "input", given_input);
  check_same_dtype(kName, given_grad, "grad_output", given_input, "input");
  check_same_device(kName, given_grad, "grad_output", given_input, "input");
  const Parameters parameters(kName, call, 3);
  const Value& list = call.ints(2);
  if (list.count != 4 || *std::min_element(list.ints, list.ints + 4) < 0)
    fail(kName, "weight_size of 4 values >= 0", text_of(list.count, list.ints));
  const TensorView input = batched(given_input), grad_output = batched(given_grad);
  Conv2dShape s = describe(kName, parameters, input.sizes, list.ints, input.dtype);
  check_sizes(kName, "grad_output", grad_output, {s.N, s.K, s.P, s.Q});

  const TensorView grad_weight = new_tensor(
      kName, call, {s.K, s.C / s.G, s.window.R, s.window.S},
      is_channels_last(grad_output) || is_channels_last(input), false, s.dtype, input.device);
  call.results[0] = grad_weight;
  if (is_empty(grad_weight)) return;
  s.input = strides_of(input), s.weight = strides_of(grad_weight),
  s.output = strides_of(grad_output);
  if (input.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kName, call, input.device, conv2d_weight_grad, s, grad_output.data,
                         input.data, grad_weight.data);
  else
    cpu::conv2d_weight_grad(s, grad_output.data, input.data, grad_weight.data);
}

const RegisterOperation kOperations[] = {
    {"conv2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
     "int[2] dilation=1, "
     "int groups=1) -> Tensor",
     forward},
    {"conv2d_prepare(Tensor input, Tensor weight, int[2] stride=1, int[2] padding=0, "
     "int[2] dilation=1, int groups=1) -> Tensor",
     prepare},
    {"conv2d_prepared(Tensor input, Tensor weight, Tensor prepared, Tensor? bias=None, "
     "int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1) -> Tensor",
     forward_prepared},
    {"conv2d_fused(Tensor input, Tensor weight, Tensor? bias=None, Tensor? scale=None, "
     "Tensor? residual=None, Tensor? prepared=None, int activation=0, int[2] stride=1, "
     "int[2] padding=0, int[2] dilation=1, int groups=1) -> Tensor",
     forward_fused},
    {"conv2d_input_grad(Tensor grad_output, Tensor weight, SymInt[] input_size, int[2] stride=1, "
     "int[2] padding=0, "
     "int[2] dilation=1, int groups=1) -> Tensor",
     input_grad},
    {"conv2d_weight_grad(Tensor grad_output, Tensor input, SymInt[] weight_size, int[2] stride=1, "
     "int[2] padding=0, "
     "int[2] dilation=1, int groups=1) -> Tensor",
     weight_grad},
};

}  // namespace
}  // namespace fastconv
