// The state of one resident block: the scheduler's (emulator.cpp) and that of what makes its threads
// meet (collectives.cpp).
#pragma once
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <vector>

#include "asynchronous.h"
#include "memory.h"
#include "order.h"

namespace emulator {

constexpr int kWarp = 32, kGroup = 128, kNamedBarriers = 16;

enum class Wait { kNone, kBlock, kWarp, kGroup, kObject, kDone };

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool fresh = true;
  Wait wait = Wait::kNone;
  const void* place = nullptr;   // where it waits
  const void* object = nullptr;  // on what
  unsigned char* stack = nullptr;
};

template <int kThreads>
struct Gathering {
  void* operands[kThreads];
  int arrived = 0;
  const void* work = nullptr;
};

struct Warp : Gathering<kWarp> {
  unsigned here = 0, mask = 0;
  const void* place = nullptr;  // where its lanes wait
  uint32_t syncs = 0;
};

struct Named {
  std::vector<int> here;
  int threads = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Gathering<kGroup>> groups;
  Named named[kNamedBarriers];
  SharedMemory memory;
  Order order;
  Asynchronous engines;
  dim3 index;
  int barrier_sum = 0, barrier_result = 0;
  uint32_t syncs = 0;
};

extern Block* block;          // the running one
extern int current, threads;  // the running thread; of a block
void wait_here(Wait wait, const void* place);

}  // namespace emulator
