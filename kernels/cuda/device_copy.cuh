// Copies between global and shared memory that go on while the threads do: cp.async (sm_80), bulk
// copies and tensor copies (sm_90).
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-asynchronous-copy
//
// A tensor copy moves a box of a tensor that a CUtensorMap describes (tensor_map.h). In shared
// memory the box lies densely, innermost axis first, from an address that is a multiple of 128
// bytes; with a swizzle of 32, 64 or 128 bytes, address bits 4.. are combined (exclusive or) with
// as many bits from 7 on (1, 2 or 3), and the address must be a multiple of 256, 512 or 1024.
// Elements outside of the tensor arrive as 0, and count as bytes; they are not stored.
#pragma once
#include <cuda.h>

#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

// ---- cp.async ----

// kBytes (4, 8 or 16, and both addresses multiples of it) to shared memory, of which the first
// source_bytes are read and the others are 0. Of 16 bytes the first-level cache keeps nothing.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int source_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what cp.async can copy");
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
}

// cp.async.commit_group: the thread's copies since the last one become a group.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group: until at most the kMost youngest groups of the thread are on their way. Other
// threads need a barrier behind it.
template <int kMost>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kMost) : "memory");
}

// ---- bulk copies ----

// cp.async.bulk to shared memory: `bytes`, both addresses multiples of 16; completes on the barrier.
__device__ __forceinline__ void load_bulk(void* shared, const void* global, unsigned bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// cp.async.bulk to global memory; of the thread's open group of stores.
__device__ __forceinline__ void store_bulk(void* global, const void* shared, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(global)),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

// cp.async.bulk.commit_group, and .wait_group: until of all but the kMost youngest groups of the
// thread the data are stored; .read: until they are read, so that shared memory may be reused. A
// block must not end earlier.
__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int kMost>
__device__ __forceinline__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kMost) : "memory");
}
template <int kMost>
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kMost) : "memory");
}

// ---- tensor copies ----
// Maps lie in the kernel's __grid_constant__ parameters; coordinates are of the innermost axis
// first, and may be outside of the tensor.

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

#define FASTCONV_LOAD_TILE(rank) \
  "cp.async.bulk.tensor." rank   \
  ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {"

// cp.async.bulk.tensor, tile mode: the box at these coordinates; completes on the barrier.
__device__ __forceinline__ void load_tile(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                          int x, int y) {
  asm volatile(FASTCONV_LOAD_TILE("2d") "%3, %4}], [%2];" ::"r"(shared_address(shared)), "l"(map),
               "r"(shared_address(barrier)), "r"(x), "r"(y)
               : "memory");
}
__device__ __forceinline__ void load_tile(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                          int x, int y, int z) {
  asm volatile(FASTCONV_LOAD_TILE("3d") "%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ __forceinline__ void load_tile(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                          int x, int y, int z, int u) {
  asm volatile(FASTCONV_LOAD_TILE("4d") "%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(u)
               : "memory");
}
__device__ __forceinline__ void load_tile(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                          int x, int y, int z, int u, int v) {
  asm volatile(FASTCONV_LOAD_TILE("5d") "%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(shared)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
               : "memory");
}
#undef FASTCONV_LOAD_TILE

// cp.async.bulk.tensor, im2col mode, of an NHWC tensor: channels [c, c + channels) of the map's
// number of pixels, from (n, h, w) on: along w, then h, then n, through the map's bounding box. Of
// each pixel, what lies at (h + offset_h, w + offset_w) is read.
__device__ __forceinline__ void load_window_tile(void* shared, const CUtensorMap* map,
                                                 uint64_t* barrier, int c, int w, int h, int n,
                                                 uint16_t offset_w, uint16_t offset_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"(offset_w),
      "h"(offset_h)
      : "memory");
}

#define FASTCONV_STORE_TILE(rank) \
  "cp.async.bulk.tensor." rank ".global.shared::cta.tile.bulk_group [%0, {"

// The box at these coordinates to the tensor; of the thread's open group of stores.
__device__ __forceinline__ void store_tile(const CUtensorMap* map, const void* shared, int x,
                                           int y) {
  asm volatile(FASTCONV_STORE_TILE("2d") "%2, %3}], [%1];" ::"l"(map), "r"(shared_address(shared)),
               "r"(x), "r"(y)
               : "memory");
}
__device__ __forceinline__ void store_tile(const CUtensorMap* map, const void* shared, int x, int y,
                                           int z) {
  asm volatile(FASTCONV_STORE_TILE("3d") "%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ __forceinline__ void store_tile(const CUtensorMap* map, const void* shared, int x, int y,
                                           int z, int u) {
  asm volatile(FASTCONV_STORE_TILE("4d") "%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z), "r"(u)
               : "memory");
}
__device__ __forceinline__ void store_tile(const CUtensorMap* map, const void* shared, int x, int y,
                                           int z, int u, int v) {
  asm volatile(FASTCONV_STORE_TILE("5d") "%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
               "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
               : "memory");
}
#undef FASTCONV_STORE_TILE

}  // namespace cuda
}  // namespace fastconv
