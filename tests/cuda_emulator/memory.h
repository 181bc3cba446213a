// What a kernel may touch, and the histories of shared memory that tell a race or a read of what
// nobody wrote.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

// Where the running thread is in time and space.
struct Position {
  int thread, warp;
  uint32_t block_syncs, warp_syncs;
  const unsigned char *stack_begin, *stack_end;
};
Position position();
bool is_running();
int warp_thread(int lane);  // the thread of a lane of the running warp

// Ends the launch with this message; does not return to the kernel.
[[noreturn]] void fail(const char* what, const void* place);

size_t shared_capacity();
void begin_block(size_t shared_bytes);  // shared memory is filled with 0xFF, and unwritten
size_t offset_in_library(const void* place);

void check_access(const void* address, size_t bytes, bool writes, const void* place);
void check_shared_read(const void* address, int bytes, int lane);
unsigned char* shared_memory();

}  // namespace emulator
