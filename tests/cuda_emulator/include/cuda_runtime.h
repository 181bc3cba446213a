// Stands in for CUDA's own header, so that a host compiler builds the same .cu sources: see
// ../emulator.h.
#pragma once
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ \
  thread_local  // one host thread runs all blocks, one after the other: see emulator.cpp

struct uint2 {
  unsigned x, y;
} __attribute__((aligned(8)));
struct uint3 {
  unsigned x, y, z;
};
struct uint4 {
  unsigned x, y, z, w;
} __attribute__((aligned(16)));
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

using cudaStream_t = struct EmulatedStream*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

#define CUDART_VERSION 13000
enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess = 0,
  cudaDriverEntryPointSymbolNotFound = 1,
};
constexpr unsigned long long cudaEnableDefault = 0;
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found);

// One device, of the compute capability that a test chose.
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

namespace emulator {

struct Launch {
  void (*run)(const Launch&);  // one thread
  void (*kernel)();
  void** arguments;
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
  bool cooperative;  // all blocks run at once
};
cudaError_t launch(const Launch& launch);
cudaError_t set_dynamic_limit(const void* kernel, size_t bytes);

void block_barrier();
int block_barrier_sum(int value);

// A warp's collective: every lane of `mask` hands in its operands, the last one to come runs `work`
// for all of them.
using Work = void (*)(void* const (&lanes)[32], unsigned mask);
void collective(unsigned mask, Work work, void* operands, bool orders_memory);
[[noreturn]] void fail_shuffle();  // of a collective's work

// Access of an atomic instruction; with_old(old, place) gives what is stored.
void check_atomic(const void* address, size_t bytes);
void copy_raw(void* to, const void* from, size_t bytes);

template <class T>
struct Shuffle {
  T value, result;
  int source;
};

}  // namespace emulator

// Not instrumented: it is the device that hands the arguments to a thread, by value.
template <class... P, size_t... i>
__attribute__((no_sanitize("kernel-address"))) void emulated_call(const emulator::Launch& launch,
                                                                  std::index_sequence<i...>) {
  reinterpret_cast<void (*)(P...)>(launch.kernel)(*static_cast<P*>(launch.arguments[i])...);
}

template <class... P>
emulator::Launch emulated_launch(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments,
                                 size_t shared_bytes, cudaStream_t stream, bool cooperative) {
  const auto run =
      [](const emulator::Launch& launch) __attribute__((no_sanitize("kernel-address"))) {
    emulated_call<P...>(launch, std::index_sequence_for<P...>{});
  };
  return {run,       reinterpret_cast<void (*)()>(kernel),
          arguments, grid,
          block,     shared_bytes,
          stream,    cooperative};
}
template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  return emulator::launch(
      emulated_launch(kernel, grid, block, arguments, shared_bytes, stream, false));
}
template <class... P>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(P...), dim3 grid, dim3 block,
                                        void** arguments, size_t shared_bytes,
                                        cudaStream_t stream) {
  return emulator::launch(
      emulated_launch(kernel, grid, block, arguments, shared_bytes, stream, true));
}

struct cudaFuncAttributes {
  int maxThreadsPerBlock;
};
template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(P...)) {
  attributes->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int value) {
  return emulator::set_dynamic_limit(reinterpret_cast<const void*>(kernel), value);
}

// Barriers and votes of a block and of a warp. They are inlined, so that the address at which a
// thread waits is the kernel's, and tells whether all threads wait at the same place.
#define EMULATED_INLINE inline __attribute__((always_inline))
EMULATED_INLINE void __syncthreads() { emulator::block_barrier(); }
EMULATED_INLINE int __syncthreads_count(int predicate) {
  return emulator::block_barrier_sum(predicate != 0);
}
EMULATED_INLINE int __syncthreads_or(int predicate) {
  return emulator::block_barrier_sum(predicate != 0) != 0;
}
EMULATED_INLINE void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::collective(mask, [](void* const(&)[32], unsigned) {}, nullptr, true);
}

// Not instrumented: it is the device that reads the lanes' registers.
template <class T>
__attribute__((no_sanitize("kernel-address"))) void emulated_exchange(void* const (&lanes)[32],
                                                                      unsigned active) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(active >> lane & 1)) continue;
    auto* mine = static_cast<emulator::Shuffle<T>*>(lanes[lane]);
    if (mine->source < 0 || mine->source > 31) continue;
    if (!(active >> mine->source & 1)) emulator::fail_shuffle();
    mine->result = static_cast<emulator::Shuffle<T>*>(lanes[mine->source])->value;
  }
}

template <class T>
EMULATED_INLINE T emulated_shuffle(unsigned mask, T value, int source) {
  emulator::Shuffle<T> operands{value, value, source};
  emulator::collective(mask, emulated_exchange<T>, &operands, false);
  return operands.result;
}
template <class T>
EMULATED_INLINE T __shfl_sync(unsigned mask, T value, int source) {
  return emulated_shuffle(mask, value, source & 31);
}
template <class T>
EMULATED_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return emulated_shuffle(mask, value, static_cast<int>(threadIdx.x % 32) ^ lanes);
}
template <class T>
EMULATED_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  return emulated_shuffle(mask, value, static_cast<int>(threadIdx.x % 32 + delta));
}
template <class T>
EMULATED_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  return emulated_shuffle(mask, value,
                          static_cast<int>(threadIdx.x % 32) - static_cast<int>(delta));
}

