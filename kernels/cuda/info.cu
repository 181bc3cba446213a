#include "kernels/cuda/info.h"

#include <cuda_runtime.h>

namespace fastconv {
namespace cuda {

namespace {

// Launched by nobody: the runtime looks up its image to tell whether this library holds code for a
// device.
struct Nothing {};
__global__ void info_image_kernel(const Nothing) {}

const char* text_of(cudaError_t error) {
  cudaGetLastError();  // takes the error off the thread, so that a later call does not find it
  switch (error) {
    case cudaErrorInsufficientDriver:
      return "the CUDA driver is too old for the CUDA runtime that fastconv was built with";
    case cudaErrorNoDevice:
      return "there is no CUDA device";
    case cudaErrorInvalidDevice:
      return "there is no CUDA device of that number";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidDeviceFunction:
      return "fastconv was built without kernels for this device's compute capability";
    default:
      return cudaGetErrorString(error);
  }
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

int set_device(int device) {
  int previous = 0;
  cudaError_t error = cudaGetDevice(&previous);
  if (error == cudaSuccess && previous != device) error = cudaSetDevice(device);
  if (error == cudaSuccess) return previous;
  cudaGetLastError();
  return -static_cast<int>(error);
}

const char* probe(int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return text_of(error);
  if (device < 0 || device >= count) return text_of(cudaErrorInvalidDevice);
  const int previous = set_device(device);
  if (previous < 0) return text_of(static_cast<cudaError_t>(-previous));
  cudaFuncAttributes attributes;
  error = cudaFuncGetAttributes(&attributes, info_image_kernel);
  set_device(previous);
  return error == cudaSuccess ? nullptr : text_of(error);
}

}  // namespace cuda
}  // namespace fastconv
