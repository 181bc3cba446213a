// What only the device can do: every PTX instruction that the kernels use, one wrapper each, with
// the layout that the PTX manual states: here and in device_barrier.cuh, device_copy.cuh and
// device_wgmma.cuh. tests/cuda_emulator/ has the same functions for the host.
//
// Matrix products:
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-fragment-mma-16816-float
// In them  group = lane / 4,  pair = lane % 4;  a 32-bit register holds two 16-bit elements, the
// lower index below.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fastconv {
namespace cuda {

// The dynamic shared memory of the block, of the size that the launch asked for.
__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// The same, aligned to what the 128-byte swizzle repeats after: for tensor copies and wgmma.
__device__ __forceinline__ unsigned char* swizzled_shared_memory() {
  extern __shared__ __align__(1024) unsigned char swizzled_memory[];
  return swizzled_memory;
}

// cvta.to.shared: where shared memory lies in its own address space.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ldmatrix.x4: four 8x8 tiles of 16-bit elements from shared memory. Lane l gives the address of
// the 16 bytes that are row l % 8 of tile l / 8; of tile i, the lane receives elements [group][2 *
// pair], [group][2 * pair + 1] in values[i].
__device__ __forceinline__ void load_matrices(uint32_t (&values)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
               : "r"(shared_address(row))
               : "memory");
}

// ldmatrix.x4.trans: the same, but of tile i the lane receives elements [2 * pair][group], [2 *
// pair + 1][group].
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&values)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
               : "r"(shared_address(row))
               : "memory");
}

// mma.m16n8k16: sum[16x8] += a[16x16] * b[16x8], 16-bit factors, float32 sums. The lane's elements
// are
//   a[0]: [group][2 pair], +1     a[1]: [group + 8][2 pair], +1
//   a[2], a[3]: the same, 8 columns on
//   b0:   [2 pair][group], +1     b1:   [2 pair + 8][group], +1
//   sum[0], sum[1]: [group][2 pair], +1        sum[2], sum[3]: [group + 8][2 pair], +1
__device__ __forceinline__ void multiply_add_16x8x16(float* sum, const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1, __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add_16x8x16(float* sum, const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace cuda
}  // namespace fastconv