struct EmulatedVote {
  int predicate;
  unsigned result;
};
__attribute__((no_sanitize("kernel-address"))) inline void emulated_votes(void* const (&lanes)[32],
                                                                          unsigned active) {
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (active >> lane & 1 && static_cast<EmulatedVote*>(lanes[lane])->predicate != 0)
      result |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (active >> lane & 1) static_cast<EmulatedVote*>(lanes[lane])->result = result;
  }
}
EMULATED_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
  EmulatedVote vote{predicate, 0};
  emulator::collective(mask, emulated_votes, &vote, false);
  return vote.result;
}
EMULATED_INLINE int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
EMULATED_INLINE int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

// Every lane that `mask` names must call; each gets its result.
template <class T>
struct EmulatedReduction {
  T value, result;
  T (*combine)(T, T);
};
template <class T>
__attribute__((no_sanitize("kernel-address"))) void emulated_combine(void* const (&lanes)[32],
                                                                     unsigned active) {
  bool first = true;
  T all{};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(active >> lane & 1)) continue;
    const auto* mine = static_cast<EmulatedReduction<T>*>(lanes[lane]);
    all = first ? mine->value : mine->combine(all, mine->value);
    first = false;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (active >> lane & 1) static_cast<EmulatedReduction<T>*>(lanes[lane])->result = all;
  }
}
template <class T>
EMULATED_INLINE T emulated_reduce(unsigned mask, T value, T (*combine)(T, T)) {
  EmulatedReduction<T> operands{value, value, combine};
  emulator::collective(mask, emulated_combine<T>, &operands, false);
  return operands.result;
}
#define EMULATED_REDUCTION(name, T, expression)                                       \
  EMULATED_INLINE T __reduce_##name##_sync(unsigned mask, T value) {                  \
    return emulated_reduce<T>(mask, value, [](T a, T b) -> T { return expression; }); \
  }
EMULATED_REDUCTION(add, unsigned, a + b)
EMULATED_REDUCTION(add, int, a + b)
EMULATED_REDUCTION(min, unsigned, a < b ? a : b)
EMULATED_REDUCTION(min, int, a < b ? a : b)
EMULATED_REDUCTION(max, unsigned, a < b ? b : a)
EMULATED_REDUCTION(max, int, a < b ? b : a)
EMULATED_REDUCTION(and, unsigned, a& b)
EMULATED_REDUCTION(or, unsigned, a | b)
EMULATED_REDUCTION(xor, unsigned, a ^ b)
#undef EMULATED_REDUCTION

// The lanes whose value is the caller's.
template <class T>
struct EmulatedMatch {
  T value;
  unsigned result;
};
template <class T>
__attribute__((no_sanitize("kernel-address"))) void emulated_matches(void* const (&lanes)[32],
                                                                     unsigned active) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(active >> lane & 1)) continue;
    auto* mine = static_cast<EmulatedMatch<T>*>(lanes[lane]);
    mine->result = 0;
    for (int other = 0; other < 32; ++other) {
      if (active >> other & 1 && static_cast<EmulatedMatch<T>*>(lanes[other])->value == mine->value)
        mine->result |= 1u << other;
    }
  }
}
template <class T>
EMULATED_INLINE unsigned __match_any_sync(unsigned mask, T value) {
  EmulatedMatch<T> operands{value, 0};
  emulator::collective(mask, emulated_matches<T>, &operands, false);
  return operands.result;
}

// Atomics: they return what was there before. No race among themselves.
template <class T, class Change>
EMULATED_INLINE T emulated_atomic(T* address, const Change& change) {
  emulator::check_atomic(address, sizeof(T));
  T before;
  emulator::copy_raw(&before, address, sizeof(T));
  const T after = change(before);
  emulator::copy_raw(address, &after, sizeof(T));
  return before;
}
template <class T>
EMULATED_INLINE T atomicAdd(T* address, T value) {
  return emulated_atomic(address, [=](T before) -> T { return before + value; });
}
template <class T>
EMULATED_INLINE T atomicMax(T* address, T value) {
  return emulated_atomic(address, [=](T before) -> T { return before < value ? value : before; });
}
template <class T>
EMULATED_INLINE T atomicMin(T* address, T value) {
  return emulated_atomic(address, [=](T before) -> T { return value < before ? value : before; });
}
template <class T>
EMULATED_INLINE T atomicExch(T* address, T value) {
  return emulated_atomic(address, [=](T) -> T { return value; });
}
template <class T>
EMULATED_INLINE T atomicCAS(T* address, T expected, T value) {
  return emulated_atomic(address,
                         [=](T before) -> T { return before == expected ? value : before; });
}
