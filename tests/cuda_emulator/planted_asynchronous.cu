// Kernels with a bug each in what works on its own, and the same without it. One warpgroup or two;
// `from` holds 16 KiB, of which the first 4 KiB are a 64 x 32 tensor of 16-bit elements (the map).
#include "kernels/cuda/device_barrier.cuh"
#include "kernels/cuda/device_copy.cuh"
#include "kernels/cuda/device_wgmma.cuh"
#include "kernels/cuda/matrix_descriptor.cuh"
#include "probes.h"

using namespace fastconv::cuda;

namespace {

enum class Bug {
  kNone,
  kNoWait,          // cp.async.wait_group
  kWaitTooFew,      // of the groups
  kNoBlockBarrier,  // behind it
  kNoCommit,
  kMisaligned,
  kNoPhaseWait,
  kWrongParity,
  kTooFewBytes,
  kTooManyArrivals,
  kNoInitFence,
  kNoProxyFence,
  kReuseTooEarly,
  kNoStoreWait,
  kNoProductsWait,
  kNoProductsFence,
  kWrongStride,
  kBehindTheEnd,
  kNoNamedBarrier,
  kSwizzleAlignment,
};

// to[i] = from[63 - i] by cp.async, two groups, of which the first counts.
template <Bug kBug>
__global__ void copy_async_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared_memory());
  const auto* from = reinterpret_cast<const uint32_t*>(probe.from);
  const int thread = threadIdx.x;
  if (kBug == Bug::kMisaligned) {
    copy_async<8>(shared + thread * 2 + 1, from, 8);
  }
  copy_async<4>(shared + thread, from + thread, 4);
  if (kBug != Bug::kNoCommit) commit_copies();
  copy_async<4>(shared + 64 + thread, from + thread, 4);
  commit_copies();
  if (kBug == Bug::kWaitTooFew) wait_copies<2>();
  if (kBug != Bug::kNoWait && kBug != Bug::kWaitTooFew) wait_copies<1>();
  if (kBug != Bug::kNoBlockBarrier) __syncthreads();
  reinterpret_cast<uint32_t*>(probe.to)[thread] = shared[63 - thread];
  wait_copies<0>();
}

// A ring of one place, twice: the producer warp copies 256 bytes, the other warp reads them.
template <Bug kBug>
__global__ void ring_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  auto* full = reinterpret_cast<uint64_t*>(shared + 256);
  auto* empty = full + 1;
  if (threadIdx.x == 0) {
    initialise_barrier(full, 1);
    initialise_barrier(empty, kBug == Bug::kTooManyArrivals ? 16 : 32);
    if (kBug != Bug::kNoInitFence) fence_barrier_initialisation();
  }
  __syncthreads();
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) {
      if (kBug != Bug::kReuseTooEarly) wait_for_phase(empty, round % 2 ^ 1);
      arrive_and_expect(full, kBug == Bug::kTooFewBytes ? 512 : 256);
      load_bulk(shared, probe.from + round * 256, 256, full);
    } else if (threadIdx.x >= 32) {
      const int lane = threadIdx.x - 32;
      if (kBug != Bug::kNoPhaseWait)
        wait_for_phase(full, kBug == Bug::kWrongParity ? round % 2 ^ 1 : round % 2);
      for (int i = lane; i < 256; i += 32) probe.to[round * 256 + i] = shared[i];
      arrive(empty);
    }
  }
}

// 256 bytes through shared memory, by a bulk store.
template <Bug kBug>
__global__ void store_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  for (int round = 0; round < 2; ++round) {
    for (int i = threadIdx.x; i < 256; i += 64) shared[i] = probe.from[round * 256 + i];
    if (kBug != Bug::kNoProxyFence) fence_asynchronous_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
      store_bulk(probe.to + round * 256, shared, 256);
      commit_stores();
      if (kBug != Bug::kNoStoreWait) wait_stores_read<0>();
    }
    __syncthreads();
  }
}

// 64 x 32 elements with the 64-byte swizzle, to `to` line by line: 16-byte unit u of line r lies at
// u ^ r / 2 % 4.
template <Bug kBug>
__global__ void swizzle_kernel(const __grid_constant__ Probe probe) {
  unsigned char* shared = swizzled_shared_memory() + (kBug == Bug::kSwizzleAlignment ? 256 : 0);
  auto* barrier = reinterpret_cast<uint64_t*>(shared + 8192);
  if (threadIdx.x == 0) {
    initialise_barrier(barrier, 1);
    fence_barrier_initialisation();
    arrive_and_expect(barrier, 4096);
    load_tile(shared, &probe.map, barrier, 0, 0);
  }
  __syncthreads();
  wait_for_phase(barrier, 0);
  const int line = threadIdx.x;
  for (int unit = 0; unit < 4; ++unit) {
    const int place = kBug == Bug::kWrongStride ? unit ^ line % 4 : unit ^ line / 2 % 4;
    for (int i = 0; i < 16; ++i)
      probe.to[line * 64 + unit * 16 + i] = shared[line * 64 + place * 16 + i];
  }
}

