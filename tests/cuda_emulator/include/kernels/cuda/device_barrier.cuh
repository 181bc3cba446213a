// Stands in for kernels/cuda/device_barrier.cuh.
#pragma once
#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

EMULATED_INLINE void initialise_barrier(uint64_t* barrier, unsigned arrivals) {
  emulator::initialise_barrier(barrier, arrivals);
}
inline void fence_barrier_initialisation() { emulator::fence_barrier_initialisation(); }
inline void fence_asynchronous_proxy() { emulator::fence_proxies(); }
EMULATED_INLINE void arrive(uint64_t* barrier) { emulator::arrive_at_barrier(barrier, 0); }
EMULATED_INLINE void arrive_and_expect(uint64_t* barrier, unsigned bytes) {
  emulator::arrive_at_barrier(barrier, bytes);
}
EMULATED_INLINE void wait_for_phase(uint64_t* barrier, unsigned parity) {
  emulator::wait_for_barrier(barrier, parity);
}
EMULATED_INLINE void synchronise_threads(int barrier, int threads) {
  emulator::named_barrier(barrier, threads);
}
EMULATED_INLINE bool elect_lane() {
  emulator::collective(emulator::kAllLanes, emulator::meet_lanes, nullptr, false);
  return threadIdx.x % 32 == 0;
}
template <int kCount>
EMULATED_INLINE void give_registers() {
  emulator::collective(emulator::kAllLanes, emulator::meet_lanes, nullptr, false);
  emulator::set_registers(kCount, false);
}
template <int kCount>
EMULATED_INLINE void take_registers() {
  emulator::collective(emulator::kAllLanes, emulator::meet_lanes, nullptr, false);
  emulator::set_registers(kCount, true);
}

}  // namespace cuda
}  // namespace fastconv
