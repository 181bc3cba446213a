// The one way to start a kernel: on the caller's stream, checked, without synchronisation.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/info.h"

namespace fastconv {
namespace cuda {

constexpr int64_t kMaxBlocks =
    (int64_t{1} << 31) - 1;  // of a one-dimensional grid, CUDA programming guide, table 30
constexpr size_t kPlainSharedBytes = 48 * 1024;  // more must be asked for, kernel by kernel

// For the current device; it does not outlive a reset of it.
template <class Parameters>
cudaError_t allow_shared_bytes(void (*kernel)(const Parameters), size_t bytes) {
  if (bytes <= kPlainSharedBytes) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

// Queues `blocks` blocks of `threads` threads with `shared_bytes` of dynamic shared memory; a
// kernel takes one struct. Returns null, or the text of the error. No blocks: nothing is queued.
template <class Parameters>
const char* launch(void (*kernel)(const Parameters), int64_t blocks, int threads,
                   size_t shared_bytes, void* stream, const Parameters& parameters) {
  if (blocks <= 0) return nullptr;
  if (blocks > kMaxBlocks) return error_text(cudaErrorInvalidConfiguration);
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  cudaError_t error = allow_shared_bytes(kernel, shared_bytes);
  if (error == cudaSuccess) {
    error = cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                             dim3(static_cast<unsigned>(threads)), arguments, shared_bytes,
                             static_cast<cudaStream_t>(stream));
  }
  return error == cudaSuccess ? nullptr : error_text(error);
}

// The same, and all blocks run at once, so that they may wait for each other (device_grid.cuh). The
// device must have room for them: an error says when it has not.
template <class Parameters>
const char* launch_together(void (*kernel)(const Parameters), int64_t blocks, int threads,
                            size_t shared_bytes, void* stream, const Parameters& parameters) {
  if (blocks <= 0) return nullptr;
  if (blocks > kMaxBlocks) return error_text(cudaErrorInvalidConfiguration);
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  cudaError_t error = allow_shared_bytes(kernel, shared_bytes);
  if (error == cudaSuccess) {
    error = cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                                        dim3(static_cast<unsigned>(threads)), arguments,
                                        shared_bytes, static_cast<cudaStream_t>(stream));
  }
  return error == cudaSuccess ? nullptr : error_text(error);
}

}  // namespace cuda
}  // namespace fastconv
