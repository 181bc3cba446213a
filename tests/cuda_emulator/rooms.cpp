// The rooms of csrc/ (check, describe, allocate, launch) above the emulated device, behind a door
// that says of its tensors that they lie on a CUDA device: ../test_cuda_rooms.py.
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "csrc/operation.h"
#include "emulator.h"
#include "kernels/adaptive_avg_pool2d.h"
#include "kernels/adaptive_max_pool2d.h"
#include "kernels/attention.h"
#include "kernels/avg_pool2d.h"
#include "kernels/conv2d.h"
#include "kernels/max_pool2d.h"
#include "kernels/max_unpool2d.h"
#include "kernels/recurrent.h"

// What the rooms would call for tensors of the CPU.
namespace fastconv::cpu {
namespace {
[[noreturn]] void refuse() { throw Error(ErrorKind::kRuntime, "a kernel of the CPU was called"); }
}  // namespace
void conv2d_forward(const Conv2dShape&, const void*, const void*, const void*, const void*,
                    const Epilogue*, void*) {
  refuse();
}
void conv2d_input_grad(const Conv2dShape&, const void*, const void*, const void*, void*) {
  refuse();
}
void conv2d_weight_grad(const Conv2dShape&, const void*, const void*, void*) { refuse(); }
void conv2d_prepare(const Conv2dShape&, const void*, void*, int64_t*) { refuse(); }
void adaptive_avg_pool2d_forward(const AdaptiveAvgPool2dShape&, const void*, void*) { refuse(); }
void adaptive_avg_pool2d_backward(const AdaptiveAvgPool2dShape&, const void*, void*) { refuse(); }
void avg_pool2d_forward(const AvgPool2dShape&, const void*, void*) { refuse(); }
void avg_pool2d_backward(const AvgPool2dShape&, const void*, void*) { refuse(); }
void max_pool2d_forward(const MaxPool2dShape&, const void*, void*, void*) { refuse(); }
void max_pool2d_backward(const MaxPool2dShape&, const void*, const void*, void*) { refuse(); }
void adaptive_max_pool2d_forward(const AdaptiveMaxPool2dShape&, const void*, void*, int64_t*) {
  refuse();
}
void max_unpool2d_forward(const MaxUnpool2dShape&, const void*, const int64_t*, void*,
                          MaxUnpool2dMistake*) {
  refuse();
}
void max_unpool2d_backward(const MaxUnpool2dShape&, const void*, const int64_t*, void*,
                           MaxUnpool2dMistake*) {
  refuse();
}
void attention_forward(const AttentionShape&, const AttentionInputs&, void*, void*) { refuse(); }
void attention_backward(const AttentionGradShape&, const AttentionGradInputs&, void*, void*,
                        void*) {
  refuse();
}
void attention_mask_grad(const AttentionGradShape&, const AttentionGradInputs&, const int64_t*,
                         void*) {
  refuse();
}
void recurrent_forward(const RecurrentShape&, const RecurrentForward&) { refuse(); }
void recurrent_backward(const RecurrentShape&, const RecurrentBackward&) { refuse(); }
}  // namespace fastconv::cpu

namespace {

using namespace fastconv;

// An argument, or a result; device -1 is the CPU. Mirrored in ../test_cuda_rooms.py.
struct Passed {
  void* data;
  int32_t present, dtype, device, ndim, count;
  int64_t sizes[kMaxDims], strides[kMaxDims], ints[kMaxDims];
};

Value value_of(const Passed& passed) {
  Value value;
  TensorView& tensor = value.tensor;
  tensor.data = passed.data;
  tensor.dtype = static_cast<DType>(passed.dtype);
  if (passed.device >= 0) tensor.device = {DeviceType::kCuda, passed.device};
  tensor.ndim = passed.ndim;
  std::memcpy(tensor.sizes, passed.sizes, sizeof(tensor.sizes));
  std::memcpy(tensor.strides, passed.strides, sizeof(tensor.strides));
  value.present = passed.present != 0;
  value.count = passed.count;
  std::memcpy(value.ints, passed.ints, sizeof(value.ints));
  return value;
}

// Gives memory `allocations` times, and the caller's stream.
class EmulatedDoor : public Door {
 public:
  EmulatedDoor(void* stream, int allocations) : stream_(stream), allocations_(allocations) {}

  TensorView empty_strided(int ndim, const int64_t* sizes, const int64_t* strides, DType dtype,
                           Device device) override {
    if (device.type != DeviceType::kCuda)
      throw Error(ErrorKind::kRuntime, "memory of the CPU was asked for");
    if (allocations_-- == 0) throw Error(ErrorKind::kRuntime, "out of memory");
    TensorView view;
    view.dtype = dtype, view.device = device, view.ndim = ndim;
    int64_t elements = 1;
    for (int i = 0; i < ndim; ++i) {
      view.sizes[i] = sizes[i], view.strides[i] = strides[i];
      elements = sizes[i] == 0 ? 0 : elements == 0 ? 0 : elements + (sizes[i] - 1) * strides[i];
    }
    const size_t bytes = static_cast<size_t>(elements * size_of(dtype));
    view.data = std::aligned_alloc(256, (bytes + 511) / 256 * 256);
    std::memset(view.data, 0xff, bytes);
    emulator_register(view.data, bytes, 1, nullptr);
    return view;
  }

  void* cuda_stream(Device) override { return stream_; }

 private:
  void* stream_;
  int allocations_;
};

const Operation& find(const char* name) {
  for (const Operation& operation : operations()) {
    if (operation.name == name) return operation;
  }
  throw Error(ErrorKind::kRuntime, std::string("no operation ") + name);
}

}  // namespace

extern "C" {

// Results are filled as far as the call came; whoever takes one gives its memory back.
const char* emulate_operation(const char* name, const Passed* arguments, Passed* results,
                              void* stream, int allocations) {
  static std::string text;
  EmulatedDoor door(stream, allocations);
  Value values[kMaxArguments];
  Call call{door, values, {}};
  emulator_expect_stream(stream);
  const char* error = nullptr;
  try {
    const Operation& operation = find(name);
    for (size_t i = 0; i < operation.arguments.size(); ++i) values[i] = value_of(arguments[i]);
    operation.run(call);
  } catch (const Error& caught) {
    text = caught.what();
    error = text.c_str();
  }
  emulator_expect_stream(nullptr);
  for (int i = 0; i < kMaxResults; ++i) {
    const TensorView& from = call.results[i];
    results[i].data = from.data;
    results[i].present = from.data != nullptr;
    results[i].dtype = static_cast<int32_t>(from.dtype);
    results[i].device = from.device.type == DeviceType::kCuda ? from.device.index : -1;
    results[i].ndim = from.ndim;
    std::memcpy(results[i].sizes, from.sizes, sizeof(from.sizes));
    std::memcpy(results[i].strides, from.strides, sizeof(from.strides));
  }
  return error;
}

void emulate_free(void* data) { std::free(data); }

}  // extern "C"
