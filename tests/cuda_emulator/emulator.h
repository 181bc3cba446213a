// A CUDA device made of one host thread, to prove kernels where there is no GPU.
//
// The .cu sources are compiled by the host compiler against include/, with every memory access of
// theirs instrumented (-fsanitize=kernel-address, whose calls are answered here and not by a
// sanitizer's runtime). Blocks run one after the other; the threads of a block are fibers that run
// until they wait: at a barrier of the block, or at a collective of their warp, which the last lane
// to come carries out for all.
//
// A launch fails, with kernel, block, thread and the address of the instruction, at
//   an access outside the registered buffers, the block's shared memory and the thread's own stack,
//   a write to a read-only buffer, and a second thread's write to an element (every result is
//   written once; buffers of kind 2 are exempt),
//   an access that is not aligned to its size,
//   a read of shared memory that nobody wrote in this block,
//   two accesses to shared memory by two threads, one of them a write, with no barrier between,
//   a barrier or collective that not all threads reach, or that they reach at different places,
//   a touch of what an asynchronous copy or product is at, before it was waited for,
//   an asynchronous access to what a thread wrote, with no fence.proxy.async between,
//   an mbarrier's phase that never ends, or that two phases have passed.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {
// What kernels may touch. Kind 0: to read, 1: to write once, 2: to write at will. `elements`, unless
// null, is not 0 for the bytes that belong to elements.
void emulator_register(const void* begin, size_t bytes, int kind, const unsigned char* elements);
void emulator_forget_all();
void emulator_set_capability(int capability);  // 80, 90: of the device
size_t emulator_last_kernel();    // where the kernel of the last launch lies in the library
uint64_t emulator_threads_run();  // since the library was loaded
uint64_t emulator_launches();
void emulator_limit_launches(int64_t count);  // those that follow fail; -1: none does
void emulator_expect_stream(void* stream);    // a launch on another one fails
}
