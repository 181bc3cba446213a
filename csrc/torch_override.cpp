// Lets fastconv compute torch's own convolution on the CPU: kernels for aten::convolution and its
// gradient, registered while fastconv.enable() says so. Derivatives, vmap, autocast and the
// compiler stay torch's. What is not ours (a transposed, 1-d or 3-d convolution, an integer or
// complex dtype, an empty tensor, a wrong call) goes to the kernel that torch would have run, by
// way of two ops of fastconv/_enable.py.
#include <string>

#include "check.h"
#include "torch_door.h"

namespace fastconv {
namespace {

void run_operation(const char* name, Call& call) {
  for (const Operation& operation : operations())
    if (operation.name == name) return operation.run(call);
  throw Error(ErrorKind::kRuntime, std::string("fastconv: no operation ") + name);
}

// By torch's own kernel; its errors keep their text where torch tells it (from 2.13 on).
void run_torchs(const char* operation, TorchValue* stack) {
  if (!torch_call_dispatcher(operation, "", stack, kTorchBuildVersion)) return;
  std::string text = torch_exception_get_what_without_backtrace
                         ? torch_exception_get_what_without_backtrace()
                         : "convolution: torch refuses this call";
  // The way led through Python, which adds its own.
  const std::string before = "RuntimeError: ";
  const size_t begin = text.compare(0, before.size(), before) ? 0 : before.size();
  throw Error(ErrorKind::kRuntime, text.substr(begin, text.find("\n\nAt:\n") - begin));
}

TorchTensor tensor_at(const TorchValue* stack, int i) {
  return reinterpret_cast<TorchTensor>(stack[i]);
}
TorchList list_at(const TorchValue* stack, int i) { return reinterpret_cast<TorchList>(stack[i]); }

// An optional argument: null, or a value of its own that is freed with it.
TorchValue* optional_at(const TorchValue* stack, int i) {
  return reinterpret_cast<TorchValue*>(stack[i]);
}

bool read_image(TorchTensor tensor, Value* value) {
  TensorView& view = value->tensor;
  value->present = true;
  return view_tensor(tensor, &view) == Obstacle::kNone && view.ndim == 4 &&
         view.device.type == DeviceType::kCpu && is_floating(view.dtype) && !is_empty(view);
}

bool read_list(TorchList list, size_t length, Value* value) {
  size_t count = 0;
  check_torch(torch_list_size(list, &count), "give a list's size");
  if (count != length) return false;
  value->count = static_cast<int>(count);
  for (size_t i = 0; i < count; ++i) {
    TorchValue item;
    check_torch(torch_list_get_item(list, i, &item), "give a list's item");
    value->ints[i] = static_cast<int64_t>(item);
  }
  return true;
}

// stride, padding, dilation, transposed, output_padding, groups from stack[first] on, as the last
// arguments of our operations.
bool read_geometry(const TorchValue* stack, int first, Value* values) {
  const bool transposed = stack[first + 3] & 1;
  values[3].ints[0] = static_cast<int64_t>(stack[first + 5]);
  return !transposed && read_list(list_at(stack, first), 2, values) &&
         read_list(list_at(stack, first + 1), 2, values + 1) &&
         read_list(list_at(stack, first + 2), 2, values + 2);
}

// The arguments were taken; slots that held them are free.
void free_tensor(const TorchValue* stack, int i) {
  aoti_torch_delete_tensor_object(tensor_at(stack, i));
}
void free_geometry(const TorchValue* stack, int first) {
  for (int i : {first, first + 1, first + 2, first + 4}) torch_delete_list(list_at(stack, i));
}

// convolution(input, weight, bias?, stride, padding, dilation, transposed, output_padding, groups)
bool convolution(TorchValue* stack) {
  Value values[7];
  if (!read_image(tensor_at(stack, 0), values) || !read_image(tensor_at(stack, 1), values + 1) ||
      !read_geometry(stack, 3, values + 3))
    return false;
  TorchValue* const bias = optional_at(stack, 2);
  if (bias) {
    const Obstacle obstacle = view_tensor(tensor_at(bias, 0), &values[2].tensor);
    if (obstacle != Obstacle::kNone && obstacle != Obstacle::kUndefined) return false;
    values[2].present = obstacle == Obstacle::kNone;
  }
  TorchDoor door;
  Call call{door, values, {}};
  run_operation("conv2d", call);
  free_tensor(stack, 0), free_tensor(stack, 1), free_geometry(stack, 3);
  if (bias) free_tensor(bias, 0), delete bias;
  stack[0] = reinterpret_cast<TorchValue>(door.release(0));
  return true;
}

TorchValue undefined() {
  TorchTensor tensor = nullptr;
  check_torch(aoti_torch_new_uninitialized_tensor(&tensor), "make an undefined tensor");
  return reinterpret_cast<TorchValue>(tensor);
}

// The gradient by the bias.
TorchValue sum_of_pixels(TorchTensor grad_output) {
  TorchTensor tensor = nullptr;
  TorchList axes = nullptr;
  check_torch(aoti_torch_new_tensor_handle(grad_output, &tensor), "hold a tensor");
  check_torch(torch_new_list_reserve_size(3, &axes), "make a list");
  for (TorchValue axis : {0, 2, 3}) check_torch(torch_list_push_back(axes, axis), "fill a list");
  TorchValue stack[4] = {
      reinterpret_cast<TorchValue>(tensor),
      reinterpret_cast<TorchValue>(new TorchValue(reinterpret_cast<TorchValue>(axes))), 0, 0};
  check_torch(torch_call_dispatcher("aten::sum", "dim_IntList", stack, kTorchBuildVersion),
              "sum a tensor");
  return stack[0];
}

void set_sizes(const TensorView& tensor, Value* value) {
  value->count = 4;
  for (int i = 0; i < 4; ++i) value->ints[i] = tensor.sizes[i];
}

// convolution_backward(grad_output, input, weight, bias_sizes?, stride, padding, dilation,
//                      transposed, output_padding, groups, output_mask)
bool convolution_backward(TorchValue* stack) {
  Value grad, input, weight, geometry[4], mask;
  if (!read_image(tensor_at(stack, 0), &grad) || !read_image(tensor_at(stack, 1), &input) ||
      !read_image(tensor_at(stack, 2), &weight) || !read_geometry(stack, 4, geometry) ||
      !read_list(list_at(stack, 10), 3, &mask))
    return false;
  // torch's rule, which compiled programs rely on: both gradients are laid out as the output is.
  const bool last = is_channels_last(input.tensor) || is_channels_last(weight.tensor);
  if (last != is_channels_last(grad.tensor)) return false;

  TorchDoor door;
  const auto run = [&](const char* name, const Value& other, const TensorView& wanted) {
    Value values[7] = {grad, other, {}, geometry[0], geometry[1], geometry[2], geometry[3]};
    set_sizes(wanted, values + 2);
    Call call{door, values, {}};
    run_operation(name, call);
  };
  const bool by_input = mask.ints[0] & 1, by_weight = mask.ints[1] & 1, by_bias = mask.ints[2] & 1;
  if (by_input) run("conv2d_input_grad", weight, input.tensor);
  if (by_weight) run("conv2d_weight_grad", input, weight.tensor);
  const TorchValue bias = by_bias ? sum_of_pixels(tensor_at(stack, 0)) : undefined();

  for (int i = 0; i < 3; ++i) free_tensor(stack, i);
  if (TorchValue* const sizes = optional_at(stack, 3)) {
    torch_delete_list(list_at(sizes, 0));
    delete sizes;
  }
  free_geometry(stack, 4);
  torch_delete_list(list_at(stack, 10));
  stack[0] = by_input ? reinterpret_cast<TorchValue>(door.release(0)) : undefined();
  stack[1] = by_weight ? reinterpret_cast<TorchValue>(door.release(by_input)) : undefined();
  stack[2] = bias;
  return true;
}

// A call that our checks refuse is torch's to refuse, in its own words.
template <bool (*ours)(TorchValue*)>
bool serves(TorchValue* stack) {
  try {
    return ours(stack);
  } catch (const Error&) {
    return false;
  }
}

void boxed_convolution(TorchValue* stack, uint64_t, uint64_t) {
  if (!serves<convolution>(stack)) run_torchs("fastconv::torch_convolution", stack);
}
void boxed_convolution_backward(TorchValue* stack, uint64_t, uint64_t) {
  if (!serves<convolution_backward>(stack))
    run_torchs("fastconv::torch_convolution_backward", stack);
}

TorchLibrary g_override = nullptr;

}  // namespace
}  // namespace fastconv

// Called by fastconv/_enable.py, one thread at a time; returns 0, or another value after an error.
extern "C" __attribute__((visibility("default"))) int fastconv_override_torch(int on) {
  using namespace fastconv;
  if (!on) {
    if (!g_override) return 0;
    const TorchError error = aoti_torch_delete_library_object(g_override);
    g_override = nullptr;
    return error;
  }
  if (g_override) return 0;
  if (aoti_torch_library_init_impl("aten", "CPU", __FILE__, __LINE__, &g_override)) return 1;
  return torch_library_impl(g_override, "convolution", boxed_convolution, kTorchBuildVersion) ||
         torch_library_impl(g_override, "convolution_backward", boxed_convolution_backward,
                            kTorchBuildVersion);
}
