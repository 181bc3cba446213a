// Door 2: every operation as a kernel of torch's dispatcher, for CPU and CUDA tensors, on torch's
// stable C interface. Schemas, fake kernels and derivatives are registered from Python
// (fastconv/ops); loading this library after them is enough.
#include <exception>
#include <mutex>
#include <new>
#include <utility>

#include "check.h"
#include "kernels/parallel.h"
#include "torch_shim.h"

namespace fastconv {
namespace {

void check_torch(TorchError error, const char* what) {
  if (error) throw Error(ErrorKind::kRuntime, std::string("fastconv: torch could not ") + what);
}

struct DTypeRow {
  int32_t torch;
  DType own;
};

DType dtype_of(int32_t torch_dtype, const char* operation) {
  static const DTypeRow rows[] = {
      {aoti_torch_dtype_float32(), DType::kFloat32},
      {aoti_torch_dtype_float64(), DType::kFloat64},
      {aoti_torch_dtype_bfloat16(), DType::kBFloat16},
      {aoti_torch_dtype_float16(), DType::kFloat16},
      {aoti_torch_dtype_int64(), DType::kInt64},
      {aoti_torch_dtype_int32(), DType::kInt32},
      {aoti_torch_dtype_int16(), DType::kInt16},
      {aoti_torch_dtype_int8(), DType::kInt8},
      {aoti_torch_dtype_uint8(), DType::kUInt8},
  };
  for (const DTypeRow& row : rows)
    if (row.torch == torch_dtype) return row.own;
  fail(operation, "a floating or integer dtype that fastconv knows", "another dtype");
}

int32_t torch_dtype_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return aoti_torch_dtype_float32();
    case DType::kFloat64:
      return aoti_torch_dtype_float64();
    case DType::kFloat16:
      return aoti_torch_dtype_float16();
    case DType::kBFloat16:
      return aoti_torch_dtype_bfloat16();
    case DType::kUInt8:
      return aoti_torch_dtype_uint8();
    case DType::kInt8:
      return aoti_torch_dtype_int8();
    case DType::kInt16:
      return aoti_torch_dtype_int16();
    case DType::kInt32:
      return aoti_torch_dtype_int32();
    case DType::kInt64:
      return aoti_torch_dtype_int64();
  }
  return -1;
}

class TorchDoor : public Door {
 public:
  ~TorchDoor() override {
    for (int i = 0; i < count_; ++i)
      if (results_[i]) aoti_torch_delete_tensor_object(results_[i]);
    if (guard_) aoti_torch_delete_device_guard(guard_);
  }

  TensorView empty_strided(int ndim, const int64_t* sizes, const int64_t* strides, DType dtype,
                           Device device) override {
    TorchTensor& handle = results_[count_];
    const int32_t type = device.type == DeviceType::kCpu ? aoti_torch_device_type_cpu()
                                                         : aoti_torch_device_type_cuda();
    check_torch(aoti_torch_empty_strided(ndim, sizes, strides, torch_dtype_of(dtype), type,
                                         device.index, &handle),
                "allocate the result");
    ++count_;
    TensorView view;
    view.dtype = dtype;
    view.device = device;
    view.ndim = ndim;
    for (int i = 0; i < ndim; ++i) view.sizes[i] = sizes[i], view.strides[i] = strides[i];
    check_torch(torch_get_mutable_data_ptr(handle, &view.data), "give the result's memory");
    return view;
  }

  void* cuda_stream(Device device) override {
    if (!aoti_torch_get_current_cuda_stream)
      throw Error(ErrorKind::kRuntime, "fastconv: this torch has no CUDA");
    if (!guard_)
      check_torch(aoti_torch_create_device_guard(device.index, &guard_), "select the CUDA device");
    void* stream = nullptr;
    check_torch(aoti_torch_get_current_cuda_stream(device.index, &stream),
                "give the current CUDA stream");
    return stream;
  }

