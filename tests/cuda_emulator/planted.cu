// Kernels with a bug each, and the same without it, that prove the emulator: one thread = one
// element, one block of 64.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"

namespace {

using fastconv::cuda::dynamic_shared_memory;
using fastconv::cuda::launch;

constexpr int kThreads = 64;

struct Arrays {
  const float* from;
  float* to;
};

// to[i] = from[63 - i], through shared memory.
template <bool kBarrier, bool kStatic>
__global__ void reverse_kernel(const Arrays arrays) {
  __shared__ float fixed[kThreads];
  float* tile = kStatic ? fixed : reinterpret_cast<float*>(dynamic_shared_memory());
  tile[threadIdx.x] = arrays.from[threadIdx.x];
  if (kBarrier) __syncthreads();
  arrays.to[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// Twice to[i] = the neighbour's value, where the second round overwrites what a slower thread has
// yet to read.
__global__ void two_rounds_kernel(const Arrays arrays) {
  auto* tile = reinterpret_cast<float*>(dynamic_shared_memory());
  float value = arrays.from[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = value;
    __syncthreads();
    value = tile[(threadIdx.x + 1) % kThreads];
  }
  arrays.to[threadIdx.x] = value;
}

template <int kShift>
__global__ void shifted_load_kernel(const Arrays arrays) {
  arrays.to[threadIdx.x] = arrays.from[static_cast<int>(threadIdx.x) + kShift];
}

__global__ void unwritten_kernel(const Arrays arrays) {
  auto* tile = reinterpret_cast<float*>(dynamic_shared_memory());
  if (threadIdx.x != 7) tile[threadIdx.x] = arrays.from[threadIdx.x];
  __syncthreads();
  arrays.to[threadIdx.x] = tile[threadIdx.x];
}

__global__ void shared_overrun_kernel(const Arrays arrays) {
  auto* tile = reinterpret_cast<float*>(dynamic_shared_memory());
  tile[threadIdx.x + 1] = arrays.from[threadIdx.x];
  __syncthreads();
  arrays.to[threadIdx.x] = tile[threadIdx.x + 1];
}

__global__ void missing_threads_kernel(const Arrays arrays) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  arrays.to[threadIdx.x] = arrays.from[threadIdx.x];
}

__global__ void two_barriers_kernel(const Arrays arrays) {
  if (threadIdx.x < 32) {
    arrays.to[threadIdx.x] = 1;
    __syncthreads();
  } else {
    arrays.to[threadIdx.x] = 2;
    __syncthreads();
    arrays.to[threadIdx.x] = 3;
  }
}

__global__ void missing_lane_kernel(const Arrays arrays) {
  float value = arrays.from[threadIdx.x];
  if (threadIdx.x % 32 != 5) value += __shfl_xor_sync(0xffffffffu, value, 1);
  arrays.to[threadIdx.x] = value;
}

__global__ void misaligned_kernel(const Arrays arrays) {
  const float* from = arrays.from + (threadIdx.x == 3 ? 1 : 0);
  arrays.to[threadIdx.x] = fastconv::cuda::load_vector<float, 4>(from).lane[0];
}

__global__ void written_twice_kernel(const Arrays arrays) {
  arrays.to[threadIdx.x / 2] = arrays.from[threadIdx.x];
}

__global__ void written_input_kernel(const Arrays arrays) {
  const_cast<float*>(arrays.from)[threadIdx.x] = 0;
}

// to[i] = the sum over the warp, by shuffles; the lower half of the block votes too.
__global__ void warp_sum_kernel(const Arrays arrays) {
  float sum = arrays.from[threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  const unsigned even = __ballot_sync(0xffffffffu, threadIdx.x % 2 == 0);
  arrays.to[threadIdx.x] = even == 0x55555555u ? sum : -1;
}

// sum[16x8] = a[16x16] * b[16x8]: one warp; `from` holds a and then b as float16 bits, row-major,
// `to` gets the sums.
template <bool kTransposed>
__global__ void matrix_kernel(const Arrays arrays) {
  auto* tile = reinterpret_cast<uint16_t*>(dynamic_shared_memory());
  const auto* bits = reinterpret_cast<const uint16_t*>(arrays.from);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) tile[kTransposed ? i % 16 * 16 + i / 16 : i] = bits[i];
  for (int i = lane; i < 128; i += 32)
    tile[256 + (kTransposed ? i : i % 8 * 16 + i / 8)] = bits[256 + i];
  for (int i = 128 + lane; i < 256; i += 32) tile[256 + i] = 0;
  __syncwarp();
  uint32_t a[4], b[4];
  const int eighth = lane / 8;
  if (kTransposed) {  // a is stored [column][row], b as it is
    fastconv::cuda::load_matrices_transposed(
        a, tile + (eighth / 2 * 8 + lane % 8) * 16 + eighth % 2 * 8);
    fastconv::cuda::load_matrices_transposed(b, tile + 256 + (eighth % 2 * 8 + lane % 8) * 8);
  } else {  // a is stored as it is, b [column][row]
    fastconv::cuda::load_matrices(a, tile + (eighth % 2 * 8 + lane % 8) * 16 + eighth / 2 * 8);
    fastconv::cuda::load_matrices(b, tile + 256 + lane % 8 * 16 + eighth % 2 * 8);
  }
  float sum[4] = {};
  fastconv::cuda::multiply_add_16x8x16(sum, a, b[0], b[1], __half());
  for (int i = 0; i < 4; ++i) arrays.to[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

struct Planted {
  const char* name;
  void (*kernel)(const Arrays);
  int threads;
  size_t shared_bytes;
};

const Planted kPlanted[] = {
    {"reverse", reverse_kernel<true, false>, kThreads, kThreads * sizeof(float)},
    {"reverse in static shared memory", reverse_kernel<true, true>, kThreads, 0},
    {"warp sum", warp_sum_kernel, kThreads, 0},
    {"copy", shifted_load_kernel<0>, kThreads, 0},
    {"matrix product", matrix_kernel<false>, 32, 1024},
    {"matrix product, transposed loads", matrix_kernel<true>, 32, 1024},
    {"missing barrier", reverse_kernel<false, false>, kThreads, kThreads * sizeof(float)},
    {"missing barrier, static", reverse_kernel<false, true>, kThreads, 0},
    {"barrier missing after the first round", two_rounds_kernel, kThreads,
     kThreads * sizeof(float)},
    {"load one past the end", shifted_load_kernel<1>, kThreads, 0},
    {"load one before the beginning", shifted_load_kernel<-1>, kThreads, 0},
    {"shared memory nobody wrote", unwritten_kernel, kThreads, kThreads * sizeof(float)},
    {"shared memory overrun", shared_overrun_kernel, kThreads, kThreads * sizeof(float)},
    {"barrier that some threads miss", missing_threads_kernel, kThreads, 0},
    {"barrier at two places", two_barriers_kernel, kThreads, 0},
    {"shuffle that a lane misses", missing_lane_kernel, kThreads, 0},
    {"misaligned vector", misaligned_kernel, kThreads, 0},
    {"element written twice", written_twice_kernel, kThreads, 0},
    {"input written", written_input_kernel, kThreads, 0},
};

}  // namespace

extern "C" const char* emulate_planted(int which, const float* from, float* to) {
  const Planted& planted = kPlanted[which];
  return launch(planted.kernel, 1, planted.threads, planted.shared_bytes, nullptr,
                Arrays{from, to});
}

extern "C" const char* planted_name(int which) {
  return which < static_cast<int>(sizeof(kPlanted) / sizeof(kPlanted[0])) ? kPlanted[which].name
                                                                          : nullptr;
}
