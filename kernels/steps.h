// Steps that wait for each other, on the threads of one parallel_for: step s + 1 begins when every
// task of step s is done.
//
// A thread takes tasks one by one from a slice of its own, the same in each step, so that what the
// tasks read stays in its cache; then it helps the others. Nobody waits for a thread that has not
// come: whoever is there does all the work, a late one joins at the step that is on. So it cannot stop,
// however few of the threads run, one after the other or none but the caller's.
#pragma once
#include <cstdint>

#include "parallel.h"
#include "scratch.h"

namespace fastconv {

static inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void give_way();  // to another thread of the system

// Calls body(step, task) for every task of every step. `slices` is the most threads to use; the body
// must not throw. The type of a lambda is its file's own, and so is this copy.
template <class F>
inline void run_steps(int64_t steps, int64_t tasks, int64_t slices, const F& body) {
  if (slices > tasks) slices = tasks;
  if (slices <= 1) {
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t task = 0; task < tasks; ++task) body(step, task);
    return;
  }
  Scratch<int64_t> memory(steps * (slices + 1));
  int64_t* const done = memory.data();
  int64_t* const taken = done + steps;  // [slices][steps]
  for (int64_t i = 0; i < steps * (slices + 1); ++i) done[i] = 0;

  parallel_for(slices, 1, [&](int64_t own, int64_t) {
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t i = 0; i < slices; ++i) {
        const int64_t slice = (own + i) % slices;
        const int64_t begin = tasks * slice / slices, end = tasks * (slice + 1) / slices;
        int64_t* const next = taken + slice * steps + step;
        while (__atomic_load_n(next, __ATOMIC_RELAXED) < end - begin) {
          const int64_t task = begin + __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
          if (task >= end) break;
          body(step, task);
          __atomic_fetch_add(done + step, 1, __ATOMIC_RELEASE);
        }
      }
      for (int spins = 0; __atomic_load_n(done + step, __ATOMIC_ACQUIRE) < tasks; ++spins) {
        pause_briefly();
        if (spins > 2000) give_way();
      }
    }
  });
}

}  // namespace fastconv