// A 64 x 16 of numbers times B 64 x 16, rows of 32 bytes, no swizzle; both from `from`.
template <Bug kBug>
__global__ void product_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  for (int i = threadIdx.x; i < 4096; i += 128) shared[i] = probe.from[i];
  if (kBug != Bug::kNoProxyFence) fence_asynchronous_proxy();
  __syncthreads();
  const uint64_t a = matrix_descriptor(shared, 128, 256, Swizzle::kNone);
  const uint64_t b = matrix_descriptor(shared + (kBug == Bug::kBehindTheEnd ? 65536 - 1024 : 2048),
                                       128, kBug == Bug::kWrongStride ? 512 : 256, Swizzle::kNone);
  WarpgroupSums<64> sums;
  for (int i = 0; i < 32; ++i) sums[i] = 0;
  if (kBug != Bug::kNoProductsFence) fence_products(sums);
  multiply_add_warpgroup<__half>(sums, a, b, true);
  commit_products();
  if (kBug != Bug::kNoProductsWait) wait_products<0>(sums);
  if (kBug == Bug::kReuseTooEarly) shared[threadIdx.x] = 0;
  auto* to = reinterpret_cast<float*>(probe.to) + threadIdx.x * 32;
  for (int i = 0; i < 32; ++i) to[i] = sums[i];
}

// As the sums were of use before: shared memory is overwritten while the product may read it.
__global__ void overwritten_factor_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  for (int i = threadIdx.x; i < 4096; i += 128) shared[i] = probe.from[i];
  fence_asynchronous_proxy();
  __syncthreads();
  const uint64_t a = matrix_descriptor(shared, 128, 256, Swizzle::kNone);
  WarpgroupSums<64> sums;
  fence_products(sums);
  multiply_add_warpgroup<__half>(sums, a, a, false);
  commit_products();
  shared[threadIdx.x] = 0;
  wait_products<0>(sums);
}

template <Bug kBug>
__global__ void named_barrier_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared_memory());
  if (threadIdx.x < 64) {
    shared[threadIdx.x] = reinterpret_cast<const uint32_t*>(probe.from)[threadIdx.x];
    if (kBug != Bug::kNoNamedBarrier) synchronise_threads(1, 64);
    reinterpret_cast<uint32_t*>(probe.to)[threadIdx.x] = shared[63 - threadIdx.x];
  } else {
    synchronise_threads(2, 64);
  }
}

__global__ void uninitialised_barrier_kernel(const Probe) {
  arrive(reinterpret_cast<uint64_t*>(dynamic_shared_memory()));
}

__global__ void missing_warp_kernel(const Probe probe) {
  WarpgroupSums<64> sums;
  fence_products(sums);
  if (threadIdx.x < 96) multiply_add_warpgroup<__half>(sums, 0, 0, false);
}

}  // namespace

extern const NamedProbe kPlantedAsynchronous[] = {
    {"cp.async", copy_async_kernel<Bug::kNone>, 64},
    {"cp.async: no wait", copy_async_kernel<Bug::kNoWait>, 64},
    {"cp.async: waits for too few", copy_async_kernel<Bug::kWaitTooFew>, 64},
    {"cp.async: no barrier", copy_async_kernel<Bug::kNoBlockBarrier>, 64},
    {"cp.async: no commit", copy_async_kernel<Bug::kNoCommit>, 64},
    {"cp.async: misaligned", copy_async_kernel<Bug::kMisaligned>, 64},
    {"ring", ring_kernel<Bug::kNone>, 64},
    {"ring: no wait for the phase", ring_kernel<Bug::kNoPhaseWait>, 64},
    {"ring: wrong parity", ring_kernel<Bug::kWrongParity>, 64},
    {"ring: bytes that never come", ring_kernel<Bug::kTooFewBytes>, 64},
    {"ring: too many arrivals", ring_kernel<Bug::kTooManyArrivals>, 64},
    {"ring: initialisation not fenced", ring_kernel<Bug::kNoInitFence>, 64},
    {"ring: reused too early", ring_kernel<Bug::kReuseTooEarly>, 64},
    {"store", store_kernel<Bug::kNone>, 64},
    {"store: no proxy fence", store_kernel<Bug::kNoProxyFence>, 64},
    {"store: no wait", store_kernel<Bug::kNoStoreWait>, 64},
    {"swizzle", swizzle_kernel<Bug::kNone>, 64},
    {"swizzle: wrong", swizzle_kernel<Bug::kWrongStride>, 64},
    {"swizzle: alignment", swizzle_kernel<Bug::kSwizzleAlignment>, 64},
    {"wgmma", product_kernel<Bug::kNone>, 128},
    {"wgmma: no proxy fence", product_kernel<Bug::kNoProxyFence>, 128},
    {"wgmma: no wait", product_kernel<Bug::kNoProductsWait>, 128},
    {"wgmma: no fence", product_kernel<Bug::kNoProductsFence>, 128},
    {"wgmma: wrong stride", product_kernel<Bug::kWrongStride>, 128},
    {"wgmma: behind the end", product_kernel<Bug::kBehindTheEnd>, 128},
    {"wgmma: factor overwritten", overwritten_factor_kernel, 128},
    {"wgmma: a warp misses", missing_warp_kernel, 128},
    {"named barrier", named_barrier_kernel<Bug::kNone>, 128},
    {"named barrier: missing", named_barrier_kernel<Bug::kNoNamedBarrier>, 128},
    {"mbarrier not initialised", uninitialised_barrier_kernel, 64},
    {nullptr, nullptr, 0},
};
