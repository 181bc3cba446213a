// mbarriers, fences between proxies, barriers of some of a block's warps, and the registers that a
// warpgroup holds.
//
// An mbarrier (8 bytes of shared memory) counts arrivals and bytes. Its phases are numbered from 0;
// a phase ends when all arrivals have come and all bytes that arrivals announced. A thread waits for
// a phase by its parity (number % 2), so it must never be two phases behind.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier
#pragma once
#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

// mbarrier.init: `arrivals` end each phase. Before another thread uses the barrier: a barrier of the
// block. Before a copy completes on it: fence_barrier_initialisation.
__device__ __forceinline__ void initialise_barrier(uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// fence.mbarrier_init: makes the calling thread's mbarrier.init known to the asynchronous proxy.
__device__ __forceinline__ void fence_barrier_initialisation() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// fence.proxy.async: shows what was written by ordinary stores, and is known to the calling thread,
// to the asynchronous proxy: bulk and tensor copies, and wgmma's reads of shared memory.
__device__ __forceinline__ void fence_asynchronous_proxy() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

// mbarrier.arrive: one arrival, which hands on what the thread has done so far.
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// mbarrier.arrive.expect_tx: one arrival; the phase also needs `bytes` more bytes (below 2^20), which
// copies bring.
__device__ __forceinline__ void arrive_and_expect(uint64_t* barrier, unsigned bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// mbarrier.try_wait.parity until it says yes: until the present phase is not of this parity any
// more. On a barrier just initialised, parity 1 passes at once.
__device__ __forceinline__ void wait_for_phase(uint64_t* barrier, unsigned parity) {
  const uint32_t address = shared_address(barrier);
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(address), "r"(parity)
        : "memory");
  }
}

// bar.sync: a barrier of `threads` threads, whole warps, of those that name the same number (1 to
// 15; 0 is __syncthreads).
__device__ __forceinline__ void synchronise_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// elect.sync: true in one lane of the warp, which the hardware chooses; all lanes must call it.
__device__ __forceinline__ bool elect_lane() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred elected;\n"
      "elect.sync _|elected, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, elected;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// setmaxnreg: the warpgroup gives back registers above kCount per thread, or waits until it has
// kCount; a multiple of 8 from 24 to 256. Every warp of the warpgroup must call it.
template <int kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace cuda
}  // namespace fastconv
