// Kernels with a bug each in how the lanes of a warp and the warps of a block meet, and in what they
// touch; and the same without it. One block or two; `from` holds 16 KiB.
#include "kernels/cuda/device_barrier.cuh"
#include "kernels/cuda/device_copy.cuh"
#include "kernels/cuda/device_wgmma.cuh"
#include "kernels/cuda/matrix_descriptor.cuh"
#include "probes.h"

using namespace fastconv::cuda;

namespace {

enum class Bug {
  kNone,
  kTwoPlaces,
  kMissing,
  kSomeLanes,
  kSomeWarps,
  kOtherLane,  // than the mask names
  kUnwritten,
  kOverrun,
  kMisaligned,
  kTooLate,
};

__device__ const uint32_t* words(const Probe& probe) {
  return reinterpret_cast<const uint32_t*>(probe.from);
}
__device__ uint32_t* results(const Probe& probe) { return reinterpret_cast<uint32_t*>(probe.to); }

// to[i] = the other half-warp's value, by a shuffle.
template <Bug kBug>
__global__ void shuffle_kernel(const Probe probe) {
  const unsigned lane = threadIdx.x % 32;
  uint32_t value = words(probe)[threadIdx.x];
  if (kBug == Bug::kTwoPlaces) {
    if (lane < 16) {
      results(probe)[64 + threadIdx.x] = 1;
      value = __shfl_xor_sync(0xffffffffu, value, 16);
    } else {
      value = __shfl_xor_sync(0xffffffffu, value, 16);
      results(probe)[64 + threadIdx.x] = 2;
    }
  } else if (kBug == Bug::kOtherLane) {
    if (lane < 16) value = __shfl_xor_sync(0x0000ffffu, value, 16);
  } else {
    value = __shfl_xor_sync(0xffffffffu, value, 16);
  }
  results(probe)[threadIdx.x] = value;
}

// to[i] = the other half-warp's value, through shared memory and __syncwarp.
template <Bug kBug>
__global__ void warp_barrier_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared_memory());
  shared[threadIdx.x] = words(probe)[threadIdx.x];
  if (kBug == Bug::kSomeLanes) {
    if (threadIdx.x % 32 < 16) return;
    __syncwarp(0xffff0000u);
  } else if (kBug == Bug::kMissing) {
    __shfl_xor_sync(0xffffffffu, 0, 1);
  } else {
    __syncwarp();
  }
  results(probe)[threadIdx.x] = shared[threadIdx.x ^ 16];
}

template <Bug kBug>
__global__ void static_kernel(const Probe probe) {
  __shared__ uint32_t fixed[64];
  if (kBug != Bug::kUnwritten || threadIdx.x != 9)
    fixed[threadIdx.x + (kBug == Bug::kOverrun ? 1 : 0)] = words(probe)[threadIdx.x];
  __syncthreads();
  results(probe)[threadIdx.x] = fixed[63 - threadIdx.x];
}

struct TwoArrays {
  uint32_t first[64], second[64];
};

// From one array of a struct in shared memory into the next.
template <Bug kBug>
__global__ void member_kernel(const Probe probe) {
  auto& shared = *reinterpret_cast<TwoArrays*>(dynamic_shared_memory());
  shared.first[threadIdx.x + (kBug == Bug::kOverrun ? 1 : 0)] = words(probe)[threadIdx.x];
  __syncthreads();
  results(probe)[threadIdx.x] = shared.first[63 - threadIdx.x];
}

// Two blocks; each may read back its own results.
template <Bug kBug>
__global__ void read_back_kernel(const Probe probe) {
  const unsigned at = blockIdx.x * 64 + threadIdx.x;
  results(probe)[at] = words(probe)[at];
  __syncthreads();
  unsigned other = at ^ 1;
  if (kBug == Bug::kUnwritten) other = at + 128;
  if (kBug == Bug::kMissing && blockIdx.x == 1) other = at - 64;
  results(probe)[256 + at] = results(probe)[other];
}

template <Bug kBug>
__global__ void load_matrices_kernel(const Probe probe) {
  auto* shared = dynamic_shared_memory();
  for (int i = 0; i < 16; ++i) {
    if (kBug != Bug::kUnwritten || threadIdx.x != 9 || i < 15)
      shared[threadIdx.x * 16 + i] = probe.from[threadIdx.x * 16 + i];
  }
  if (kBug != Bug::kMissing) __syncwarp();
  uint32_t values[4] = {};
  const unsigned char* row = shared + (threadIdx.x ^ 1) * 16;
  if (kBug == Bug::kMisaligned) row += threadIdx.x == 30 ? 8 : 0;
  if (kBug == Bug::kOverrun) row += threadIdx.x == 30 ? 65536 : 0;
  if (kBug == Bug::kTwoPlaces) {
    if (threadIdx.x < 16) {
      load_matrices(values, row);
      results(probe)[128 + threadIdx.x] = 1;
    } else {
      load_matrices_transposed(values, row);
      results(probe)[128 + threadIdx.x] = 2;
    }
  } else {
    load_matrices(values, row);
  }
  for (int i = 0; i < 4; ++i) results(probe)[threadIdx.x * 4 + i] = values[i];
}

