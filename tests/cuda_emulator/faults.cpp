// The text of an error: the emulator's own, which says where a kernel went wrong. The texts that a
// caller sees are proven in ../cuda_faults.
#include <cuda_runtime.h>

#include "kernels/cuda/info.h"

namespace fastconv {
namespace cuda {
const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
}  // namespace cuda
}  // namespace fastconv
