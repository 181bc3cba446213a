// How wgmma is told where a matrix lies in shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-shared-memory-layout
//
// The unit is 16 bytes: 8 neighbours of 16 bits. A core matrix is 8 lines of one swizzle span each
// (16 bytes without a swizzle), line after line. A product takes 64 or kColumns rows x 16 terms:
//
//   terms are neighbours: rows r / 8 are `stride` bytes apart; the two units of terms are neighbours
//                         of one line, or, without a swizzle, `leading` bytes apart.
//   rows are neighbours:  terms t / 8 are `stride` bytes apart, and spans of rows `leading`; without
//                         a swizzle it is the other way round.
//
// Matrices start at a multiple of 8 spans. Along a line of terms a product may start at any unit:
// the swizzle is of address bits, so that the offset is simply added.
#pragma once
#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

enum class Swizzle { kNone = 0, k128Bytes = 1, k64Bytes = 2, k32Bytes = 3 };

// Bits 0-13 the address, 16-29 `leading`, 32-45 `stride`, each / 16; 62-63 the swizzle.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* shared, uint32_t leading,
                                                      uint32_t stride, Swizzle swizzle) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>(bytes >> 4 & 0x3FFF); };
  return field(shared_address(shared)) | field(leading) << 16 | field(stride) << 32 |
         static_cast<uint64_t>(swizzle) << 62;
}

// The descriptor `bytes` further on.
__device__ __forceinline__ uint64_t advanced(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace cuda
}  // namespace fastconv