  TorchTensor release(int i) { return std::exchange(results_[i], nullptr); }

 private:
  TorchTensor results_[kMaxResults] = {};
  int count_ = 0;
  TorchDeviceGuard guard_ = nullptr;
};

// Owns what the dispatcher put on the stack.
class Arguments {
 public:
  Arguments(const Operation& operation, TorchValue* stack) : operation_(operation), stack_(stack) {
    for (size_t i = 0; i < operation.arguments.size(); ++i) {
      if (operation.arguments[i].kind != ArgumentKind::kOptionalTensor || !stack[i]) continue;
      TorchValue* boxed = reinterpret_cast<TorchValue*>(stack[i]);
      stack[i] = *boxed;
      delete boxed;
    }
  }
  ~Arguments() {
    for (size_t i = 0; i < operation_.arguments.size(); ++i) {
      const ArgumentKind kind = operation_.arguments[i].kind;
      if (!stack_[i]) continue;
      if (kind == ArgumentKind::kTensor || kind == ArgumentKind::kOptionalTensor)
        aoti_torch_delete_tensor_object(reinterpret_cast<TorchTensor>(stack_[i]));
      else if (kind == ArgumentKind::kIntList)
        torch_delete_list(reinterpret_cast<TorchList>(stack_[i]));
      else if (kind == ArgumentKind::kOptionalInt)
        delete reinterpret_cast<TorchValue*>(stack_[i]);
    }
  }

  void read(size_t i, Value& value) const {
    const Argument& argument = operation_.arguments[i];
    switch (argument.kind) {
      case ArgumentKind::kTensor:
      case ArgumentKind::kOptionalTensor:
        return read_tensor(argument, reinterpret_cast<TorchTensor>(stack_[i]), value);
      case ArgumentKind::kIntList:
        return read_list(argument, reinterpret_cast<TorchList>(stack_[i]), value);
      case ArgumentKind::kInt:
        value.ints[0] = static_cast<int64_t>(stack_[i]);
        return;
      case ArgumentKind::kOptionalInt:
        value.present = stack_[i] != 0;
        if (value.present)
          value.ints[0] = static_cast<int64_t>(*reinterpret_cast<TorchValue*>(stack_[i]));
        return;
      case ArgumentKind::kBool:
        value.ints[0] = stack_[i] & 1;
        return;
    }
  }

 private:
  void read_tensor(const Argument& argument, TorchTensor tensor, Value& value) const {
    const char* name = operation_.name.c_str();
    bool defined = false;
    if (tensor)
      check_torch(aoti_torch_is_defined(tensor, &defined), "say whether a tensor is defined");
    value.present = defined;
    if (!defined) {
      if (argument.kind == ArgumentKind::kTensor)
        fail(name, argument.name + " that is a tensor", "none");
      return;
    }
    TensorView& view = value.tensor;
    int32_t dtype, device_type, device_index, layout;
    int64_t ndim, *sizes, *strides;
    check_torch(aoti_torch_get_layout(tensor, &layout), "give a tensor's layout");
    if (layout != aoti_torch_layout_strided())
      fail(name, argument.name + " with strided layout", "another layout");
    check_torch(aoti_torch_get_dim(tensor, &ndim) || aoti_torch_get_sizes(tensor, &sizes) ||
                    aoti_torch_get_strides(tensor, &strides) ||
                    aoti_torch_get_dtype(tensor, &dtype) ||
                    aoti_torch_get_device_type(tensor, &device_type) ||
                    aoti_torch_get_device_index(tensor, &device_index),
                "describe a tensor");
    if (ndim > kMaxDims)
      fail(name, argument.name + " of at most 8 axes", std::to_string(ndim) + " axes");
    view.ndim = static_cast<int>(ndim);
    for (int64_t d = 0; d < ndim; ++d) view.sizes[d] = sizes[d], view.strides[d] = strides[d];
    view.dtype = dtype_of(dtype, name);
    static const int32_t cpu = aoti_torch_device_type_cpu(), cuda = aoti_torch_device_type_cuda();
    if (device_type != cpu && device_type != cuda)
      fail(name, argument.name + " on a CPU or CUDA device", "another");
    view.device = {device_type == cpu ? DeviceType::kCpu : DeviceType::kCuda,
                   device_type == cpu ? 0 : device_index};
    const void* data = nullptr;
    check_torch(torch_get_const_data_ptr(tensor, &data), "give a tensor's memory");
    view.data = const_cast<void*>(data);
  }

