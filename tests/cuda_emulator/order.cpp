#include "order.h"

namespace emulator {

namespace {

void raise(std::vector<uint32_t>& to, const std::vector<uint32_t>& from) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = to[i] < from[i] ? from[i] : to[i];
}

}  // namespace

void Clocks::join(const Clocks& other) {
  if (other.known.empty()) return;
  if (known.empty()) {
    *this = other;
    return;
  }
  raise(known, other.known);
  raise(fenced, other.fenced);
}

void Order::begin(int threads) {
  threads_ = threads, engines_ = 0, in_use_ = false;
  moments_.assign(threads, 1);
  clocks_.assign(threads, Clocks{});
}

void Order::fit(Clocks& clocks) const {
  if (!clocks.known.empty()) return;
  clocks.known.assign(threads_ + kMaxEngines, 0);
  clocks.fenced.assign(threads_ + kMaxEngines, 0);
}

bool Order::knows(int thread, int agent, uint32_t moment) const {
  const Clocks& mine = clocks_[thread];
  return !mine.known.empty() && mine.known[agent] >= moment;
}

bool Order::sees_fenced(int thread, int agent, uint32_t moment) const {
  const Clocks& mine = clocks_[thread];
  return !mine.fenced.empty() && mine.fenced[agent] >= moment;
}

void Order::set(Clocks& clocks, int agent, uint32_t moment) const {
  fit(clocks);
  if (clocks.known[agent] < moment) clocks.known[agent] = moment;
}

void Order::learn(int thread, int agent, uint32_t moment) { set(clocks_[thread], agent, moment); }

void Order::release(int thread, Clocks& into) {
  set(clocks_[thread], thread, moments_[thread]);
  into.join(clocks_[thread]);
  ++moments_[thread];
}

void Order::acquire(int thread, const Clocks& from) { clocks_[thread].join(from); }

void Order::fence(int thread) {
  Clocks& mine = clocks_[thread];
  set(mine, thread, moments_[thread]);
  raise(mine.fenced, mine.known);
  ++moments_[thread];
}

void Order::meet(const std::vector<int>& threads) {
  Clocks all;
  for (const int thread : threads) release(thread, all);
  for (const int thread : threads) clocks_[thread] = all;
}

}  // namespace emulator
