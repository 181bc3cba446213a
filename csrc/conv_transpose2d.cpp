// conv_transpose2d: what is legal, what the result looks like. It is the gradient of conv2d by its
// input: the output here is the input there, and the kernel is conv2d's.
//
//   output[n, g*K/G + k, h, w] = bias[g*K/G + k] + sum_{c in g, r, s} input[n,c,p,q] * weight[c,k,r,s]
//
//   with  h = p * stride_h - pad_h + r * dilation_h,  w = q * stride_w - pad_w + s * dilation_w
//
// C input channels, of extents P x Q; K output channels, of extents H x W. In conv2d's shape C and K
// have changed places.
#include "convolution.h"
#include "kernels/conv2d.h"

namespace fastconv {
namespace {

constexpr const char* kName = "conv_transpose2d";

// As far as the last window reaches, what lies between both paddings, and what is added behind.
int64_t output_extent(const char* axis, int64_t extent, int64_t taps, int64_t stride, int64_t pad,
                      int64_t dilation, int64_t behind) {
  int64_t way = 0, reach = 0;
  const bool overflows = __builtin_mul_overflow(extent - 1, stride, &way) ||
                         __builtin_mul_overflow(taps - 1, dilation, &reach) ||
                         __builtin_add_overflow(way, reach, &way) ||
                         __builtin_add_overflow(way, behind + 1 - 2 * pad, &way);
  if (overflows || way < 1)
    fail(kName, std::string("an output with a ") + axis + " in [1, 2^63)",
         overflows ? "more" : std::to_string(way));
  return way;
}

Conv2dShape describe(const Call& call, const TensorView& input, const TensorView& weight) {
  const Pair stride = pair_of(kName, "stride", call.ints(3));
  const Pair padding = pair_of(kName, "padding", call.ints(4));
  const Pair behind = pair_of(kName, "output_padding", call.ints(5));
  const Pair dilation = pair_of(kName, "dilation", call.ints(7));
  const int64_t groups = call.integer(6), *x = input.sizes, *w = weight.sizes;
  check_range(kName, "stride", stride, 1);
  check_range(kName, "padding", padding, 0);
  check_range(kName, "output_padding", behind, 0);
  check_range(kName, "dilation", dilation, 1);
  check_weight_sizes(kName, w, groups);
  if (w[1] < 1) fail(kName, "a weight of at least one output channel", text_of(4, w));
  check_input_sizes(kName, x, w[0], w, groups);
  const auto check_behind = [](int64_t behind, int64_t stride, int64_t dilation) {
    if (behind >= stride && behind >= dilation)
      fail(kName,
           "output_padding smaller than stride (" + std::to_string(stride) + ") or dilation (" +
               std::to_string(dilation) + ")",
           std::to_string(behind));
  };
  check_behind(behind.h, stride.h, dilation.h);
  check_behind(behind.w, stride.w, dilation.w);

  Conv2dShape s{};
  s.dtype = input.dtype;
  s.N = x[0], s.K = x[1], s.P = x[2], s.Q = x[3];
  s.C = w[1] * groups, s.G = groups;
  s.H = output_extent("height", s.P, w[2], stride.h, padding.h, dilation.h, behind.h);
  s.W = output_extent("width", s.Q, w[3], stride.w, padding.w, dilation.w, behind.w);
  s.window = {w[2], w[3], stride.h, stride.w, padding.h, padding.w, dilation.h, dilation.w};
  return s;
}

void forward(Call& call) {
  const TensorView &given = call.tensor(0), &weight = call.tensor(1);
  check_image(kName, "input", given);
  check_weight(kName, "weight", weight);
  check_same_dtype(kName, given, "input", weight, "weight");
  check_same_device(kName, given, "input", weight, "weight");
  const TensorView input = batched(given), *bias = call.optional_tensor(2);
  Conv2dShape s = describe(call, input, weight);
  if (bias) check_per_channel(kName, "bias", *bias, s.C, given);

  const TensorView output =
      new_tensor(kName, call, {s.N, s.C, s.H, s.W}, result_is_channels_last(input, weight),
                 given.ndim == 3, s.dtype, input.device);
  call.results[0] = output;
  if (is_empty(output)) return;
  s.input = strides_of(batched(output)), s.weight = strides_of(weight);
  s.output = strides_of(input), s.bias_stride = bias ? bias->strides[0] : 0;
  const void* start = bias ? bias->data : nullptr;
  if (input.device.type == DeviceType::kCuda)
    FASTCONV_LAUNCH_CUDA(kName, call, input.device, conv2d_input_grad, s, input.data, weight.data,
                         start, output.data);
  else
    cpu::conv2d_input_grad(s, input.data, weight.data, start, output.data);
}

const RegisterOperation kOperations[] = {
    {"conv_transpose2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, "
     "int[2] padding=0, int[2] output_padding=0, int groups=1, int[2] dilation=1) -> Tensor",
     forward},
};

}  // namespace
}  // namespace fastconv
