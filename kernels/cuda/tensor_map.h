// Tensor maps: what a tensor copy (device_copy.cuh) must know of a tensor, made on the host for each
// call and handed to the kernel as a parameter. The driver's functions are asked for at run time, so
// that nothing links to libcuda.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace fastconv {
namespace cuda {

constexpr int kMaxMapRank = 5;

// Axis 0 is the innermost, whose elements are neighbours. Strides are in bytes, multiples of 16, of
// axes 1 and up; the data are aligned to 16. A box has at most 256 along each axis, and its
// innermost line no more bytes than the swizzle's span.
struct TiledTensor {
  DType dtype;
  void* data;
  int rank;
  uint64_t extents[kMaxMapRank], strides[kMaxMapRank - 1];
  uint32_t box[kMaxMapRank];
  CUtensorMapSwizzle swizzle;
};

// An NHWC tensor seen through a window: see load_window_tile. Axes: c, w, h, n. Pixels run from
// `lower` to extent - 1 + `upper`, along w and h, by `steps`.
struct WindowTensor {
  DType dtype;
  void* data;
  uint64_t extents[4], strides[3];
  int lower[2], upper[2];
  uint32_t steps[2];
  uint32_t channels, pixels;
  CUtensorMapSwizzle swizzle;
};

// Null, or why there is no map.
const char* make_tensor_map(CUtensorMap& map, const TiledTensor& tensor);
const char* make_tensor_map(CUtensorMap& map, const WindowTensor& tensor);

}  // namespace cuda
}  // namespace fastconv
