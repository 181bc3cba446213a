// cp.async, mbarriers, bulk copies and tensor copies, one block.
#include "kernels/cuda/device_barrier.cuh"
#include "kernels/cuda/device_copy.cuh"
#include "probes.h"

using namespace fastconv::cuda;

namespace {

// A thread's kBytes; of thread t, t % (kBytes + 1) are read. What arrives is written as it is.
template <int kBytes>
__global__ void copy_async_kernel(const Probe probe) {
  unsigned char* shared = dynamic_shared_memory();
  const int thread = threadIdx.x, at = thread * kBytes;
  copy_async<kBytes>(shared + at, probe.from + at, thread % (kBytes + 1));
  commit_copies();
  wait_copies<0>();
  for (int i = 0; i < kBytes; ++i) probe.to[at + i] = shared[at + i];
}

// Of three groups the two oldest have arrived.
__global__ void copy_groups_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared_memory());
  const auto* from = reinterpret_cast<const uint32_t*>(probe.from);
  auto* to = reinterpret_cast<uint32_t*>(probe.to);
  for (int group = 0; group < 3; ++group) {
    const int at = group * 64 + static_cast<int>(threadIdx.x);
    copy_async<4>(shared + at, from + at, 4);
    commit_copies();
  }
  wait_copies<1>();
  __syncthreads();
  for (int group = 0; group < 2; ++group)
    to[group * 64 + threadIdx.x] = shared[group * 64 + 63 - threadIdx.x];
  wait_copies<0>();
  __syncthreads();
  to[128 + threadIdx.x] = shared[128 + 63 - threadIdx.x];
}

// Values go round the block numbers[0] times, with nothing but an mbarrier between. Two places in
// turn, so that a value is read before its place is written again.
__global__ void mbarrier_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared_memory());
  auto* barrier = reinterpret_cast<uint64_t*>(shared + 128);
  if (threadIdx.x == 0) initialise_barrier(barrier, 64);
  __syncthreads();
  uint32_t value = reinterpret_cast<const uint32_t*>(probe.from)[threadIdx.x];
  for (int round = 0; round < probe.numbers[0]; ++round) {
    uint32_t* place = shared + round % 2 * 64;
    place[threadIdx.x] = value;
    arrive(barrier);
    wait_for_phase(barrier, round % 2);
    value = place[(threadIdx.x + 1) % 64];
  }
  reinterpret_cast<uint32_t*>(probe.to)[threadIdx.x] = value;
}

__device__ uint64_t* new_barrier(unsigned char* at) {
  auto* barrier = reinterpret_cast<uint64_t*>(at);
  if (threadIdx.x == 0) {
    initialise_barrier(barrier, 1);
    fence_barrier_initialisation();
  }
  __syncthreads();
  return barrier;
}

// numbers[0] bytes in, every byte one up, out.
__global__ void bulk_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  uint64_t* barrier = new_barrier(shared + 4096);
  const auto bytes = static_cast<unsigned>(probe.numbers[0]);
  if (threadIdx.x == 0) {
    arrive_and_expect(barrier, bytes);
    load_bulk(shared, probe.from, bytes, barrier);
  }
  wait_for_phase(barrier, 0);
  for (unsigned i = threadIdx.x; i < bytes; i += blockDim.x) ++shared[i];
  fence_asynchronous_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_bulk(probe.to, shared, bytes);
    commit_stores();
    wait_stores<0>();
  }
}

// The box at coordinates numbers[1..], numbers[0] bytes, as it lies in shared memory.
template <int kRank>
__global__ void load_tile_kernel(const __grid_constant__ Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  const int64_t* n = probe.numbers;
  uint64_t* barrier = new_barrier(shared + 32768);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&probe.map);
    arrive_and_expect(barrier, static_cast<unsigned>(n[0]));
    const int x = n[1], y = n[2], z = n[3], u = n[4], v = n[5];
    if constexpr (kRank == 2) load_tile(shared, &probe.map, barrier, x, y);
    if constexpr (kRank == 3) load_tile(shared, &probe.map, barrier, x, y, z);
    if constexpr (kRank == 4) load_tile(shared, &probe.map, barrier, x, y, z, u);
    if constexpr (kRank == 5) load_tile(shared, &probe.map, barrier, x, y, z, u, v);
  }
  wait_for_phase(barrier, 0);
  for (int i = threadIdx.x; i < n[0]; i += blockDim.x) probe.to[i] = shared[i];
}

__global__ void load_window_tile_kernel(const __grid_constant__ Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  const int64_t* n = probe.numbers;
  uint64_t* barrier = new_barrier(shared + 32768);
  if (threadIdx.x == 0) {
    arrive_and_expect(barrier, static_cast<unsigned>(n[0]));
    load_window_tile(shared, &probe.map, barrier, n[1], n[2], n[3], n[4], n[5], n[6]);
  }
  wait_for_phase(barrier, 0);
  for (int i = threadIdx.x; i < n[0]; i += blockDim.x) probe.to[i] = shared[i];
}

// numbers[0] bytes of `from`, as they are in shared memory, to the box at numbers[1..].
template <int kRank>
__global__ void store_tile_kernel(const __grid_constant__ Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  const int64_t* n = probe.numbers;
  for (int i = threadIdx.x; i < n[0]; i += blockDim.x) shared[i] = probe.from[i];
  fence_asynchronous_proxy();
  __syncthreads();
  if (threadIdx.x != 0) return;
  const int x = n[1], y = n[2], z = n[3], u = n[4], v = n[5];
  if constexpr (kRank == 2) store_tile(&probe.map, shared, x, y);
  if constexpr (kRank == 3) store_tile(&probe.map, shared, x, y, z);
  if constexpr (kRank == 4) store_tile(&probe.map, shared, x, y, z, u);
  if constexpr (kRank == 5) store_tile(&probe.map, shared, x, y, z, u, v);
  commit_stores();
  wait_stores_read<0>();
}

}  // namespace

extern const NamedProbe kCopyProbes[] = {
    {"copy_async 4", copy_async_kernel<4>, 64},
    {"copy_async 8", copy_async_kernel<8>, 64},
    {"copy_async 16", copy_async_kernel<16>, 64},
    {"copy groups", copy_groups_kernel, 64},
    {"mbarrier", mbarrier_kernel, 64},
    {"bulk", bulk_kernel, 64},
    {"load_tile 2", load_tile_kernel<2>, 64},
    {"load_tile 3", load_tile_kernel<3>, 64},
    {"load_tile 4", load_tile_kernel<4>, 64},
    {"load_tile 5", load_tile_kernel<5>, 64},
    {"load_window_tile", load_window_tile_kernel, 64},
    {"store_tile 2", store_tile_kernel<2>, 64},
    {"store_tile 3", store_tile_kernel<3>, 64},
    {"store_tile 4", store_tile_kernel<4>, 64},
    {"store_tile 5", store_tile_kernel<5>, 64},
    {nullptr, nullptr, 0},
};
