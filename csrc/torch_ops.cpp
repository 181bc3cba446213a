// Door 2: every operation as a kernel of torch's dispatcher, for CPU and CUDA tensors, on torch's
// stable C interface. Schemas, fake kernels and derivatives are registered from Python
// (fastconv/ops); loading this library after them is enough.
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <utility>

#include "check.h"
#include "kernels/parallel.h"
#include "torch_door.h"

namespace fastconv {
namespace {

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
      else if (kind == ArgumentKind::kOptionalInt || kind == ArgumentKind::kOptionalFloat)
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
      case ArgumentKind::kFloat:
        std::memcpy(&value.number, &stack_[i], sizeof value.number);
        return;
      case ArgumentKind::kOptionalFloat:
        value.present = stack_[i] != 0;
        if (value.present)
          std::memcpy(&value.number, reinterpret_cast<TorchValue*>(stack_[i]), sizeof value.number);
        return;
    }
  }

 private:
  void read_tensor(const Argument& argument, TorchTensor tensor, Value& value) const {
    const char* name = operation_.name.c_str();
    TensorView& view = value.tensor;
    const Obstacle obstacle = view_tensor(tensor, &view);
    value.present = obstacle != Obstacle::kUndefined;
    switch (obstacle) {
      case Obstacle::kNone:
        return;
      case Obstacle::kUndefined:
        if (argument.kind == ArgumentKind::kTensor)
          fail(name, argument.name + " that is a tensor", "none");
        return;
      case Obstacle::kLayout:
        fail(name, argument.name + " with strided layout", "another layout");
      case Obstacle::kDims:
        fail(name, argument.name + " of at most 8 axes", std::to_string(view.ndim) + " axes");
      case Obstacle::kDType:
        fail(name, "a floating or integer dtype that fastconv knows", "another dtype");
      case Obstacle::kDevice:
        fail(name, argument.name + " on a CPU or CUDA device", "another");
      case Obstacle::kMemory:
        check_torch(1, "give a tensor's memory");
    }
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
