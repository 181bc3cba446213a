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

// Queues `blocks` blocks of `threads` threads with `shared_bytes` of dynamic shared memory; a
// kernel takes one struct. Returns null, or the text of the error. No blocks: nothing is queued.
template <class Parameters>
const char* launch(void (*kernel)(const Parameters), int64_t blocks, int threads,
                   size_t shared_bytes, void* stream, const Parameters& parameters) {
  if (blocks <= 0) return nullptr;
  if (blocks > kMaxBlocks) return error_text(cudaErrorInvalidConfiguration);
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kPlainSharedBytes) {  // of the current device; it does not outlive a reset
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    error = cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                             dim3(static_cast<unsigned>(threads)), arguments, shared_bytes,
                             static_cast<cudaStream_t>(stream));
  }
  return error == cudaSuccess ? nullptr : error_text(error);
}

}  // namespace cuda
}  // namespace fastconv
