// Stands in for CUDA's runtime: every call that reaches a device fails with the error that a test
// asks for. Numbers are those of CUDA 13.0's driver_types.h.
#pragma once
#include <cstddef>

#define __global__

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {};
struct dim3 {
  explicit dim3(unsigned x) : x(x) {}
  unsigned x;
};
using cudaStream_t = void*;

// What the machine is: see entries.cpp.
struct Machine {
  int devices, current, driver, capability;
  cudaError_t count_fails, set_fails, image_fails, launch_fails, last;
  long long blocks;  // of the last launch
  cudaStreamCaptureMode mode;
};
extern Machine machine;

inline cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) machine.last = error;
  return error;
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t last = machine.last;
  machine.last = cudaSuccess;
  return last;
}
inline const char* cudaGetErrorString(cudaError_t) { return "the text of CUDA"; }
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = machine.driver;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  if (machine.count_fails == cudaSuccess) *count = machine.devices;
  return failed(machine.count_fails);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = machine.current;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (machine.set_fails == cudaSuccess) machine.current = device;
  return failed(machine.set_fails);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const bool major = which == cudaDevAttrComputeCapabilityMajor;
  *value = major ? machine.capability / 10 : machine.capability % 10;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  const cudaStreamCaptureMode before = machine.mode;
  machine.mode = *mode;
  *mode = before;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return failed(machine.mode == cudaStreamCaptureModeRelaxed ? machine.image_fails
                                                             : cudaErrorLaunchFailure);
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return failed(machine.set_fails);
}
template <class Kernel>
cudaError_t cudaLaunchKernel(Kernel*, dim3 blocks, dim3, void**, size_t, cudaStream_t) {
  machine.blocks = blocks.x;
  return failed(machine.launch_fails);
}