// Two words at once, which a compiler for the host writes one by one.
template <Bug kBug>
__global__ void pair_kernel(const Probe probe) {
  auto* shared = dynamic_shared_memory();
  auto* pair =
      reinterpret_cast<uint2*>(shared + threadIdx.x * 8 + (kBug == Bug::kMisaligned ? 4 : 0));
  *pair = uint2{words(probe)[threadIdx.x], 0};
  results(probe)[threadIdx.x] = pair->x;
}

template <Bug kBug>
__global__ void trips_kernel(const Probe probe) {
  const int trips = kBug == Bug::kNone ? 2 : 1 + static_cast<int>(threadIdx.x % 2);
  for (int i = 0; i < trips; ++i) __syncthreads();
  results(probe)[threadIdx.x] = words(probe)[threadIdx.x];
}

// Of four warps two meet, or half of each.
template <Bug kBug>
__global__ void named_barrier_kernel(const Probe probe) {
  if (kBug == Bug::kSomeLanes ? threadIdx.x % 32 < 16 : threadIdx.x < 64)
    synchronise_threads(1, 64);
  results(probe)[threadIdx.x] = words(probe)[threadIdx.x];
}

template <Bug kBug>
__global__ void elect_kernel(const Probe probe) {
  bool elected = false;
  if (kBug == Bug::kNone || threadIdx.x % 32 < 16) elected = elect_lane();
  results(probe)[threadIdx.x] = elected;
}

template <Bug kBug>
__global__ void registers_kernel(const Probe probe) {
  const int of = threadIdx.x;
  if (of < 128) {
    if (kBug == Bug::kSomeLanes ? of % 32 == 0 : kBug == Bug::kSomeWarps ? of < 96 : true)
      give_registers<40>();
  } else {
    take_registers<232>();
  }
  results(probe)[threadIdx.x] = words(probe)[threadIdx.x];
}

template <Bug kBug>
__global__ void copy_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared_memory());
  copy_async<4>(shared + threadIdx.x, words(probe) + threadIdx.x, 4);
  commit_copies();
  if (kBug == Bug::kTooLate) __syncthreads();
  wait_copies<0>();
  if (kBug != Bug::kTooLate) __syncthreads();
  results(probe)[threadIdx.x] = shared[threadIdx.x ^ 1];
}

template <Bug kBug>
__global__ void product_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  for (int i = threadIdx.x; i < 16384; i += 128) shared[i] = probe.from[i];
  fence_asynchronous_proxy();
  __syncthreads();
  const uint64_t a = matrix_descriptor(shared + (kBug == Bug::kMisaligned ? 128 : 0), 16, 1024,
                                       Swizzle::k128Bytes);
  WarpgroupSums<64> sums;
  fence_products(sums);
  multiply_add_warpgroup<__half>(sums, a, a, false);
  if (kBug != Bug::kMissing) commit_products();
  if (kBug == Bug::kSomeLanes) {
    if (threadIdx.x % 32 == 0) wait_products<0>(sums);
  } else {
    wait_products<0>(sums);
  }
  for (int i = 0; i < 32; ++i) reinterpret_cast<float*>(probe.to)[threadIdx.x * 32 + i] = sums[i];
}

// An mbarrier that others use as soon as one thread has initialised it, or behind a barrier.
template <Bug kBug>
__global__ void init_kernel(const Probe probe) {
  auto* barrier = reinterpret_cast<uint64_t*>(dynamic_shared_memory());
  if (threadIdx.x == 0) initialise_barrier(barrier, 64);
  if (kBug != Bug::kMissing) __syncthreads();
  arrive(barrier);
  wait_for_phase(barrier, 0);
  results(probe)[threadIdx.x] = 1;
}

// A bulk copy to what other threads have read, or still read.
template <Bug kBug>
__global__ void overwrite_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  auto* barrier = reinterpret_cast<uint64_t*>(shared + 1024);
  if (threadIdx.x == 0) {
    initialise_barrier(barrier, 1);
    initialise_barrier(barrier + 1, 1);
    fence_barrier_initialisation();
  }
  shared[threadIdx.x] = 1;
  fence_asynchronous_proxy();
  __syncthreads();
  probe.to[threadIdx.x] = shared[threadIdx.x ^ 33];
  if (kBug != Bug::kMissing) __syncthreads();
  if (threadIdx.x == 0) {
    arrive_and_expect(barrier, 64);
    load_bulk(shared + (kBug == Bug::kMisaligned ? 8 : 0), probe.from,
              kBug == Bug::kOverrun ? 65536 : 64, barrier);
  }
  wait_for_phase(barrier, 0);
}

