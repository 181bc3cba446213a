// Stands in for kernels/cuda/device_grid.cuh.
#pragma once
#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

EMULATED_INLINE void arrive_at_counter(unsigned* counter) { emulator::arrive_at_counter(counter); }
EMULATED_INLINE void wait_for_counter(const unsigned* counter, unsigned least) {
  emulator::wait_for_counter(counter, least);
}
EMULATED_INLINE void synchronise_grid(unsigned* counter, unsigned round) {
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_at_counter(counter);
    wait_for_counter(counter, (round + 1) * gridDim.x);
  }
  __syncthreads();
}

}  // namespace cuda
}  // namespace fastconv
