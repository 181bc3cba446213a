// The device: fibers, barriers and collectives. What an access may touch is memory.cpp's business,
// what works on its own is asynchronous.cpp's.
#include "emulator.h"

#include <cuda_runtime.h>
#include <sys/mman.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "block.h"
#include "memory.h"
#include "scheduler.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Block* block = nullptr;
int current = -1, threads = 0;

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr int kMaxThreads = 1024;
constexpr int kMaxResident = 8192;  // threads of the blocks of a cooperative launch
std::vector<std::unique_ptr<Block>> blocks;
jmp_buf scheduler;
const Launch* running = nullptr;
uint64_t threads_run = 0, launches = 0;
int64_t launches_left = -1;
cudaStream_t callers_stream = nullptr;
size_t last_kernel = 0;  // its place in the library
std::string failure;

[[noreturn]] void run_fiber() {
  for (;;) {
    running->run(*running);
    ++threads_run;
    block->fibers[current].wait = Wait::kDone;
    if (_setjmp(block->fibers[current].resume) == 0) _longjmp(scheduler, 1);
  }
}

void enter(Block& next) {
  block = &next;
  blockIdx = {next.index.x, next.index.y, next.index.z};
  activate(next.memory);
}

void resume(int thread) {
  Fiber& fiber = block->fibers[thread];
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

std::string at(const void* place) {
  char text[32];
  std::snprintf(text, sizeof(text), "@%zx", offset_in_library(place));
  return text;
}

// A return address may belong to the next line; the byte before it is of the call.
void describe(const std::string& what, int thread, const void* place) {
  char text[128];
  std::snprintf(text, sizeof(text), ", block %u, thread %d, ", blockIdx.x, thread);
  failure = what + ": kernel " + at(reinterpret_cast<const void*>(running->kernel)) + text +
            at(static_cast<const char*>(place) - 1);
}

std::vector<int> all_threads() {
  std::vector<int> all(threads);
  for (int thread = 0; thread < threads; ++thread) all[thread] = thread;
  return all;
}

// All threads of the block wait at the same barrier; lets them go.
bool release_block() {
  const void* place = block->fibers[0].place;
  for (int thread = 0; thread < threads; ++thread) {
    if (block->fibers[thread].wait != Wait::kBlock) return false;
    if (block->fibers[thread].place != place) {
      describe("divergent barrier: threads wait at different places", thread,
               block->fibers[thread].place);
      return false;
    }
  }
  for (int thread = 0; thread < threads; ++thread) block->fibers[thread].wait = Wait::kNone;
  if (block->order.in_use()) block->order.meet(all_threads());
  ++block->syncs;
  block->barrier_result = block->barrier_sum;
  block->barrier_sum = 0;
  return true;
}

void start_block(Block& fresh, dim3 index) {
  fresh.index = index;
  enter(fresh);
  begin_block(fresh.memory, running->shared_bytes);
  fresh.syncs = 0;
  fresh.barrier_sum = 0;
  if (fresh.fibers.size() < static_cast<size_t>(threads)) fresh.fibers.resize(threads);
  fresh.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  fresh.groups.assign((threads + kGroup - 1) / kGroup, Gathering<kGroup>{});
  for (Named& named : fresh.named) named = Named{};
  for (int thread = 0; thread < threads; ++thread) fresh.fibers[thread].wait = Wait::kNone;
  fresh.order.begin(threads);
  begin_asynchronous();
}

// Of the first thread that waits; of mbarriers, all that threads wait for.
void describe_deadlock() {
  int first = -1;
  std::string objects;
  for (int thread = 0; thread < threads; ++thread) {
    const Fiber& fiber = block->fibers[thread];
    if (fiber.wait == Wait::kDone) continue;
    if (first < 0) first = thread;
    if (fiber.wait != Wait::kObject) continue;
    const std::string object = describe_object(fiber.object);
    if (objects.find(object) == std::string::npos)
      objects += (objects.empty() ? "" : "; ") + object;
  }
  const Fiber& fiber = block->fibers[first];
  std::string what = "divergent collective: not all lanes of the mask reach it";
  if (fiber.wait == Wait::kBlock) what = "divergent barrier: not all threads of the block reach it";
  if (fiber.wait == Wait::kGroup)
    what = "divergent collective: not all threads of the warpgroup reach it";
  if (fiber.wait == Wait::kObject) what = "deadlock: " + objects;
  describe(what, first, fiber.place);
}

enum class Progress { kMoved, kDone, kStuck };

// Runs every thread that can run. Engines work only when no thread can: an operation that nobody
// waits for comes as late as it may.
Progress advance_block() {
  bool moved = false, all_done = true;
  for (int thread = 0; thread < threads; ++thread) {
    if (block->fibers[thread].wait == Wait::kNone) {
      resume(thread);
      moved = true;
      if (!failure.empty()) return Progress::kStuck;
    }
    all_done = all_done && block->fibers[thread].wait == Wait::kDone;
  }
  if (all_done) {
    int thread = 0;
    const void* place = nullptr;
    const std::string left = unfinished_asynchronous(thread, place);
    if (!left.empty()) describe(left, thread, place);
    return Progress::kDone;
  }
  if (moved || release_block()) return Progress::kMoved;
  if (failure.empty() && step_asynchronous()) return Progress::kMoved;
  return Progress::kStuck;
}

// Blocks [0, count) of the resident ones, until all have ended.
bool run_resident(int count) {
  std::vector<bool> done(count, false);
  for (;;) {
    bool moved = false, all_done = true;
    Block* stuck = nullptr;
    for (int i = 0; i < count; ++i) {
      if (done[i]) continue;
      enter(*blocks[i]);
      const Progress progress = advance_block();
      if (!failure.empty()) return false;
      done[i] = progress == Progress::kDone;
      all_done = all_done && done[i];
      moved = moved || progress != Progress::kStuck;
      if (progress == Progress::kStuck) stuck = block;
    }
    if (all_done) return true;
    if (moved) continue;
    enter(*stuck);
    describe_deadlock();
    return false;
  }
}

Block& resident(size_t i) {
  while (blocks.size() <= i) blocks.push_back(std::make_unique<Block>());
  return *blocks[i];
}

}  // namespace