template <Bug kBug>
__global__ void bulk_store_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  shared[threadIdx.x] = 1;
  fence_asynchronous_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_bulk(probe.to, shared, 64);
    if (kBug != Bug::kMissing) commit_stores();
    if (kBug != Bug::kTooLate) wait_stores<0>();
  }
}

}  // namespace

extern const NamedProbe kPlantedWarps[] = {
    {"shuffle", shuffle_kernel<Bug::kNone>, 64},
    {"shuffle: at two places", shuffle_kernel<Bug::kTwoPlaces>, 64},
    {"shuffle: of a lane outside of the mask", shuffle_kernel<Bug::kOtherLane>, 64},
    {"barrier of a warp", warp_barrier_kernel<Bug::kNone>, 64},
    {"barrier of a warp: missing", warp_barrier_kernel<Bug::kMissing>, 64},
    {"barrier of a warp: too few lanes", warp_barrier_kernel<Bug::kSomeLanes>, 64},
    {"barrier in a loop", trips_kernel<Bug::kNone>, 64},
    {"barrier in a loop: fewer rounds", trips_kernel<Bug::kSomeLanes>, 64},
    {"barrier of two warps", named_barrier_kernel<Bug::kNone>, 128},
    {"barrier of two warps: four halves", named_barrier_kernel<Bug::kSomeLanes>, 128},
    {"static array", static_kernel<Bug::kNone>, 64},
    {"static array: unwritten", static_kernel<Bug::kUnwritten>, 64},
    {"static array: overrun", static_kernel<Bug::kOverrun>, 64},
    {"array of a struct", member_kernel<Bug::kNone>, 64},
    {"array of a struct: overrun", member_kernel<Bug::kOverrun>, 64},
    {"pairs", pair_kernel<Bug::kNone>, 64},
    {"pairs: misaligned", pair_kernel<Bug::kMisaligned>, 64},
    {"results read back", read_back_kernel<Bug::kNone>, 64, 2},
    {"results read back: unwritten", read_back_kernel<Bug::kUnwritten>, 64, 2},
    {"results read back: another block's", read_back_kernel<Bug::kMissing>, 64, 2},
    {"rows of ldmatrix", load_matrices_kernel<Bug::kNone>, 32},
    {"rows of ldmatrix: at two places", load_matrices_kernel<Bug::kTwoPlaces>, 32},
    {"rows of ldmatrix: unwritten", load_matrices_kernel<Bug::kUnwritten>, 32},
    {"rows of ldmatrix: overrun", load_matrices_kernel<Bug::kOverrun>, 32},
    {"rows of ldmatrix: misaligned", load_matrices_kernel<Bug::kMisaligned>, 32},
    {"rows of ldmatrix: no barrier", load_matrices_kernel<Bug::kMissing>, 32},
    {"one lane", elect_kernel<Bug::kNone>, 64},
    {"one lane: half a warp asks", elect_kernel<Bug::kSomeLanes>, 64},
    {"setmaxnreg", registers_kernel<Bug::kNone>, 256},
    {"setmaxnreg: one lane", registers_kernel<Bug::kSomeLanes>, 256},
    {"setmaxnreg: three warps", registers_kernel<Bug::kSomeWarps>, 256},
    {"neighbour's copy", copy_kernel<Bug::kNone>, 64},
    {"neighbour's copy: waited for behind the barrier", copy_kernel<Bug::kTooLate>, 64},
    {"product", product_kernel<Bug::kNone>, 128},
    {"product: starts at the second row", product_kernel<Bug::kMisaligned>, 128},
    {"product: no commit", product_kernel<Bug::kMissing>, 128},
    {"product: one lane waits", product_kernel<Bug::kSomeLanes>, 128},
    {"new mbarrier", init_kernel<Bug::kNone>, 64},
    {"new mbarrier: no barrier", init_kernel<Bug::kMissing>, 64},
    {"bulk copy over what was read", overwrite_kernel<Bug::kNone>, 64},
    {"bulk copy over what was read: no barrier", overwrite_kernel<Bug::kMissing>, 64},
    {"bulk copy over what was read: misaligned", overwrite_kernel<Bug::kMisaligned>, 64},
    {"bulk copy over what was read: overrun", overwrite_kernel<Bug::kOverrun>, 64},
    {"bulk store", bulk_store_kernel<Bug::kNone>, 64},
    {"bulk store: no commit", bulk_store_kernel<Bug::kMissing>, 64},
    {"bulk store: no wait", bulk_store_kernel<Bug::kTooLate>, 64},
    {nullptr, nullptr, 0},
};
