// Averages on CUDA, which avg_pool2d and adaptive_avg_pool2d are.
#pragma once
#include "kernels/average.h"

namespace fastconv {
namespace cuda {

// Queues the kernels; null, or the text of the first CUDA error.
const char* average(const Average& average, const void* read, void* written, void* stream);

}  // namespace cuda
}  // namespace fastconv
