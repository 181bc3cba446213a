#include "torch_door.h"

#include <utility>

namespace fastconv {
namespace {

struct DTypeRow {
  int32_t torch;
  DType own;
};

bool find_dtype(int32_t torch_dtype, DType* dtype) {
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
    if (row.torch == torch_dtype) return *dtype = row.own, true;
  return false;
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

}  // namespace

void check_torch(TorchError error, const char* what) {
  if (error) throw Error(ErrorKind::kRuntime, std::string("fastconv: torch could not ") + what);
}

Obstacle view_tensor(TorchTensor tensor, TensorView* view) {
  bool defined = false;
  if (tensor)
    check_torch(aoti_torch_is_defined(tensor, &defined), "say whether a tensor is defined");
  if (!defined) return Obstacle::kUndefined;
  int32_t dtype, device_type, device_index, layout;
  int64_t ndim, *sizes, *strides;
  check_torch(aoti_torch_get_layout(tensor, &layout), "give a tensor's layout");
  if (layout != aoti_torch_layout_strided()) return Obstacle::kLayout;
  check_torch(aoti_torch_get_dim(tensor, &ndim) || aoti_torch_get_sizes(tensor, &sizes) ||
                  aoti_torch_get_strides(tensor, &strides) ||
                  aoti_torch_get_dtype(tensor, &dtype) ||
                  aoti_torch_get_device_type(tensor, &device_type) ||
                  aoti_torch_get_device_index(tensor, &device_index),
              "describe a tensor");
  view->ndim = static_cast<int>(ndim);
  if (ndim > kMaxDims) return Obstacle::kDims;
  for (int64_t d = 0; d < ndim; ++d) view->sizes[d] = sizes[d], view->strides[d] = strides[d];
  if (!find_dtype(dtype, &view->dtype)) return Obstacle::kDType;
  static const int32_t cpu = aoti_torch_device_type_cpu(), cuda = aoti_torch_device_type_cuda();
  if (device_type != cpu && device_type != cuda) return Obstacle::kDevice;
  view->device = {device_type == cpu ? DeviceType::kCpu : DeviceType::kCuda,
                  device_type == cpu ? 0 : device_index};
  const void* data = nullptr;
  if (torch_get_const_data_ptr(tensor, &data)) return Obstacle::kMemory;
  view->data = const_cast<void*>(data);
  return Obstacle::kNone;
}

TorchDoor::~TorchDoor() {
  for (int i = 0; i < count_; ++i)
    if (results_[i]) aoti_torch_delete_tensor_object(results_[i]);
  if (guard_) aoti_torch_delete_device_guard(guard_);
}

TensorView TorchDoor::empty_strided(int ndim, const int64_t* sizes, const int64_t* strides,
                                    DType dtype, Device device) {
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

void* TorchDoor::cuda_stream(Device device) {
  if (!aoti_torch_get_current_cuda_stream)
    throw Error(ErrorKind::kRuntime, "fastconv: this torch has no CUDA");
  if (!guard_)
    check_torch(aoti_torch_create_device_guard(device.index, &guard_), "select the CUDA device");
  void* stream = nullptr;
  check_torch(aoti_torch_get_current_cuda_stream(device.index, &stream),
              "give the current CUDA stream");
  return stream;
}

TorchTensor TorchDoor::release(int i) { return std::exchange(results_[i], nullptr); }

}  // namespace fastconv
