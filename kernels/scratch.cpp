#include "scratch.h"

#include <cstdlib>
#include <new>
#include <vector>

namespace fastconv {
namespace {

// Freed blocks up to this size stay with the thread: fresh memory costs a page fault per 4 KiB, a
// tenth of the time of a layer whose packed weights (512 x 512 x 3 x 3: 9 MiB) it holds. So a thread
// never keeps more than kBlocks * kKeep, and only those it once needed.
constexpr int64_t kKeep = int64_t{12} << 20;
constexpr int kBlocks = 8;
constexpr int64_t kAlignment = 64;

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
  bool taken = false;
};

struct Arena {
  Block blocks[kBlocks];
  ~Arena() {
    for (Block& block : blocks) std::free(block.data);
  }
};
thread_local Arena t_arena;

void* allocate(int64_t bytes) {
  if (bytes < 0 || bytes > INT64_MAX - kAlignment) throw std::bad_alloc();
  void* data = std::aligned_alloc(
      kAlignment, static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment));
  if (!data) throw std::bad_alloc();
  return data;
}

}  // namespace

void* take_scratch(int64_t bytes) {
  if (bytes < 0 || bytes > kKeep) return allocate(bytes);
  Block* spare = nullptr;
  for (Block& block : t_arena.blocks) {
    if (block.taken) continue;
    if (block.bytes >= bytes) {
      block.taken = true;
      return block.data;
    }
    spare = &block;
  }
  if (!spare) return allocate(bytes);
  void* data = allocate(bytes);
  std::free(spare->data);
  *spare = {data, bytes, true};
  return data;
}

void give_back_scratch(void* data) {
  for (Block& block : t_arena.blocks) {
    if (block.data == data) {
      block.taken = false;
      return;
    }
  }
  std::free(data);
}

}  // namespace fastconv
