// What the kernels compute in, how they move 16 bytes at once, and how a run-time DType becomes a
// template argument.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"
#include "kernels/window.h"

namespace fastconv {
namespace cuda {

// The type that elements are compared and summed in: float32 for the 16-bit floating types, else
// the type itself.
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T widen(T x) {
  return x;
}

// Back to the element type, rounded to nearest even.
template <class T>
struct Narrow {
  static __device__ __forceinline__ T from(T x) { return x; }
};
template <>
struct Narrow<__half> {
  static __device__ __forceinline__ __half from(float x) { return __float2half_rn(x); }
};
template <>
struct Narrow<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};

template <class T>
struct WideOf {
  using Type = T;
};
template <>
struct WideOf<__half> {
  using Type = float;
};
template <>
struct WideOf<__nv_bfloat16> {
  using Type = float;
};
template <class T>
using Wide = typename WideOf<T>::Type;

// 16 bytes are the widest access of one lane.
constexpr int kVectorBytes = 16;
template <class T>
constexpr int kVectorLanes = kVectorBytes / static_cast<int>(sizeof(T));

// Neighbouring elements that travel together; `from` must be aligned to the whole when they are 16,
// 8 or 4 bytes.
template <class T, int kCount>
struct Vector {
  T lane[kCount];
};

template <class T, int kCount>
__device__ __forceinline__ Vector<T, kCount> load_vector(const T* from) {
  Vector<T, kCount> values;
  if constexpr (sizeof(values) == kVectorBytes) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    memcpy(&values, &raw, sizeof(values));
  } else if constexpr (sizeof(values) == 8) {
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    memcpy(&values, &raw, sizeof(values));
  } else if constexpr (sizeof(values) == 4) {
    const uint32_t raw = *reinterpret_cast<const uint32_t*>(from);
    memcpy(&values, &raw, sizeof(values));
  } else {
#pragma unroll
    for (int v = 0; v < kCount; ++v) values.lane[v] = from[v];
  }
  return values;
}

template <class T, int kCount>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, kCount>& values) {
  if constexpr (sizeof(values) == kVectorBytes) {
    uint4 raw;
    memcpy(&raw, &values, sizeof(values));
    *reinterpret_cast<uint4*>(to) = raw;
  } else if constexpr (sizeof(values) == 8) {
    uint2 raw;
    memcpy(&raw, &values, sizeof(values));
    *reinterpret_cast<uint2*>(to) = raw;
  } else if constexpr (sizeof(values) == 4) {
    uint32_t raw;
    memcpy(&raw, &values, sizeof(values));
    *reinterpret_cast<uint32_t*>(to) = raw;
  } else {
#pragma unroll
    for (int v = 0; v < kCount; ++v) to[v] = values.lane[v];
  }
}

// Can every vector that starts at a multiple of `lanes` along axis `along` be moved at once?
inline bool moves_in_vectors(const void* data, const Strides4& strides, int along, int64_t extent,
                             int lanes, int64_t element_bytes) {
  if (strides.s[along] != 1 || extent % lanes != 0) return false;
  for (int axis = 0; axis < 4; ++axis) {
    if (axis != along && strides.s[axis] % lanes != 0) return false;
  }
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(lanes * element_bytes) == 0;
}

// Largest distance of an element from element [0,0,0,0], in elements.
inline int64_t reach(const Strides4& strides, int64_t a, int64_t b, int64_t c, int64_t d) {
  const int64_t extents[4] = {a, b, c, d};
  int64_t sum = 0;
  for (int axis = 0; axis < 4; ++axis) {
    sum += (extents[axis] - 1) * (strides.s[axis] < 0 ? -strides.s[axis] : strides.s[axis]);
  }
  return sum;
}

// a / b for a >= 0, b >= 1. Where 32 bits do not hold them, by long division: the compiler's own
// 64-bit division is a call, and what a call must save would spill. That path is for tensors of
// 2^31 elements that cannot be cut smaller.
template <class Index>
__host__ __device__ constexpr Index quotient(Index a, Index b) {
  if (sizeof(Index) == 4 || ((static_cast<uint64_t>(a) | static_cast<uint64_t>(b)) >> 32) == 0) {
    return static_cast<Index>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
  }
  uint64_t rest = static_cast<uint64_t>(a), result = 0;
  uint64_t shifted = static_cast<uint64_t>(b);
  while (shifted <= rest >> 1) shifted <<= 1;
  for (; shifted >= static_cast<uint64_t>(b); shifted >>= 1) {
    result <<= 1;
    if (rest >= shifted) rest -= shifted, result |= 1;
  }
  return static_cast<Index>(result);
}

// Takes i % extent off i, which becomes i / extent.
template <class Index>
__device__ __forceinline__ Index take_axis(Index& i, Index extent) {
  const Index rest = quotient(i, extent);
  const Index index = i - rest * extent;
  i = rest;
  return index;
}

constexpr int64_t kInt32Limit = int64_t{1} << 31;

template <class T>
struct Tag {
  using Type = T;
};

// Calls body(Tag<T>{}) with the element type of `dtype`.
template <class Body>
const char* with_floating(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(Tag<float>{});
    case DType::kFloat64:
      return body(Tag<double>{});
    case DType::kFloat16:
      return body(Tag<__half>{});
    case DType::kBFloat16:
      return body(Tag<__nv_bfloat16>{});
    default:
      return cudaGetErrorString(cudaErrorInvalidValue);
  }
}

template <class Body>
const char* with_any(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kUInt8:
      return body(Tag<uint8_t>{});
    case DType::kInt8:
      return body(Tag<int8_t>{});
    case DType::kInt16:
      return body(Tag<int16_t>{});
    case DType::kInt32:
      return body(Tag<int32_t>{});
    case DType::kInt64:
      return body(Tag<int64_t>{});
    default:
      return with_floating(dtype, body);
  }
}

}  // namespace cuda
}  // namespace fastconv
