// What of CUDA's runtime the launchers call: the device's attributes, limits of kernels, errors.
#include <cuda_runtime.h>

#include <map>

#include "emulator.h"
#include "memory.h"
#include "scheduler.h"

namespace emulator {

namespace {

int capability = 80;
std::map<const void*, size_t> dynamic_limits;  // cudaFuncSetAttribute
constexpr size_t kPlainBytes = 48 * 1024;

}  // namespace

size_t dynamic_limit(const void* kernel) {
  const auto found = dynamic_limits.find(kernel);
  return found == dynamic_limits.end() ? kPlainBytes : found->second;
}

cudaError_t set_dynamic_limit(const void* kernel, size_t bytes) {
  if (bytes > shared_capacity()) return cudaErrorInvalidValue;
  dynamic_limits[kernel] = bytes;
  return cudaSuccess;
}

}  // namespace emulator

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 3;  // few, so that persistent kernels walk over several tiles
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = emulator::capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = emulator::capability % 10;
      break;
  }
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorLaunchFailure:
      return emulator::failure_text();
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    default:
      return "invalid argument";
  }
}

extern "C" void emulator_set_capability(int capability) { emulator::capability = capability; }
