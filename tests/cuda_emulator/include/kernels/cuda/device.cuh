// Stands in for kernels/cuda/device.cuh: the same functions, by the layouts that the PTX manual
// states.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "device.h"

namespace fastconv {
namespace cuda {

inline unsigned char* dynamic_shared_memory() { return emulator::shared_memory(); }
inline unsigned char* swizzled_shared_memory() { return emulator::shared_memory(); }

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) -
                               emulator::shared_memory());
}

EMULATED_INLINE void load_matrices(uint32_t (&values)[4], const void* row) {
  emulator::MatrixLoad operands{values, row, false};
  emulator::collective(emulator::kAllLanes, emulator::load_matrices, &operands, false);
}

EMULATED_INLINE void load_matrices_transposed(uint32_t (&values)[4], const void* row) {
  emulator::MatrixLoad operands{values, row, true};
  emulator::collective(emulator::kAllLanes, emulator::load_matrices, &operands, false);
}

EMULATED_INLINE void multiply_add_16x8x16(float* sum, const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1, __half) {
  emulator::MatrixProduct operands{sum, {a[0], a[1], a[2], a[3]}, {b0, b1}, emulated_half_to_float};
  emulator::collective(emulator::kAllLanes, emulator::multiply_add, &operands, false);
}

EMULATED_INLINE void multiply_add_16x8x16(float* sum, const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1, __nv_bfloat16) {
  emulator::MatrixProduct operands{
      sum, {a[0], a[1], a[2], a[3]}, {b0, b1}, emulated_bfloat16_to_float};
  emulator::collective(emulator::kAllLanes, emulator::multiply_add, &operands, false);
}

}  // namespace cuda
}  // namespace fastconv
