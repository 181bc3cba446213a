// wgmma and what belongs to warpgroups, one block.
#include "kernels/cuda/device_barrier.cuh"
#include "kernels/cuda/device_wgmma.cuh"
#include "kernels/cuda/matrix_descriptor.cuh"
#include "probes.h"

using namespace fastconv::cuda;

namespace {

// `from`: numbers[0] bytes of A as they lie in shared memory, then B up to numbers[1]; with
// kRegisters, A is 128 x 4 words instead. numbers[2..4]: leading, stride, swizzle of A; [5..7] of B; they start [8], [9]
// bytes on.
// `to`: 128 x kColumns / 2 sums, thread by thread; the product is taken twice, and added.
template <class T, int kColumns, Major kA, Major kB, bool kRegisters>
__global__ void product_kernel(const Probe probe) {
  unsigned char* shared = swizzled_shared_memory();
  const int64_t* n = probe.numbers;
  for (int i = threadIdx.x; i < n[1]; i += blockDim.x) shared[i] = probe.from[i];
  fence_asynchronous_proxy();
  __syncthreads();
  const uint64_t a = matrix_descriptor(shared + n[8], n[2], n[3], static_cast<Swizzle>(n[4]));
  const uint64_t b =
      matrix_descriptor(shared + n[0] + n[9], n[5], n[6], static_cast<Swizzle>(n[7]));
  uint32_t registers[4];
  for (int i = 0; i < 4; ++i)
    registers[i] = reinterpret_cast<const uint32_t*>(probe.from)[threadIdx.x * 4 + i];
  WarpgroupSums<kColumns> sums;
  fence_products(sums);
  for (int time = 0; time < 2; ++time) {
    if constexpr (kRegisters) {
      multiply_add_warpgroup<T, kB>(sums, registers, b, time != 0);
    } else {
      multiply_add_warpgroup<T, kA, kB>(sums, a, b, time != 0);
    }
  }
  commit_products();
  wait_products<0>(sums);
  auto* to = reinterpret_cast<float*>(probe.to) + threadIdx.x * (kColumns / 2);
  for (int i = 0; i < kColumns / 2; ++i) to[i] = sums[i];
}

// Two warpgroups, of which the first writes and the second reads, in turn: named barriers.
__global__ void named_barriers_kernel(const Probe probe) {
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared_memory());
  const int thread = threadIdx.x % 128;
  for (int round = 0; round < probe.numbers[0]; ++round) {
    if (threadIdx.x < 128) {
      if (round > 0) synchronise_threads(2, 256);
      shared[thread] = reinterpret_cast<const uint32_t*>(probe.from)[round * 128 + thread];
      synchronise_threads(1, 256);
    } else {
      synchronise_threads(1, 256);
      reinterpret_cast<uint32_t*>(probe.to)[round * 128 + thread] = shared[127 - thread];
      if (round + 1 < probe.numbers[0]) synchronise_threads(2, 256);
    }
  }
}

__global__ void elect_kernel(const Probe probe) {
  reinterpret_cast<uint32_t*>(probe.to)[threadIdx.x] = elect_lane() ? 1 : 0;
}

__global__ void registers_kernel(const Probe probe) {
  if (threadIdx.x < 128) {
    give_registers<40>();
  } else {
    take_registers<232>();
  }
  reinterpret_cast<uint32_t*>(probe.to)[threadIdx.x] = threadIdx.x;
}

constexpr Major kTerms = Major::kTerms, kRows = Major::kRows;

}  // namespace

#define PRODUCTS(type, name, columns)                                                              \
  {"product " name " " #columns " KK", product_kernel<type, columns, kTerms, kTerms, false>, 128}, \
      {"product " name " " #columns " KM", product_kernel<type, columns, kTerms, kRows, false>,    \
       128},                                                                                       \
      {"product " name " " #columns " MK", product_kernel<type, columns, kRows, kTerms, false>,    \
       128},                                                                                       \
      {"product " name " " #columns " MM", product_kernel<type, columns, kRows, kRows, false>,     \
       128},                                                                                       \
      {"product " name " " #columns " RK", product_kernel<type, columns, kTerms, kTerms, true>,    \
       128},                                                                                       \
  {                                                                                                \
    "product " name " " #columns " RM", product_kernel<type, columns, kTerms, kRows, true>, 128    \
  }

extern const NamedProbe kProductProbes[] = {
    PRODUCTS(__half, "float16", 64),
    PRODUCTS(__half, "float16", 128),
    PRODUCTS(__half, "float16", 256),
    PRODUCTS(__nv_bfloat16, "bfloat16", 64),
    PRODUCTS(__nv_bfloat16, "bfloat16", 128),
    PRODUCTS(__nv_bfloat16, "bfloat16", 256),
    {"named barriers", named_barriers_kernel, 256},
    {"elect", elect_kernel, 64},
    {"registers", registers_kernel, 384},
    {nullptr, nullptr, 0},
};