void wait_here(Wait wait, const void* place) {
  Fiber& fiber = block->fibers[current];
  fiber.wait = wait;
  fiber.place = place;
  if (_setjmp(fiber.resume) == 0) _longjmp(scheduler, 1);
}

Position position_of(int thread) {
  const Fiber& fiber = block->fibers[thread];
  return {thread,
          thread / kWarp,
          block->syncs,
          block->warps[thread / kWarp].syncs,
          &block->order,
          fiber.stack,
          fiber.stack + kStackBytes};
}

Position position() { return position_of(current); }

const char* failure_text() { return failure.c_str(); }
bool is_running() { return running != nullptr; }
int running_thread() { return current; }
int thread_count() { return threads; }
Order& running_order() { return block->order; }
Asynchronous& asynchronous() { return block->engines; }
int warp_thread(int lane) { return current / kWarp * kWarp + lane; }

void fail(const char* what, const void* place) {
  describe(what, current, place);
  _longjmp(scheduler, 1);
}

void wait_on(const void* object, const void* place) {
  block->fibers[current].object = object;
  wait_here(Wait::kObject, place);
}

void wake(const void* object) {
  for (auto& other : blocks) {
    for (Fiber& fiber : other->fibers) {
      if (fiber.wait == Wait::kObject && fiber.object == object) fiber.wait = Wait::kNone;
    }
  }
}

cudaError_t launch(const Launch& launch) {
  failure.clear();
  if (launch.stream != callers_stream) {
    failure = "a launch on another stream than the caller's";
    return cudaErrorLaunchFailure;
  }
  if (launches_left-- == 0) return cudaErrorInvalidConfiguration;
  ++launches;
  threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  const uint64_t count = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > kMaxThreads || threads % kWarp != 0) {
    return cudaErrorInvalidConfiguration;
  }
  if (launch.shared_bytes > dynamic_limit(reinterpret_cast<const void*>(launch.kernel)))
    return cudaErrorInvalidValue;
  if (launch.cooperative && count * threads > kMaxResident)
    return cudaErrorCooperativeLaunchTooLarge;
  running = &launch;
  blockDim = launch.block, gridDim = launch.grid;
  const auto index_of = [&](uint64_t i) {
    return dim3(static_cast<unsigned>(i % launch.grid.x),
                static_cast<unsigned>(i / launch.grid.x % launch.grid.y),
                static_cast<unsigned>(i / launch.grid.x / launch.grid.y));
  };
  const int together = launch.cooperative ? static_cast<int>(count) : 1;
  bool good = true;
  for (uint64_t first = 0; good && first < count; first += together) {
    for (int i = 0; i < together; ++i) start_block(resident(i), index_of(first + i));
    good = run_resident(together);
  }
  running = nullptr;
  last_kernel = offset_in_library(reinterpret_cast<const void*>(launch.kernel));
  for (auto& other : blocks) {
    for (Fiber& fiber : other->fibers) {
      if (!good) fiber.fresh = true;  // what it was doing is abandoned
      fiber.wait = Wait::kDone;
    }
  }
  return good ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace emulator

extern "C" void emulator_expect_stream(void* stream) {
  emulator::callers_stream = static_cast<cudaStream_t>(stream);
}
extern "C" void emulator_limit_launches(int64_t count) { emulator::launches_left = count; }
extern "C" uint64_t emulator_launches() { return emulator::launches; }
extern "C" uint64_t emulator_threads_run() { return emulator::threads_run; }
extern "C" size_t emulator_last_kernel() { return emulator::last_kernel; }