  void read_list(const Argument& argument, TorchList list, Value& value) const {
    size_t count = 0;
    check_torch(torch_list_size(list, &count), "give a list's size");
    if (count > kMaxDims)
      fail(operation_.name.c_str(), argument.name + " of at most 8 values",
           std::to_string(count) + " values");
    value.count = static_cast<int>(count);
    for (size_t i = 0; i < count; ++i) {
      TorchValue item;
      check_torch(torch_list_get_item(list, i, &item), "give a list's item");
      value.ints[i] = static_cast<int64_t>(item);
    }
  }

  const Operation& operation_;
  TorchValue* stack_;
};

void run(const Operation& operation, TorchValue* stack) {
  try {
    TorchDoor door;
    Value values[kMaxArguments];
    Call call{door, values, {}};
    {
      const Arguments arguments(operation, stack);
      for (size_t i = 0; i < operation.arguments.size(); ++i) arguments.read(i, values[i]);
      operation.run(call);
    }
    for (int i = 0; i < operation.results; ++i)
      stack[i] = reinterpret_cast<TorchValue>(door.release(i));
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::kRuntime, operation.name + ": not enough memory");
  }
}

// The dispatcher passes a kernel nothing to tell operations apart by: each place of the list has a
// function of its own.
template <size_t index>
void boxed(TorchValue* stack, uint64_t, uint64_t) {
  run(operations()[index], stack);
}

constexpr size_t kMaxOperations = 64;
template <size_t... index>
constexpr auto make_boxed(std::index_sequence<index...>) {
  struct Table {
    TorchKernel kernels[sizeof...(index)];
  };
  return Table{{boxed<index>...}};
}
constexpr auto kBoxed = make_boxed(std::make_index_sequence<kMaxOperations>());

// torch's threads

struct TorchBody {
  ParallelBody body;
  void* context;
  std::mutex mutex;
  std::exception_ptr error;  // the first; torch's C interface would turn it into a number
};

void torch_run(int64_t n, int64_t grain, ParallelBody body, void* context) {
  TorchBody job{body, context, {}, nullptr};
  const TorchError error = torch_parallel_for(
      0, n, grain,
      [](int64_t begin, int64_t end, void* data) {
        TorchBody* job = static_cast<TorchBody*>(data);
        try {
          job->body(job->context, begin, end);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(job->mutex);
          job->error = std::current_exception();
        }
      },
      &job);
  if (job.error) std::rethrow_exception(job.error);
  check_torch(error, "run a loop in parallel");
}

int torch_threads() {
  uint32_t count = 1;
  return torch_get_num_threads(&count) ? 1 : static_cast<int>(count);
}

constexpr ParallelRunner kTorchRunner = {torch_run, torch_threads};

struct RegisterAll {
  RegisterAll() {
    for (const char* key : {"CPU", "CUDA"}) {
      TorchLibrary library = nullptr;
      check_torch(aoti_torch_library_init_impl("fastconv", key, __FILE__, __LINE__, &library),
                  "open a library");
      for (size_t i = 0; i < operations().size() && i < kMaxOperations; ++i)
        check_torch(torch_library_impl(library, operations()[i].name.c_str(), kBoxed.kernels[i],
                                       kTorchBuildVersion),
                    "register a kernel");
    }
    set_parallel_runner(&kTorchRunner);
  }
} const g_register_all;

}  // namespace
}  // namespace fastconv
