#include "check.h"

#include <cstdlib>
#include <cstring>

namespace fastconv {

void fail(const char* operation, const std::string& law, const std::string& got, ErrorKind kind) {
  throw Error(kind, std::string(operation) + ": expected " + law + ", got " + got);
}

std::string text_of(int count, const int64_t* values) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string sizes_of(const TensorView& tensor) { return text_of(tensor.ndim, tensor.sizes); }

std::string text_of(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

void check_same_dtype(const char* operation, const TensorView& first, const char* first_name,
                      const TensorView& other, const char* other_name) {
  if (first.dtype != other.dtype)
    fail(operation,
         std::string(other_name) + " of the dtype of " + first_name + ", " + name_of(first.dtype),
         name_of(other.dtype));
}

void check_same_device(const char* operation, const TensorView& first, const char* first_name,
                       const TensorView& other, const char* other_name) {
  if (first.device != other.device)
    fail(operation,
         std::string(other_name) + " on the device of " + first_name + ", " + text_of(first.device),
         text_of(other.device));
}

void fail_dtype(const char* operation, const char* law, DType got) {
  fail(operation, law, name_of(got), ErrorKind::kNotImplemented);
}

Pair pair_of(const char* operation, const char* name, const Value& value) {
  if (value.count == 1) return {value.ints[0], value.ints[0]};
  if (value.count == 2) return {value.ints[0], value.ints[1]};
  fail(operation, std::string(name) + " of 1 or 2 values", text_of(value.count, value.ints));
}

void check_range(const char* operation, const char* name, const Pair& pair, int64_t least) {
  const int64_t values[] = {pair.h, pair.w};
  for (int64_t value : values)
    if (value < least || value > kLargestParameter)
      fail(operation, std::string(name) + " in [" + std::to_string(least) + ", 2^40]",
           text_of(2, values));
}

void check_counts(const char* operation, std::initializer_list<int64_t> extents,
                  const int64_t* sizes) {
  constexpr int64_t kMost = int64_t{1} << 48;
  int64_t count = 1;
  for (int64_t extent : extents)
    if (extent > kMost || (extent > 0 && __builtin_mul_overflow(count, extent, &count)) ||
        count > kMost)
      fail(operation, "a tensor of fewer than 2^48 elements", "size " + text_of(4, sizes));
}

TensorView batched(const TensorView& tensor) {
  if (tensor.ndim == 4) return tensor;
  TensorView view = tensor;
  view.ndim = 4;
  view.sizes[0] = 1;
  view.strides[0] = tensor.sizes[0] * tensor.strides[0];
  for (int i = 0; i < 3; ++i)
    view.sizes[i + 1] = tensor.sizes[i], view.strides[i + 1] = tensor.strides[i];
  return view;
}

bool is_channels_last(const TensorView& tensor) {
  if (tensor.strides[1] == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (tensor.sizes[d] == 0 || tensor.strides[d] < least) return false;
    // A contiguous N x 1 x 1 x 1 tensor is not channels_last, nor is one whose batch stride is its
    // channel stride.
    if (d == 0 && least == tensor.strides[1]) return false;
    least = tensor.strides[d];
    if (tensor.sizes[d] > 1) least *= tensor.sizes[d];
  }
  return true;
}

Strides4 strides_of(const TensorView& tensor) {
  return {{tensor.strides[0], tensor.strides[1], tensor.strides[2], tensor.strides[3]}};
}

bool is_empty(const TensorView& tensor) {
  for (int i = 0; i < tensor.ndim; ++i)
    if (tensor.sizes[i] == 0) return true;
  return false;
}

namespace {

// For tests: fresh memory is filled with NaN, so that an element nobody wrote cannot pass for a
// right one.
bool poisons_results() {
  static const bool poisons = [] {
    const char* value = std::getenv("FASTCONV_POISON");
    return value && std::strcmp(value, "1") == 0;
  }();
  return poisons;
}

}  // namespace

Strides4 new_strides(const int64_t (&sizes)[4], bool channels_last) {
  Strides4 strides;
  const int order_channels_last[] = {1, 3, 2, 0}, order_contiguous[] = {3, 2, 1, 0};
  int64_t stride = 1;
  for (int d : channels_last ? order_channels_last : order_contiguous) {
    strides.s[d] = stride;
    // torch's own contiguous strides count an empty axis as 1, its channels_last ones as 0.
    stride *= channels_last || sizes[d] > 0 ? sizes[d] : 1;
  }
  return strides;
}

TensorView new_strided_tensor(const char* operation, Call& call, int ndim, const int64_t* sizes,
                              const int64_t* strides, DType dtype, Device device) {
  int64_t bytes = size_of(dtype);
  bool empty = false;
  for (int d = 0; d < ndim; ++d) {
    empty = empty || sizes[d] == 0;
    if (__builtin_mul_overflow(bytes, sizes[d] > 0 ? sizes[d] : 1, &bytes))
      fail(operation, "a result that fits the address space",
           "one of size " + text_of(ndim, sizes));
  }
  TensorView result;
  try {
    result = call.door.empty_strided(ndim, sizes, strides, dtype, device);
  } catch (const Error& error) {  // the framework's own exceptions, such as MemoryError, pass
    fail(operation,
         "memory on " + text_of(device) + " for a result of size " + text_of(ndim, sizes) + " (" +
             std::to_string(bytes) + " bytes)",
         error.what(), error.kind);
  }
  if (!empty && device.type == DeviceType::kCpu && poisons_results())
    std::memset(result.data, 0xff, static_cast<size_t>(bytes));
  return result;
}

TensorView new_tensor(const char* operation, Call& call, const int64_t (&sizes)[4],
                      bool channels_last, bool unbatched, DType dtype, Device device) {
  const Strides4 strides = new_strides(sizes, channels_last);
  return new_strided_tensor(operation, call, 4 - unbatched, sizes + unbatched,
                            strides.s + unbatched, dtype, device);
}

void check_cuda(const char* operation, const char* error) {
  if (!error) return;
  const bool says_what_was_expected = std::strncmp(error, "expected ", 9) == 0;
  throw Error(ErrorKind::kRuntime,
              std::string(operation) + (says_what_was_expected ? ": " : ": CUDA error: ") + error);
}

}  // namespace fastconv
