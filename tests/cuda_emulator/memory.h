// What a kernel may touch, and the histories of shared memory that tell a race, a read of what
// nobody wrote, and a touch of what an asynchronous copy is still at.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "order.h"

namespace emulator {

// Where the running thread is in time and space.
struct Position {
  int thread, warp;
  uint32_t block_syncs, warp_syncs;
  Order* order;
  const unsigned char *stack_begin, *stack_end;
};
Position position();
Position position_of(int thread);
bool is_running();
int warp_thread(int lane);  // the thread of a lane of the running warp

// Ends the launch with this message; does not return to the kernel.
[[noreturn]] void fail(const char* what, const void* place);

// One access to a byte of shared memory, by a thread or an engine (order.h).
struct Access {
  int16_t agent = -1;
  uint32_t block_syncs = 0, warp_syncs = 0, moment = 0;
  bool atomic = false;
};

// The last accesses to one byte; those of earlier blocks count as none.
struct History {
  uint32_t block = 0;
  Access write, read;
  int more_reads = -1;           // further reads that the last one is not known to follow
  bool several_readers = false;  // the same, where only the block's barriers order threads
  bool in_flight = false;        // an asynchronous copy is writing it
  bool by_engine = false;        // written through the asynchronous proxy
  bool is_barrier = false;       // of an mbarrier
};

// The shared memory of one resident block.
struct SharedMemory {
  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  unsigned char* dynamic;
  size_t dynamic_bytes = 0;
  std::vector<History> dynamic_histories, static_histories;
  std::vector<unsigned char> static_copy;  // while another block is the active one
  std::vector<std::vector<Access>> read_sets;
  uint32_t number = 0;  // of the block, among all that ever ran
};

size_t shared_capacity();
void begin_block(SharedMemory& memory, size_t shared_bytes);  // filled with 0xFF, and unwritten
void activate(SharedMemory& memory);                          // the running block's
size_t offset_in_library(const void* place);
unsigned char* shared_memory();

enum class Proxy { kGeneric, kAsynchronous };

void check_access(const void* address, size_t bytes, bool writes, const void* place);
void check_global(const void* address, size_t bytes, bool writes, const void* place);
bool is_shared(const void* address);
bool is_ordered(const Access& before);  // known to lie before what the running thread does next
// An access to dynamic shared memory by an instruction, as the thread of `lane`, or as an engine
// that works for the running thread.
void check_shared_read(const void* address, int bytes, int lane, const void* place);
void check_shared(const void* address, size_t bytes, bool writes, Proxy proxy, const void* place);
void check_engine_read(const void* address, size_t bytes, int thread, const void* place);
void note_engine_read(const void* address, size_t bytes, int engine, uint32_t moment);
// Between these two, nobody may touch the bytes.
void begin_flight(const void* address, size_t bytes);
void end_flight(const void* address, size_t bytes, const Access& write, bool by_engine);
void mark_barrier(const void* address, bool is_barrier);

}  // namespace emulator
