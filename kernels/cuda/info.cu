#include "kernels/cuda/info.h"

#include <cuda_runtime.h>

#include <string>

namespace fastconv {
namespace cuda {

namespace {

// Launched by nobody: the runtime looks up its image to tell whether this library holds code for a
// device.
struct Nothing {};
__global__ void info_image_kernel(const Nothing) {}

// 12040 is CUDA 12.4.
std::string version_text(int version) {
  return "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string driver_text() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  return "expected a CUDA driver for " + version_text(runtime) + " or later, got " +
         (driver ? "one for " + version_text(driver) : "none");
}

std::string device_text(const std::string& got) {
  return "expected the number of one of " + std::to_string(device_count()) + " CUDA devices, got " +
         got;
}

// The architectures are those of the build, "80,90a".
std::string image_text() {
  std::string archs = FASTCONV_CUDA_ARCHS;
  for (size_t at = archs.find(','); at != std::string::npos; at = archs.find(',', at + 5))
    archs.replace(at, 1, ", sm_");
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "expected a CUDA device of a compute capability that this build has kernels for (sm_" +
         archs + "), got " + std::to_string(major) + "." + std::to_string(minor);
}

// A launch only queues work: these tell of work that was queued before.
bool is_of_earlier_work(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

std::string text_of(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return driver_text();
    case cudaErrorNoDevice:
      return "expected a CUDA device, got none";
    case cudaErrorInvalidDevice:
      return device_text("another");
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidDeviceFunction:
      return image_text();
    case cudaErrorMemoryAllocation:
      return "expected memory enough on the CUDA device, got: out of memory";
    default:
      break;
  }
  const std::string text = cudaGetErrorString(error);
  if (!is_of_earlier_work(error)) return text;
  return "expected earlier work on the CUDA device to have succeeded, got: " + text;
}

const char* kept(const std::string& text) {
  thread_local std::string last;
  last = text;
  return last.c_str();
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

const char* error_text(int code) {
  const std::string text = text_of(static_cast<cudaError_t>(code));
  cudaGetLastError();
  return kept(text);
}

const char* probe(int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return error_text(error);
  if (device < 0 || device >= count) return kept(device_text(std::to_string(device)));
  const int previous = set_device(device);
  if (previous < 0) return error_text(-previous);
  // The image may be loaded here: on a thread that captures a graph that is no part of the graph.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaFuncAttributes attributes;
  error = cudaFuncGetAttributes(&attributes, info_image_kernel);
  cudaThreadExchangeStreamCaptureMode(&mode);
  const char* text = error == cudaSuccess ? nullptr : error_text(error);
  set_device(previous);
  return text;
}

}  // namespace cuda
}  // namespace fastconv
