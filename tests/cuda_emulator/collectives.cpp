// Where threads meet: barriers, collectives of a warp and of a warpgroup, counters of the grid. Each
// notes where it was called, so that threads that meet at different places are told apart.
#include "block.h"
#include "device.h"
#include "scheduler.h"

namespace emulator {

__attribute__((noinline)) void block_barrier() {
  wait_here(Wait::kBlock, __builtin_return_address(0));
}

__attribute__((noinline)) int block_barrier_sum(int value) {
  block->barrier_sum += value;
  wait_here(Wait::kBlock, __builtin_return_address(0));
  return block->barrier_result;
}

__attribute__((noinline)) void named_barrier(int id, int count) {
  const void* place = __builtin_return_address(0);
  if (id < 1 || id >= kNamedBarriers) fail("named barrier: expected a number from 1 to 15", place);
  if (count % kWarp != 0 || count <= 0 || count > threads)
    fail("named barrier: expected whole warps, and no more than the block has", place);
  Named& named = block->named[id];
  if (!named.here.empty() && named.threads != count)
    fail("named barrier: threads expect different numbers of threads", place);
  block->order.use();
  named.threads = count;
  named.here.push_back(current);
  if (static_cast<int>(named.here.size()) < count) return wait_on(&named, place);
  // Hardware counts warps: a few lanes of many would pass for whole ones.
  std::vector<int> lanes((threads + kWarp - 1) / kWarp, 0);
  for (const int thread : named.here) ++lanes[thread / kWarp];
  for (const int of_warp : lanes) {
    if (of_warp % kWarp != 0)
      fail("divergent barrier: not all lanes of a warp reach the named barrier", place);
  }
  block->order.meet(named.here);
  named.here.clear();
  wake(&named);
}

__attribute__((noinline)) void arrive_at_counter(unsigned* counter) {
  check_atomic(counter, sizeof(*counter));
  ++*counter;
  wake(counter);
}

// Blocks that do not run at once never come.
__attribute__((noinline)) void wait_for_counter(const unsigned* counter, unsigned least) {
  const void* place = __builtin_return_address(0);
  check_global(counter, sizeof(*counter), false, place);
  while (static_cast<int>(*counter - least) < 0) wait_on(counter, place);
}

__attribute__((noinline)) void collective(unsigned mask, Work work, void* operands,
                                          bool orders_memory) {
  const int lane = current % kWarp;
  Warp& warp = block->warps[current / kWarp];
  const void* place = __builtin_return_address(0);
  if (!(mask >> lane & 1)) fail("collective: the calling lane is not in its mask", place);
  if (warp.here != 0 && (warp.mask != mask || warp.work != reinterpret_cast<void*>(work))) {
    fail("divergent collective: lanes of a warp wait for different ones", place);
  }
  if (warp.here != 0 && warp.place != place)
    fail("divergent collective: lanes of a warp wait at different places", place);
  warp.mask = mask, warp.work = reinterpret_cast<void*>(work), warp.place = place;
  warp.operands[lane] = operands;
  warp.here |= 1u << lane;
  if (warp.here != mask) {
    wait_here(Wait::kWarp, place);
    return;
  }
  block->fibers[current].place = place;
  work(warp.operands, mask);
  warp.here = 0;
  const int first = current - lane;
  std::vector<int> lanes;
  for (int i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    lanes.push_back(first + i);
    if (i != lane) block->fibers[first + i].wait = Wait::kNone;
  }
  if (!orders_memory) return;
  if (mask == kAllLanes) {
    ++warp.syncs;
  } else {
    block->order.use();  // clocks tell these lanes from the others
  }
  if (block->order.in_use()) block->order.meet(lanes);
}

__attribute__((noinline)) void warpgroup_collective(GroupWork work, void* operands,
                                                    const void* place) {
  Gathering<kGroup>& group = block->groups[current / kGroup];
  if ((current / kGroup + 1) * kGroup > threads)
    fail("warpgroup: expected four whole warps", place);
  if (group.arrived != 0 && group.work != reinterpret_cast<void*>(work))
    fail("divergent collective: threads of a warpgroup wait for different ones", place);
  group.work = reinterpret_cast<void*>(work);
  group.operands[current % kGroup] = operands;
  if (++group.arrived < kGroup) return wait_here(Wait::kGroup, place);
  work(group.operands, place);
  group.arrived = 0;
  for (int thread = current / kGroup * kGroup, i = 0; i < kGroup; ++i, ++thread) {
    if (thread != current) block->fibers[thread].wait = Wait::kNone;
  }
}

const void* collective_place() { return block->fibers[current].place; }

void fail_shuffle() {
  fail("shuffle: the lane that it reads is not in its mask", collective_place());
}

}  // namespace emulator
