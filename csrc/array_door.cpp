#include "array_door.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#ifdef FASTCONV_HAS_CUDA
#include "kernels/cuda/info.h"
#endif

namespace py = pybind11;

namespace fastconv {
namespace {

// A call on less than this is over sooner than the lock is given away and taken back.
constexpr int64_t kUnlockBytes = int64_t{32} << 10;

bool dtype_of(const py::dtype& dtype, DType& result) {
  const char kind = dtype.kind();
  const auto size = dtype.itemsize();
  const std::pair<std::pair<char, int>, DType> rows[] = {
      {{'f', 4}, DType::kFloat32}, {{'f', 8}, DType::kFloat64}, {{'f', 2}, DType::kFloat16},
      {{'u', 1}, DType::kUInt8},   {{'i', 1}, DType::kInt8},    {{'i', 2}, DType::kInt16},
      {{'i', 4}, DType::kInt32},   {{'i', 8}, DType::kInt64},
  };
  for (const auto& row : rows) {
    if (row.first.first == kind && row.first.second == size) {
      result = row.second;
      return true;
    }
  }
  // ml_dtypes' bfloat16, which NumPy does not know by a kind of its own.
  if (size == 2 && kind == 'V' && py::str(dtype.attr("name")).equal(py::str("bfloat16"))) {
    result = DType::kBFloat16;
    return true;
  }
  return false;
}

bool dtype_of(const dlpack::Tensor& tensor, DType& result) {
  const struct {
    int code, bits;
    DType dtype;
  } rows[] = {
      {dlpack::kFloat, 32, DType::kFloat32}, {dlpack::kFloat, 64, DType::kFloat64},
      {dlpack::kFloat, 16, DType::kFloat16}, {dlpack::kBfloat, 16, DType::kBFloat16},
      {dlpack::kUInt, 8, DType::kUInt8},     {dlpack::kInt, 8, DType::kInt8},
      {dlpack::kInt, 16, DType::kInt16},     {dlpack::kInt, 32, DType::kInt32},
      {dlpack::kInt, 64, DType::kInt64},
  };
  for (const auto& row : rows) {
    if (row.code == tensor.type_code && row.bits == tensor.type_bits && tensor.type_lanes == 1) {
      result = row.dtype;
      return true;
    }
  }
  return false;
}

// What DLPack calls a type.
void set_type(DType dtype, dlpack::Tensor& tensor) {
  tensor.type_bits = static_cast<uint8_t>(8 * size_of(dtype));
  tensor.type_lanes = 1;
  if (dtype == DType::kBFloat16)
    tensor.type_code = dlpack::kBfloat;
  else if (is_floating(dtype))
    tensor.type_code = dlpack::kFloat;
  else
    tensor.type_code = dtype == DType::kUInt8 ? dlpack::kUInt : dlpack::kInt;
}

// A capsule that lends the memory of a new result; the consumer frees it.
struct Lent {
  dlpack::ManagedTensor managed{};
  int64_t sizes[kMaxDims], strides[kMaxDims];
  py::object owner;
};

py::capsule lend(const TensorView& view, py::object owner) {
  auto* lent = new Lent;
  lent->owner = std::move(owner);
  std::copy(view.sizes, view.sizes + view.ndim, lent->sizes);
  std::copy(view.strides, view.strides + view.ndim, lent->strides);
  dlpack::Tensor& tensor = lent->managed.tensor;
  tensor.data = view.data;
  tensor.device_type = dlpack::kCpu;
  tensor.ndim = view.ndim;
  set_type(view.dtype, tensor);
  tensor.shape = lent->sizes;
  tensor.strides = lent->strides;
  lent->managed.manager = lent;
  lent->managed.deleter = [](dlpack::ManagedTensor* self) {
    const py::gil_scoped_acquire locked;
    delete static_cast<Lent*>(self->manager);
  };
  return py::capsule(&lent->managed, "dltensor", [](PyObject* capsule) {
    // Still of this name: nobody took it.
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;
    auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

const char* const kKnownDTypes =
    "an array of float32, float64, float16, bfloat16, uint8 or int8 to int64";

void check_axes(const char* operation, int64_t ndim) {
  if (ndim > kMaxDims) fail(operation, "arrays of at most 8 axes", std::to_string(ndim) + " axes");
}

// NumPy has no bfloat16: results are of the type of a bfloat16 argument, or, as memory that goes on
// through DLPack, of any type of that size.
py::dtype numpy_dtype(DType dtype, const py::object& like) {
  if (dtype != DType::kBFloat16) return py::dtype(name_of(dtype));
  if (!py::isinstance<py::array>(like)) return py::dtype("uint16");
  return py::reinterpret_borrow<py::array>(like).dtype();
}

// The package that made an array: the one that its standard namespace names, or the top of its
// type's module.
py::object package_of(const py::object& array) {
  if (py::hasattr(array, "__array_namespace__")) return array.attr("__array_namespace__")();
  const std::string module = py::str(py::type::of(array).attr("__module__"));
  return py::module_::import(module.substr(0, module.find('.')).c_str());
}

// Axes from the one with the largest stride to the one with the smallest.
std::vector<int> axes_by_stride(int ndim, const int64_t* strides) {
  std::vector<int> axes(ndim);
  std::iota(axes.begin(), axes.end(), 0);
  std::stable_sort(axes.begin(), axes.end(), [&](int a, int b) { return strides[a] > strides[b]; });
  return axes;
}

}  // namespace

py::capsule Exporter::dlpack() const { return lend(view, memory); }

ArrayDoor::~ArrayDoor() {
  for (dlpack::ManagedTensor* tensor : borrowed_)
    if (tensor->deleter) tensor->deleter(tensor);
#ifdef FASTCONV_HAS_CUDA
  if (previous_device_ >= 0) cuda::set_device(previous_device_);
#endif
}

bool ArrayDoor::read(const char* operation, py::handle object, TensorView& view) {
  operation_ = operation;
  if (py::isinstance<py::array>(object))
    read_numpy(operation, object, view);
  else if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__"))
    read_dlpack(operation, object, view);
  else
    return false;
  int64_t bytes = size_of(view.dtype);
  for (int d = 0; d < view.ndim; ++d) bytes *= view.sizes[d];
  bytes_ += bytes;
  return true;
}

void ArrayDoor::read_numpy(const char* operation, py::handle object, TensorView& view) {
  py::array array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  if (!dtype_of(dtype, view.dtype)) {
    // What torch has too is not implemented; what it makes no tensor of is a TypeError.
    const bool numeric =
        std::strchr("fiubc", dtype.kind()) && dtype.char_() != 'g' && dtype.char_() != 'G';
    fail(operation, kKnownDTypes, py::str(dtype.attr("name")),
         numeric ? ErrorKind::kNotImplemented : ErrorKind::kType);
  }
  if (dtype.byteorder() == '>')
    fail(operation, "an array of the native byte order",
         "dtype " + std::string(py::str(dtype.attr("str"))), ErrorKind::kValue);
  check_axes(operation, array.ndim());

  // Elements must lie at multiples of their size, as a kernel counts in elements.
  const int64_t size = size_of(view.dtype);
  bool in_place = reinterpret_cast<uintptr_t>(array.data()) % size == 0;
  for (py::ssize_t d = 0; d < array.ndim(); ++d)
    in_place = in_place && array.strides(d) % size == 0;
  if (!in_place) {
    // A plain array, whatever subclass was given, of the very dtype that was just read.
    array = py::module_::import("numpy").attr("array")(array, py::arg("dtype") = dtype,
                                                       py::arg("copy") = true);
    kept_.push_back(array);
  }
  view.data = const_cast<void*>(array.data());
  view.ndim = static_cast<int>(array.ndim());
  for (int d = 0; d < view.ndim; ++d) {
    view.sizes[d] = array.shape(d);
    view.strides[d] = array.strides(d) / size;
  }
}

void ArrayDoor::read_dlpack(const char* operation, py::handle object, TensorView& view) {
  int device_type, device_index;
  try {
    const py::tuple where = object.attr("__dlpack_device__")();
    device_type = py::cast<int>(where[0]), device_index = py::cast<int>(where[1]);
  } catch (const py::cast_error&) {
    fail(operation, "two ints from __dlpack_device__", Py_TYPE(object.ptr())->tp_name,
         ErrorKind::kType);
  }
  const bool on_cuda = device_type == dlpack::kCuda || device_type == dlpack::kCudaManaged;
  if (!on_cuda && device_type != dlpack::kCpu && device_type != dlpack::kCudaHost)
    fail(operation, "arrays on a CPU or CUDA device",
         "DLPack device " + std::to_string(device_type), ErrorKind::kNotImplemented);
  // The exporter makes the data ready for the stream that the kernel will be queued on.
  view.device = {on_cuda ? DeviceType::kCuda : DeviceType::kCpu, on_cuda ? device_index : 0};
  py::object capsule;
  if (on_cuda) {
    const auto stream = reinterpret_cast<intptr_t>(cuda_stream(view.device));
    capsule = object.attr("__dlpack__")(py::arg("stream") =
                                            stream ? stream : 1);  // 1: the default stream
  } else {
    capsule = object.attr("__dlpack__")();
  }
  auto* managed =
      static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed || PyCapsule_SetName(capsule.ptr(), "used_dltensor")) throw py::error_already_set();
  borrowed_.push_back(managed);

  const dlpack::Tensor& tensor = managed->tensor;
  if (!dtype_of(tensor, view.dtype))
    fail(operation, kKnownDTypes,
         "DLPack type " + std::to_string(tensor.type_code) + " of " +
             std::to_string(tensor.type_bits) + " bits",
         ErrorKind::kNotImplemented);
  check_axes(operation, tensor.ndim);
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.ndim = tensor.ndim;
  if (reinterpret_cast<uintptr_t>(view.data) % size_of(view.dtype) != 0)
    fail(operation, "memory aligned to its elements", "a DLPack array that is not",
         ErrorKind::kValue);
  int64_t contiguous = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    view.sizes[d] = tensor.shape[d];
    if (view.sizes[d] < 0)
      fail(operation, "arrays of sizes >= 0", std::to_string(view.sizes[d]), ErrorKind::kValue);
    view.strides[d] = tensor.strides ? tensor.strides[d] : contiguous;
    contiguous *= tensor.shape[d];
  }
}

// Without Python's lock. At the end of the process Python ends a thread that asks for the lock by
// unwinding it, which must pass: so nothing here asks for it in a destructor.
static void run_unlocked(const Operation& operation, Call& call) {
  PyThreadState* state = PyEval_SaveThread();
  try {
    operation.run(call);
  } catch (const std::exception&) {
    PyEval_RestoreThread(state);
    throw;
  }
  PyEval_RestoreThread(state);
}

void ArrayDoor::run(const Operation& operation, Call& call) {
  if (bytes_ < kUnlockBytes) {
    operation.run(call);
  } else {
    run_unlocked(operation, call);
  }
  if (py::isinstance<py::array>(kind_)) return;
  for (int i = 0; i < count_; ++i)
    if (py::isinstance<py::array>(results_[i]))
      results_[i] = package_of(kind_).attr("from_dlpack")(Exporter{call.results[i], results_[i]});
}

TensorView ArrayDoor::empty_strided(int ndim, const int64_t* sizes, const int64_t* strides,
                                    DType dtype, Device device) {
  const py::gil_scoped_acquire locked;
  TensorView view;
  view.dtype = dtype;
  view.device = device;
  view.ndim = ndim;
  for (int d = 0; d < ndim; ++d) view.sizes[d] = sizes[d], view.strides[d] = strides[d];
  if (device.type == DeviceType::kCpu) {
    std::vector<py::ssize_t> bytes(ndim);
    for (int d = 0; d < ndim; ++d) bytes[d] = strides[d] * size_of(dtype);
    py::array result(numpy_dtype(dtype, kind_), std::vector<py::ssize_t>(sizes, sizes + ndim),
                     std::move(bytes));
    view.data = result.mutable_data();
    results_[count_++] = std::move(result);
    return view;
  }
  // CuPy makes contiguous memory: the axes are asked for in the order of their strides, then put in
  // place.
  const std::vector<int> axes = axes_by_stride(ndim, strides);
  py::tuple shape(ndim), order(ndim);
  for (int i = 0; i < ndim; ++i) {
    shape[i] = sizes[axes[i]];
    order[axes[i]] = i;
  }
  const py::object result =
      py::module_::import("cupy").attr("empty")(shape, name_of(dtype)).attr("transpose")(order);
  view.data = reinterpret_cast<void*>(py::cast<intptr_t>(result.attr("data").attr("ptr")));
  results_[count_++] = result;
  return view;
}

void* ArrayDoor::cuda_stream(Device device) {
#ifdef FASTCONV_HAS_CUDA
  const py::gil_scoped_acquire locked;
  if (py::str(py::type::of(kind_).attr("__module__")).cast<std::string>().rfind("cupy", 0) != 0)
    fail(operation_, "CuPy arrays alone on a CUDA device",
         "an array on " + text_of(device) + " and a first one of type " +
             std::string(Py_TYPE(kind_.ptr())->tp_name),
         ErrorKind::kNotImplemented);
  const int previous = cuda::set_device(device.index);
  if (previous < 0) check_cuda(operation_, cuda::error_text(-previous));
  if (previous_device_ < 0) previous_device_ = previous;
  const py::object stream =
      py::module_::import("cupy").attr("cuda").attr("get_current_stream")(device.index);
  return reinterpret_cast<void*>(py::cast<intptr_t>(stream.attr("ptr")));
#else
  fail(operation_, "CPU arrays, for this fastconv was built without CUDA", text_of(device));
#endif
}

}  // namespace fastconv
