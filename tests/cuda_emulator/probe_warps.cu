// Votes, reductions, matches and atomics, and what blocks of a grid tell each other.
#include "kernels/cuda/device_grid.cuh"
#include "probes.h"

using namespace fastconv::cuda;

namespace {

__device__ const int* ints(const Probe& probe) { return reinterpret_cast<const int*>(probe.from); }
__device__ int* results(const Probe& probe) { return reinterpret_cast<int*>(probe.to); }

// 12 results of each thread of one warp; the votes are of the lanes of numbers[0] alone.
__global__ void votes_kernel(const Probe probe) {
  const int lane = threadIdx.x, value = ints(probe)[lane];
  const auto mask = static_cast<unsigned>(probe.numbers[0]);
  if (!(mask >> lane & 1)) return;
  int* to = results(probe) + lane * 12;
  to[0] = static_cast<int>(__ballot_sync(mask, value > 0));
  to[1] = __any_sync(mask, value > 0);
  to[2] = __all_sync(mask, value > 0);
  to[3] = static_cast<int>(__match_any_sync(mask, value));
  to[4] = __reduce_add_sync(mask, value);
  to[5] = __reduce_min_sync(mask, value);
  to[6] = __reduce_max_sync(mask, value);
  to[7] = static_cast<int>(__reduce_max_sync(mask, static_cast<unsigned>(value)));
  to[8] = static_cast<int>(__reduce_min_sync(mask, static_cast<unsigned>(value)));
  to[9] = static_cast<int>(__reduce_and_sync(mask, static_cast<unsigned>(value)));
  to[10] = static_cast<int>(__reduce_or_sync(mask, static_cast<unsigned>(value)));
  to[11] = static_cast<int>(__reduce_xor_sync(mask, static_cast<unsigned>(value)));
}

// All threads at the same six places: of shared memory, then of `to`.
__global__ void atomics_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<int*>(dynamic_shared_memory());
  const int value = ints(probe)[threadIdx.x];
  if (threadIdx.x < 6) shared[threadIdx.x] = 0;
  __syncthreads();
  for (int* at : {shared, results(probe)}) {
    atomicAdd(at, value);
    atomicMax(at + 1, value);
    atomicMin(at + 2, value);
    atomicAdd(reinterpret_cast<float*>(at + 3), static_cast<float>(value));
    atomicCAS(at + 4, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.x) + 1);
    atomicExch(at + 5, 7);
  }
  __syncthreads();
  if (threadIdx.x < 6) results(probe)[6 + threadIdx.x] = shared[threadIdx.x];
}

// Values go round the grid numbers[0] times, block by block. `to`: a counter in front.
__global__ void grid_kernel(const Probe probe) {
  auto* counter = reinterpret_cast<unsigned*>(probe.to);
  int* places = results(probe) + 1;
  const unsigned blocks = gridDim.x;
  int value = ints(probe)[blockIdx.x * blockDim.x + threadIdx.x];
  for (int round = 0; round < probe.numbers[0]; ++round) {
    int* to = places + round % 2 * static_cast<int>(blocks * blockDim.x);
    to[blockIdx.x * blockDim.x + threadIdx.x] = value;
    synchronise_grid(counter, round);
    value = to[(blockIdx.x + 1) % blocks * blockDim.x + threadIdx.x];
  }
  places[2 * blocks * blockDim.x + blockIdx.x * blockDim.x + threadIdx.x] = value;
}

// Blocks go one by one: each adds its own number to what the one before left. `to`: a counter in
// front.
__global__ void chain_kernel(const Probe probe) {
  if (threadIdx.x != 0) return;
  auto* counter = reinterpret_cast<unsigned*>(probe.to);
  int* sums = results(probe) + 1;
  wait_for_counter(counter, blockIdx.x);
  const int before = blockIdx.x == 0 ? 0 : sums[blockIdx.x - 1];
  sums[blockIdx.x] = before + ints(probe)[blockIdx.x];
  arrive_at_counter(counter);
}

// Static shared memory is each block's own, also of blocks that run at once.
__global__ void static_shared_kernel(const Probe probe) {
  __shared__ int mine[32];
  mine[threadIdx.x] = static_cast<int>(blockIdx.x * 32 + threadIdx.x);
  synchronise_grid(reinterpret_cast<unsigned*>(probe.to), 0);
  results(probe)[1 + blockIdx.x * 32 + threadIdx.x] = mine[31 - threadIdx.x];
}

__global__ void atomic_race_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<int*>(dynamic_shared_memory());
  if (threadIdx.x == 0) shared[0] = 0;
  __syncthreads();
  atomicAdd(shared, 1);
  results(probe)[threadIdx.x] = shared[0];
}

// `from`: 32 rows of 16 bytes, eight of each tile; `to`: four words of each lane.
template <bool kTransposed>
__global__ void load_matrices_kernel(const Probe probe) {
  auto* shared = dynamic_shared_memory();
  for (int i = 0; i < 16; ++i) shared[threadIdx.x * 16 + i] = probe.from[threadIdx.x * 16 + i];
  __syncwarp();
  uint32_t values[4];
  if (kTransposed) {
    load_matrices_transposed(values, shared + threadIdx.x * 16);
  } else {
    load_matrices(values, shared + threadIdx.x * 16);
  }
  for (int i = 0; i < 4; ++i) results(probe)[threadIdx.x * 4 + i] = static_cast<int>(values[i]);
}

// `from`: of each lane six words, A and B, and four sums; `to`: its sums.
template <class T>
__global__ void mma_kernel(const Probe probe) {
  const auto* mine = reinterpret_cast<const uint32_t*>(probe.from) + threadIdx.x * 10;
  const uint32_t a[4] = {mine[0], mine[1], mine[2], mine[3]};
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = reinterpret_cast<const float*>(mine)[6 + i];
  multiply_add_16x8x16(sum, a, mine[4], mine[5], T());
  for (int i = 0; i < 4; ++i) reinterpret_cast<float*>(probe.to)[threadIdx.x * 4 + i] = sum[i];
}

}  // namespace

extern const NamedProbe kWarpProbes[] = {
    {"votes", votes_kernel, 32},
    {"ldmatrix", load_matrices_kernel<false>, 32},
    {"ldmatrix.trans", load_matrices_kernel<true>, 32},
    {"mma float16", mma_kernel<__half>, 32},
    {"mma bfloat16", mma_kernel<__nv_bfloat16>, 32},
    {"atomics", atomics_kernel, 64},
    {"grid", grid_kernel, 64, 5, true},
    {"chain", chain_kernel, 32, 5, true},
    {"static shared memory of blocks at once", static_shared_kernel, 32, 3, true},
    {"atomics: no barrier", atomic_race_kernel, 64},
    {"grid: blocks one after the other", grid_kernel, 64, 5, false},
    {nullptr, nullptr, 0},
};
