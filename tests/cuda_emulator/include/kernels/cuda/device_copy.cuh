// Stands in for kernels/cuda/device_copy.cuh.
#pragma once
#include <cuda.h>

#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

template <int kBytes>
EMULATED_INLINE void copy_async(void* shared, const void* global, int source_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what cp.async can copy");
  emulator::copy_async(shared, global, kBytes, source_bytes);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int kMost>
void wait_copies() {
  emulator::wait_copies(kMost);
}

EMULATED_INLINE void load_bulk(void* shared, const void* global, unsigned bytes,
                               uint64_t* barrier) {
  emulator::load_bulk(shared, global, bytes, barrier);
}
EMULATED_INLINE void store_bulk(void* global, const void* shared, unsigned bytes) {
  emulator::store_bulk(global, shared, bytes);
}
inline void commit_stores() { emulator::commit_stores(); }
template <int kMost>
void wait_stores() {
  emulator::wait_stores(kMost);
}
template <int kMost>
void wait_stores_read() {
  emulator::wait_stores(kMost);
}

inline void prefetch_tensor_map(const CUtensorMap*) {}

template <class... Coordinates>
EMULATED_INLINE void load_tile(void* shared, const CUtensorMap* map, uint64_t* barrier,
                               Coordinates... at) {
  const int coordinates[] = {at...};
  emulator::load_tile(shared, map, barrier, sizeof...(at), coordinates);
}
EMULATED_INLINE void load_window_tile(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                      int c, int w, int h, int n, uint16_t offset_w,
                                      uint16_t offset_h) {
  emulator::load_im2col(shared, map, barrier, {c, w, h, n}, {offset_w, offset_h});
}
template <class... Coordinates>
EMULATED_INLINE void store_tile(const CUtensorMap* map, const void* shared, Coordinates... at) {
  const int coordinates[] = {at...};
  emulator::store_tile(map, shared, sizeof...(at), coordinates);
}

}  // namespace cuda
}  // namespace fastconv
