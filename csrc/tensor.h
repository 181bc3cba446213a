// A framework-neutral view of a tensor, the door it came through, and how a wrong call is reported.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "kernels/dtype.h"
#include "kernels/window.h"

#pragma GCC visibility push(default)
namespace fastconv {

constexpr int kMaxDims = 8;

enum class DeviceType : int32_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int32_t index = 0;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

// Strides are in elements. Nothing is owned: whoever made the view keeps the memory alive.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device;
  int ndim = 0;
  int64_t sizes[kMaxDims];  // the first ndim; clearing the rest would cost time in every call
  int64_t strides[kMaxDims];
};

// What an operation asks of the framework that called it.
class Door {
 public:
  virtual ~Door() = default;
  // A new tensor of the framework's own, which the door hands to its caller; elements are not
  // initialised.
  virtual TensorView empty_strided(int ndim, const int64_t* sizes, const int64_t* strides,
                                   DType dtype, Device device) = 0;
  // The cudaStream_t to queue work on; makes the device current for as long as the door lives.
  virtual void* cuda_stream(Device device) = 0;
};

// The kinds of exceptions that torch's functions raise for the same mistakes. The torch door knows
// only kRuntime: other types do not cross its C ABI, so what needs them is checked in Python before
// the call.
enum class ErrorKind { kRuntime, kType, kValue, kNotImplemented };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind(kind) {}
  const ErrorKind kind;
};

}  // namespace fastconv
#pragma GCC visibility pop
