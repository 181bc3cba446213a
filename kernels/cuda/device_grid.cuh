// What blocks of one grid can tell each other: counters in global memory, which the host sets to 0
// before the launch. Whoever waits for another block needs all blocks to run at once:
// launch_together (launch.h).
#pragma once
#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

// red.release.gpu: one more; what the thread has done so far is seen by whoever then acquires.
__device__ __forceinline__ void arrive_at_counter(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter))
               : "memory");
}

// ld.acquire.gpu until the counter has reached `least`; it must not pass 2^31 beyond it.
__device__ __forceinline__ void wait_for_counter(const unsigned* counter, unsigned least) {
  unsigned count;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(count)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
  } while (static_cast<int>(count - least) < 0);
}

// A barrier of all blocks, for the `round`-th time (from 0) on this counter. All threads call it.
__device__ __forceinline__ void synchronise_grid(unsigned* counter, unsigned round) {
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_at_counter(counter);
    wait_for_counter(counter, (round + 1) * gridDim.x);
  }
  __syncthreads();
}

}  // namespace cuda
}  // namespace fastconv
