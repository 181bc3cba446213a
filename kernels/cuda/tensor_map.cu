#include "kernels/cuda/tensor_map.h"

namespace fastconv {
namespace cuda {

namespace {

// A function of the driver; null where it is too old (CUDA 12.0 has both).
template <class Function>
Function driver_function(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &entry, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) cudaGetLastError();  // takes the error off the thread
  const bool good = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return good ? reinterpret_cast<Function>(entry) : nullptr;
}

constexpr const char* kNoDriver = "the CUDA driver knows no tensor maps: it is older than CUDA 12";
constexpr const char* kRefused = "the CUDA driver refused a tensor map";

CUtensorMapDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kFloat64:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
    case DType::kFloat32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

}  // namespace

const char* make_tensor_map(CUtensorMap& map, const TiledTensor& tensor) {
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (encode == nullptr) return kNoDriver;
  const cuuint32_t steps[kMaxMapRank] = {1, 1, 1, 1, 1};
  cuuint64_t extents[kMaxMapRank], strides[kMaxMapRank];
  for (int axis = 0; axis < kMaxMapRank; ++axis) {
    extents[axis] = tensor.extents[axis];
    strides[axis] = axis < kMaxMapRank - 1 ? tensor.strides[axis] : 0;
  }
  const CUresult result =
      encode(&map, type_of(tensor.dtype), static_cast<cuuint32_t>(tensor.rank), tensor.data,
             extents, strides, tensor.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, tensor.swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : kRefused;
}

const char* make_tensor_map(CUtensorMap& map, const WindowTensor& tensor) {
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (encode == nullptr) return kNoDriver;
  const cuuint32_t steps[4] = {1, tensor.steps[0], tensor.steps[1], 1};
  cuuint64_t extents[4], strides[4] = {};
  for (int axis = 0; axis < 4; ++axis) {
    extents[axis] = tensor.extents[axis];
    if (axis < 3) strides[axis] = tensor.strides[axis];
  }
  const CUresult result =
      encode(&map, type_of(tensor.dtype), 4, tensor.data, extents, strides, tensor.lower,
             tensor.upper, tensor.channels, tensor.pixels, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             tensor.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : kRefused;
}

}  // namespace cuda
}  // namespace fastconv
