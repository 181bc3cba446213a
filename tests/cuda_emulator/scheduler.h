// How the parts of the emulator wait for each other; kernels never see this.
#pragma once
#include <cstdint>
#include <string>

#include "memory.h"

namespace emulator {

// The running thread waits until another one wakes all that wait on `object`.
void wait_on(const void* object, const void* place);
void wake(const void* object);

const char* failure_text();                // of the last launch
size_t dynamic_limit(const void* kernel);  // bytes of dynamic shared memory, runtime.cpp

int running_thread();
int thread_count();
Order& running_order();  // of the running block

// asynchronous.cpp: the engines of the running block.
void begin_asynchronous();
bool step_asynchronous();  // carries out one operation in flight; false: there is none
// Empty, or what was left undone by the block; `thread` is whose, `place` where it began.
std::string unfinished_asynchronous(int& thread, const void*& place);
std::string describe_object(const void* object);  // what a thread waits on
struct Asynchronous;
Asynchronous& asynchronous();  // of the running block

}  // namespace emulator
