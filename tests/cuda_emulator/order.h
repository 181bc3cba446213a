// Which moment is known to lie before which: vector clocks, kept where barriers of the whole block
// are not the only order (mbarriers, named barriers, asynchronous copies and products).
//
// An agent is a thread of the block, or an engine: what works on its own (the copies that complete
// on one mbarrier, the products of one warpgroup, the bulk stores of one thread). `known` says up to
// which of its moments another agent's accesses lie before; `fenced` the same for accesses that a
// fence has shown to the asynchronous proxy.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {

constexpr int kMaxEngines = 128;

struct Clocks {
  std::vector<uint32_t> known, fenced;  // empty: nothing is known
  void join(const Clocks& other);
};

class Order {
 public:
  void begin(int threads);
  bool in_use() const { return in_use_; }
  void use() { in_use_ = true; }

  int new_engine() { return engines_ < kMaxEngines ? threads_ + engines_++ : -1; }
  bool is_thread(int agent) const { return agent < threads_; }
  uint32_t now(int thread) const { return moments_[thread]; }
  bool knows(int thread, int agent, uint32_t moment) const;
  bool sees_fenced(int thread, int agent, uint32_t moment) const;

  void release(int thread, Clocks& into);  // what the thread did so far is handed on
  void acquire(int thread, const Clocks& from);
  void learn(int thread, int agent, uint32_t moment);
  void fence(int thread);                      // fence.proxy.async
  void meet(const std::vector<int>& threads);  // a barrier between these
  void set(Clocks& clocks, int agent, uint32_t moment) const;

 private:
  void fit(Clocks& clocks) const;
  int threads_ = 0, engines_ = 0;
  bool in_use_ = false;
  std::vector<uint32_t> moments_;
  std::vector<Clocks> clocks_;
};

}  // namespace emulator
