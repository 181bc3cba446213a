// The device: fibers, barriers and collectives. What an access may touch is memory.cpp's business.
#include "emulator.h"

#include <cuda_runtime.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <string>

#include "memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;

enum class Wait { kNone, kBlock, kWarp, kDone };

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool fresh = true;
  Wait wait = Wait::kNone;
  const void* place = nullptr;  // where it waits
  unsigned char* stack = nullptr;
};

struct Warp {
  void* operands[kWarp];
  unsigned arrived = 0, mask = 0;
  Work work = nullptr;
  uint32_t syncs = 0;
};

Fiber fibers[kMaxThreads];
Warp warps[kMaxThreads / kWarp];
jmp_buf scheduler;
const Launch* running = nullptr;
int current = -1, thread_count = 0;
int barrier_sum = 0, barrier_result = 0;
uint32_t block_syncs = 0;
uint64_t threads_run = 0;
std::string failure;

[[noreturn]] void run_fiber() {
  for (;;) {
    running->run(*running);
    ++threads_run;
    fibers[current].wait = Wait::kDone;
    if (_setjmp(fibers[current].resume) == 0) _longjmp(scheduler, 1);
  }
}

void resume(int thread) {
  Fiber& fiber = fibers[thread];
  current = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
               thread / (blockDim.x * blockDim.y)};
  if (_setjmp(scheduler) != 0) return;
  if (!fiber.fresh) _longjmp(fiber.resume, 1);
  fiber.fresh = false;
  if (fiber.stack == nullptr) {
    fiber.stack = static_cast<unsigned char*>(
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_fiber, 0);
  setcontext(&fiber.start);
}

void wait_here(Wait wait, const void* place) {
  fibers[current].wait = wait;
  fibers[current].place = place;
  if (_setjmp(fibers[current].resume) == 0) _longjmp(scheduler, 1);
}

std::string at(const void* place) {
  char text[32];
  std::snprintf(text, sizeof(text), "@%zx", offset_in_library(place));
  return text;
}

void describe(const std::string& what, int thread, const void* place) {
  char text[128];
  std::snprintf(text, sizeof(text), ", block %u, thread %d, ", blockIdx.x, thread);
  failure =
      what + ": kernel " + at(reinterpret_cast<const void*>(running->kernel)) + text + at(place);
}

// All threads of the block wait at the same barrier; lets them go.
bool release_block() {
  const void* place = fibers[0].place;
  for (int thread = 0; thread < thread_count; ++thread) {
    if (fibers[thread].wait != Wait::kBlock) return false;
    if (fibers[thread].place != place) {
      describe("divergent barrier: threads wait at different places", thread, fibers[thread].place);
      return false;
    }
  }
  for (int thread = 0; thread < thread_count; ++thread) fibers[thread].wait = Wait::kNone;
  ++block_syncs;
  barrier_result = barrier_sum;
  barrier_sum = 0;
  return true;
}

bool run_block() {
  begin_block(running->shared_bytes);
  block_syncs = 0;
  for (int thread = 0; thread < thread_count; ++thread) fibers[thread].wait = Wait::kNone;
  for (Warp& warp : warps) warp.arrived = 0, warp.syncs = 0;
  for (;;) {
    bool moved = false, all_done = true;
    for (int thread = 0; thread < thread_count; ++thread) {
      if (fibers[thread].wait == Wait::kNone) {
        resume(thread);
        moved = true;
        if (!failure.empty()) return false;
      }
      all_done = all_done && fibers[thread].wait == Wait::kDone;
    }
    if (all_done) return true;
    if (moved || release_block()) continue;
    if (!failure.empty()) return false;
    for (int thread = 0; thread < thread_count; ++thread) {
      if (fibers[thread].wait == Wait::kDone) continue;
      describe(fibers[thread].wait == Wait::kBlock
                   ? "divergent barrier: not all threads of the block reach it"
                   : "divergent collective: not all lanes of the mask reach it",
               thread, fibers[thread].place);
      return false;
    }
  }
}

}  // namespace

Position position() {
  const Fiber& fiber = fibers[current];
  return {current,     current / kWarp,          block_syncs, warps[current / kWarp].syncs,
          fiber.stack, fiber.stack + kStackBytes};
}

bool is_running() { return running != nullptr; }

void fail(const char* what, const void* place) {
  describe(what, current, place);
  _longjmp(scheduler, 1);
}

cudaError_t launch(const Launch& launch) {
  failure.clear();
  thread_count = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  if (thread_count == 0 || thread_count > kMaxThreads || thread_count % kWarp != 0 ||
      launch.shared_bytes > shared_capacity()) {
    return cudaErrorInvalidConfiguration;
  }
  running = &launch;
  blockDim = launch.block, gridDim = launch.grid;
  bool good = true;
  for (unsigned block = 0; good && block < launch.grid.x; ++block) {
    blockIdx = {block, 0, 0};
    good = run_block();
  }
  running = nullptr;
  if (!good) {
    for (Fiber& fiber : fibers) fiber.fresh = true;  // what they were doing is abandoned
  }
  return good ? cudaSuccess : cudaErrorLaunchFailure;
}

__attribute__((noinline)) void block_barrier() {
  wait_here(Wait::kBlock, __builtin_return_address(0));
}

__attribute__((noinline)) int block_barrier_sum(int value) {
  barrier_sum += value;
  wait_here(Wait::kBlock, __builtin_return_address(0));
  return barrier_result;
}

__attribute__((noinline)) void collective(unsigned mask, Work work, void* operands,
                                          bool orders_memory) {
  const int lane = current % kWarp;
  Warp& warp = warps[current / kWarp];
  const void* place = __builtin_return_address(0);
  if (!(mask >> lane & 1)) fail("collective: the calling lane is not in its mask", place);
  if (warp.arrived != 0 && (warp.mask != mask || warp.work != work)) {
    fail("divergent collective: lanes of a warp wait for different ones", place);
  }
  warp.mask = mask, warp.work = work;
  warp.operands[lane] = operands;
  warp.arrived |= 1u << lane;
  if (warp.arrived != mask) {
    wait_here(Wait::kWarp, place);
    return;
  }
  work(warp.operands, mask);
  warp.arrived = 0;
  if (orders_memory) ++warp.syncs;
  const int first = current - lane;
  for (int i = 0; i < kWarp; ++i) {
    if (i != lane && mask >> i & 1) fibers[first + i].wait = Wait::kNone;
  }
}

int warp_thread(int lane) { return current / kWarp * kWarp + lane; }

}  // namespace emulator

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorLaunchFailure) return emulator::failure.c_str();
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                : "invalid argument";
}

extern "C" uint64_t emulator_threads_run() { return emulator::threads_run; }
