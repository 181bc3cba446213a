// The one way to use threads: parallel_for(n, grain, body). Who runs the pieces is installed from
// outside: the torch door installs torch's own pool, so that torch.set_num_threads rules
// everything; without torch a small pool of our own serves.
#pragma once
#include <cstdint>

#pragma GCC visibility push(default)
namespace fastconv {

using ParallelBody = void (*)(void* context, int64_t begin, int64_t end);

struct ParallelRunner {
  // Calls body on disjoint pieces that cover [0, n), each of at least `grain` (but the last), and
  // returns when all are done. Nested calls run on the calling thread. An exception of a body
  // reaches the caller.
  void (*run)(int64_t n, int64_t grain, ParallelBody body, void* context);
  int (*num_threads)();
};

void set_parallel_runner(const ParallelRunner* runner);  // null: the pool of our own
int num_threads();
void set_num_threads(int count);  // of the pool of our own, >= 1
void run_parallel(int64_t n, int64_t grain, ParallelBody body, void* context);

// Calls body(begin, end) on disjoint pieces that cover [0, n). The type of a lambda is its file's
// own, and so is this copy.
template <class F>
inline void parallel_for(int64_t n, int64_t grain, const F& body) {
  if (n <= 0) return;
  if (n <= grain) {
    body(int64_t{0}, n);
    return;
  }
  run_parallel(
      n, grain,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
      },
      const_cast<F*>(&body));
}

}  // namespace fastconv
#pragma GCC visibility pop
