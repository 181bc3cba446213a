// The pool of our own: used where no framework brings one (NumPy without torch).
#include "parallel.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace fastconv {
namespace {

constexpr int kMostThreads = 1024;

thread_local bool t_inside = false;  // a nested call runs on its own thread

class Pool {
 public:
  static Pool& instance() {
    // Never destroyed: worker threads may still wait on it while the process ends.
    static Pool* pool = [] {
      pthread_atfork(nullptr, nullptr, [] { instance().forget_threads(); });
      return new Pool;
    }();
    return *pool;
  }

  int size() const { return size_.load(); }
  void resize(int count) {
    size_.store(count < 1 ? 1 : count > kMostThreads ? kMostThreads : count);
  }

  void run(int64_t n, int64_t grain, ParallelBody body, void* context) {
    if (grain < 1) grain = 1;
    const int64_t most = (n + grain - 1) / grain;
    const int64_t pieces = most < size() ? most : size();
    // One call at a time; a second caller's threads would only stand in the first one's way.
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (pieces <= 1 || t_inside || !turn.owns_lock()) return body(context, 0, n);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!start_threads(pieces - 1)) return body(context, 0, n);
      job_ = {body, context, n, pieces, 1, pieces - 1, nullptr};
    }
    wake_.notify_all();
    run_piece(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return job_.unfinished == 0; });
    if (job_.error) std::rethrow_exception(job_.error);
  }

 private:
  struct Job {
    ParallelBody body = nullptr;
    void* context = nullptr;
    int64_t n = 0, pieces = 0;
    int64_t next = 0;        // the next piece to hand out
    int64_t unfinished = 0;  // pieces not done yet, but for the caller's own
    std::exception_ptr error;
  };

  Pool() {
    const char* asked = std::getenv("FASTCONV_NUM_THREADS");
    const int count = asked ? std::atoi(asked) : 0;
    resize(count > 0 ? count : static_cast<int>(std::thread::hardware_concurrency()));
  }

  bool start_threads(int64_t count) {
    try {
      for (; threads_ < count; ++threads_) std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
      return false;  // the system gives no more threads: the caller does the work alone
    }
    return true;
  }

  void run_piece(int64_t piece) {
    t_inside = true;
    try {
      const int64_t n = job_.n, pieces = job_.pieces, each = n / pieces, rest = n % pieces;
      const int64_t begin = piece * each + (piece < rest ? piece : rest);
      job_.body(job_.context, begin, begin + each + (piece < rest));
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!job_.error) job_.error = std::current_exception();
    }
    t_inside = false;
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_.next < job_.pieces; });
      const int64_t piece = job_.next++;
      lock.unlock();
      run_piece(piece);
      lock.lock();
      if (--job_.unfinished == 0) done_.notify_one();
    }
  }

  // A forked child has this object but none of its threads, and its locks as they happened to
  // stand.
  void forget_threads() {
    const int size = size_.load();
    new (this) Pool;
    resize(size);
  }

  std::atomic<int> size_{1};
  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  int64_t threads_ = 0;
  Job job_;
};

void own_run(int64_t n, int64_t grain, ParallelBody body, void* context) {
  Pool::instance().run(n, grain, body, context);
}
int own_num_threads() { return Pool::instance().size(); }

constexpr ParallelRunner kOwnRunner = {own_run, own_num_threads};
std::atomic<const ParallelRunner*> g_runner{&kOwnRunner};

}  // namespace

void set_parallel_runner(const ParallelRunner* runner) {
  g_runner.store(runner ? runner : &kOwnRunner);
}
int num_threads() { return g_runner.load()->num_threads(); }
void set_num_threads(int count) { Pool::instance().resize(count); }

void run_parallel(int64_t n, int64_t grain, ParallelBody body, void* context) {
  g_runner.load()->run(n, grain, body, context);
}

}  // namespace fastconv
