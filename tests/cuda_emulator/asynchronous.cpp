#include "asynchronous.h"

#include <cstdio>
#include <cstring>

#include "device.h"

namespace emulator {

namespace {

bool is_aligned(const void* address, size_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

void require_shared(const void* address, const void* place) {
  if (!is_shared(address)) fail("expected an address in dynamic shared memory", place);
}

void finish(CopyGroup& group) {
  for (Copy& copy : group.copies) {
    std::memcpy(copy.to, copy.data.data(), copy.data.size());
    end_flight(copy.to, copy.data.size(), present_access(), false);
  }
}

void advance_phase(Mbarrier& barrier, Order& order) {
  if (barrier.pending != 0 || barrier.transactions != 0) return;
  barrier.pending = barrier.arrivals;
  ++barrier.phase;
  barrier.completed.join(barrier.arriving);
  barrier.arriving = Clocks{};
  order.set(barrier.completed, barrier.engine, barrier.phase);
  wake(&barrier);
}

void arrive(Mbarrier& barrier, const void* place) {
  const Position now = position();
  if (barrier.pending == 0)
    fail("mbarrier: more arrivals in one phase than it was initialised for", place);
  now.order->release(now.thread, barrier.arriving);
  --barrier.pending;
  advance_phase(barrier, *now.order);
}

}  // namespace

void begin_asynchronous() {
  Asynchronous& engines = asynchronous();
  engines = Asynchronous{};
  engines.open_copies.resize(thread_count());
  engines.copies.resize(thread_count());
}

int new_engine(const void* place) {
  Order& order = running_order();
  order.use();
  const int engine = order.new_engine();
  if (engine < 0) fail("the emulator knows no more mbarriers and engines in one block", place);
  return engine;
}

Access present_access() {
  const Position now = position();
  return {static_cast<int16_t>(now.thread), now.block_syncs, now.warp_syncs,
          now.order->now(now.thread)};
}

// ---- cp.async ----

__attribute__((noinline)) void copy_async(void* shared, const void* global, int bytes,
                                          int source_bytes) {
  const void* place = __builtin_return_address(0);
  require_shared(shared, place);
  if (!is_aligned(shared, bytes) || !is_aligned(global, bytes))
    fail("cp.async: access not aligned to its size", place);
  if (source_bytes < 0 || source_bytes > bytes)
    fail("cp.async: more source bytes than bytes", place);
  check_shared(shared, bytes, true, Proxy::kGeneric, place);
  Copy copy{static_cast<unsigned char*>(shared), std::vector<unsigned char>(bytes)};
  if (source_bytes > 0) {
    check_global(global, source_bytes, false, place);
    std::memcpy(copy.data.data(), global, source_bytes);
  }
  begin_flight(shared, bytes);
  CopyGroup& group = asynchronous().open_copies[running_thread()];
  group.copies.push_back(std::move(copy));
  group.place = place;
}

void commit_copies() {
  CopyGroup& group = asynchronous().open_copies[running_thread()];
  asynchronous().copies[running_thread()].push_back(std::move(group));
  group = CopyGroup{};
}

void wait_copies(int most) {
  auto& groups = asynchronous().copies[running_thread()];
  for (; static_cast<int>(groups.size()) > most; groups.pop_front()) finish(groups.front());
}

// ---- mbarrier ----

__attribute__((noinline)) void initialise_barrier(void* at, unsigned arrivals) {
  const void* place = __builtin_return_address(0);
  require_shared(at, place);
  if (!is_aligned(at, 8)) fail("mbarrier: access not aligned to its size", place);
  if (arrivals == 0 || arrivals >= 1u << 20)
    fail("mbarrier: expected 1 to 2^20 - 1 arrivals", place);
  mark_barrier(at, false);
  check_shared(at, 8, true, Proxy::kGeneric, place);
  mark_barrier(at, true);
  Mbarrier& barrier = asynchronous().barriers[at];
  const int engine = barrier.engine < 0 ? new_engine(place) : barrier.engine;
  barrier = Mbarrier{};
  barrier.arrivals = barrier.pending = arrivals;
  barrier.engine = engine;
  barrier.initialised = present_access();
}

Mbarrier& barrier_of(const void* at, const void* place) {
  auto found = asynchronous().barriers.find(at);
  if (found == asynchronous().barriers.end())
    fail("mbarrier: used where none was initialised", place);
  if (!is_ordered(found->second.initialised))
    fail("race in shared memory: no barrier since the mbarrier's initialisation", place);
  return found->second;
}

void fence_barrier_initialisation() {
  for (auto& [at, barrier] : asynchronous().barriers) {
    if (is_ordered(barrier.initialised)) barrier.seen_by_engines = true;
  }
}

void fence_proxies() {
  const Position now = position();
  now.order->use();
  now.order->fence(now.thread);
  fence_barrier_initialisation();
}

__attribute__((noinline)) void arrive_at_barrier(void* at, int64_t expected_bytes) {
  const void* place = __builtin_return_address(0);
  Mbarrier& barrier = barrier_of(at, place);
  if (expected_bytes < 0 || expected_bytes >= 1 << 20)
    fail("mbarrier: expected fewer than 2^20 bytes of transactions", place);
  barrier.transactions += expected_bytes;
  arrive(barrier, place);
}

__attribute__((noinline)) void wait_for_barrier(void* at, unsigned parity) {
  const void* place = __builtin_return_address(0);
  Mbarrier& barrier = barrier_of(at, place);
  if (parity > 1) fail("mbarrier: expected the parity 0 or 1 of a phase", place);
  const uint32_t phase = barrier.phase;
  if (phase % 2 == parity) {
    while (barrier.phase == phase) wait_on(&barrier, place);
    if (barrier.phase != phase + 1)
      fail("mbarrier: two phases passed while a thread waited for one of them", place);
  }
  const Position now = position();
  now.order->acquire(now.thread, barrier.completed);
}

std::string describe_object(const void* object) {
  for (const auto& [at, barrier] : asynchronous().barriers) {
    if (&barrier != object) continue;
    char text[160];
    std::snprintf(
        text, sizeof(text),
        "phase %u of the mbarrier at byte %td of shared memory lacks %u arrivals and %lld "
        "bytes",
        barrier.phase, static_cast<const unsigned char*>(at) - shared_memory(), barrier.pending,
        static_cast<long long>(barrier.transactions));
    return text;
  }
  return "threads wait for others that do not come";
}

// ---- loads that complete on an mbarrier, and stores in groups ----

void begin_load(void* shared, std::vector<unsigned char> data, Mbarrier& barrier,
                const void* place) {
  require_shared(shared, place);
  if (!barrier.seen_by_engines)
    fail("missing fence.mbarrier_init between an mbarrier's initialisation and a copy", place);
  check_shared(shared, data.size(), true, Proxy::kAsynchronous, place);
  begin_flight(shared, data.size());
  asynchronous().flights.push_back(
      {{static_cast<unsigned char*>(shared), std::move(data)}, &barrier, running_thread(), place});
}

bool step_asynchronous() {
  Asynchronous& engines = asynchronous();
  if (engines.flights.empty()) return false;
  const Flight flight = std::move(engines.flights.front());
  engines.flights.pop_front();
  Mbarrier& barrier = *flight.barrier;
  const size_t bytes = flight.copy.data.size();
  std::memcpy(flight.copy.to, flight.copy.data.data(), bytes);
  end_flight(flight.copy.to, bytes, {static_cast<int16_t>(barrier.engine), 0, 0, barrier.phase + 1},
             true);
  barrier.transactions -= static_cast<int64_t>(bytes);
  advance_phase(barrier, running_order());
  return true;
}

void begin_store(const void* shared, size_t bytes, const void* place) {
  require_shared(shared, place);
  Stores& stores = asynchronous().stores[running_thread()];
  if (stores.engine < 0) stores.engine = new_engine(place);
  check_shared(shared, bytes, false, Proxy::kAsynchronous, place);
  note_engine_read(shared, bytes, stores.engine, stores.committed + 1);
  stores.open = true;
  stores.place = place;
}

void commit_stores() {
  Stores& stores = asynchronous().stores[running_thread()];
  ++stores.committed;
  stores.open = false;
}

void wait_stores(int most) {
  Stores& stores = asynchronous().stores[running_thread()];
  if (stores.committed <= static_cast<uint32_t>(most)) return;
  stores.finished = stores.committed - static_cast<uint32_t>(most);
  if (stores.engine >= 0) {
    position().order->learn(running_thread(), stores.engine, stores.finished);
  }
}

__attribute__((noinline)) void load_bulk(void* shared, const void* global, unsigned bytes,
                                         void* barrier) {
  const void* place = __builtin_return_address(0);
  if (!is_aligned(shared, 16) || !is_aligned(global, 16) || bytes % 16 != 0)
    fail("cp.async.bulk: addresses and bytes must be multiples of 16", place);
  if (bytes == 0) return;
  check_global(global, bytes, false, place);
  const auto* from = static_cast<const unsigned char*>(global);
  begin_load(shared, std::vector<unsigned char>(from, from + bytes), barrier_of(barrier, place),
             place);
}

__attribute__((noinline)) void store_bulk(void* global, const void* shared, unsigned bytes) {
  const void* place = __builtin_return_address(0);
  if (!is_aligned(shared, 16) || !is_aligned(global, 16) || bytes % 16 != 0)
    fail("cp.async.bulk: addresses and bytes must be multiples of 16", place);
  if (bytes == 0) return;
  begin_store(shared, bytes, place);
  check_global(global, bytes, true, place);
  std::memcpy(global, shared, bytes);
}

std::string unfinished_asynchronous(int& thread, const void*& place) {
  Asynchronous& engines = asynchronous();
  if (!engines.flights.empty()) {
    thread = engines.flights.front().thread, place = engines.flights.front().place;
    return "the block ended while an asynchronous copy to its shared memory was on its way";
  }
  for (const auto& [of, stores] : engines.stores) {
    if (stores.finished == stores.committed && !stores.open) continue;
    thread = of, place = stores.place;
    return "the block ended while an asynchronous store from its shared memory was on its way";
  }
  for (const auto& [of, products] : engines.products) {
    if (products.finished == products.committed && !products.open) continue;
    thread = of, place = products.place;
    return "the block ended before wgmma.wait_group";
  }
  for (const auto& [warp, held] : engines.registers) {
    for (int other = warp / 4 * 4; other < warp / 4 * 4 + 4; ++other) {
      const auto found = engines.registers.find(other);
      if (found != engines.registers.end() && found->second.count == held.count) continue;
      thread = warp * 32, place = held.place;
      return "setmaxnreg: not all warps of the warpgroup reach it";
    }
  }
  for (int of = 0; of < thread_count(); ++of) {
    for (const CopyGroup& group : engines.copies[of]) {
      if (group.copies.empty()) continue;
      thread = of, place = group.place;
      return "the block ended before cp.async.wait_group";
    }
    if (engines.open_copies[of].copies.empty()) continue;
    thread = of, place = engines.open_copies[of].place;
    return "the block ended before cp.async.commit_group";
  }
  return "";
}

}  // namespace emulator
