#include "memory.h"

#include <link.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstring>

#include <cuda_runtime.h>

#include "emulator.h"

namespace emulator {

namespace {

constexpr size_t kSharedBytes = 227 * 1024;  // the most that one block of an H100 can have
constexpr size_t kSharedAlignment = 1024;    // of what swizzles repeat after

struct Range {
  const unsigned char *begin = nullptr, *end = nullptr;
  bool holds(const unsigned char* from, size_t bytes) const {
    return from >= begin && from + bytes <= end;
  }
  size_t size() const { return static_cast<size_t>(end - begin); }
};

struct Buffer {
  Range range;
  int kind;                       // 0: read only, 1: every element is written once, 2: scratch
  const unsigned char* elements;  // which bytes belong to one; null: all
  std::vector<uint64_t> writers;  // block and thread of each byte's writer, plus one
};

thread_local volatile char
    static_shared_exists;  // touched so that the library's thread-local memory is there to be seen
Range static_range;
SharedMemory* active = nullptr;
std::vector<Buffer> buffers;
std::vector<Range> image;
uint32_t block_number = 0;

int note_library(dl_phdr_info* info, size_t, void*) {
  const auto* base = reinterpret_cast<const unsigned char*>(info->dlpi_addr);
  std::vector<Range> segments;
  bool ours = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    const Range range{base + header.p_vaddr, base + header.p_vaddr + header.p_memsz};
    if (header.p_type == PT_LOAD) {
      segments.push_back(range);
      ours = ours || range.holds(reinterpret_cast<const unsigned char*>(&block_number), 1);
    }
    if (header.p_type == PT_TLS && info->dlpi_tls_data != nullptr) {
      const auto* tls = static_cast<const unsigned char*>(info->dlpi_tls_data);
      static_range = {tls, tls + header.p_memsz};
    }
  }
  if (!ours) {
    static_range = {};
    return 0;
  }
  image = segments;
  return 1;
}

// Is the earlier access known to lie before the running thread's next one?
bool are_ordered(const Position& now, const Access& before) {
  if (before.agent == now.thread) return true;
  if (now.order->is_thread(before.agent) &&
      (before.block_syncs != now.block_syncs ||
       (before.agent / 32 == now.warp && before.warp_syncs != now.warp_syncs))) {
    return true;
  }
  return now.order->in_use() && now.order->knows(now.thread, before.agent, before.moment);
}

Access access_of(const Position& now) {
  return {static_cast<int16_t>(now.thread), now.block_syncs, now.warp_syncs,
          now.order->now(now.thread)};
}

History& history_of(std::vector<History>& histories, size_t index) {
  History& byte = histories[index];
  if (byte.block != active->number) byte = History{}, byte.block = active->number;
  return byte;
}

// Reads that are not known to lie before the last one are all kept, where clocks order threads.
void note_read(History& byte, const Position& now, const Access& read) {
  if (byte.read.agent >= 0 && byte.read.agent != read.agent) {
    if (!now.order->in_use()) {
      const bool same_moment = byte.read.block_syncs == now.block_syncs;
      byte.several_readers =
          same_moment && (byte.several_readers || byte.read.agent / 32 != now.warp);
    } else if (!are_ordered(now, byte.read)) {
      if (byte.more_reads < 0) {
        byte.more_reads = static_cast<int>(active->read_sets.size());
        active->read_sets.emplace_back();
      }
      active->read_sets[byte.more_reads].push_back(byte.read);
    }
  }
  byte.read = read;
}

void check_after_reads(History& byte, const Position& now, const void* place) {
  const auto check = [&](const Access& read) {
    if (are_ordered(now, read)) return;
    fail(now.order->is_thread(read.agent)
             ? "race in shared memory: no barrier since another thread's read"
             : "race in shared memory: an asynchronous operation was not waited for, and reads it",
         place);
  };
  if (byte.read.agent < 0) return;
  check(byte.read);
  if (byte.several_readers && byte.read.block_syncs == now.block_syncs)
    fail("race in shared memory: no barrier since another thread's read", place);
  if (byte.more_reads < 0) return;
  for (const Access& read : active->read_sets[byte.more_reads]) check(read);
}

void check_histories(std::vector<History>& histories, size_t first, size_t bytes, bool writes,
                     Proxy proxy, const Position& now, const void* place, bool atomic = false) {
  for (size_t i = first; i < first + bytes; ++i) {
    History& byte = history_of(histories, i);
    if (byte.in_flight)
      fail("touches shared memory that an asynchronous copy is writing: it was not waited for",
           place);
    if (byte.is_barrier) fail("touches an mbarrier as if it were data", place);
    if ((!writes || atomic) && byte.write.agent < 0)
      fail("read of shared memory that no thread of the block wrote", place);
    const bool both_atomic = atomic && byte.write.atomic;
    if (byte.write.agent >= 0 && !both_atomic && !are_ordered(now, byte.write)) {
      fail(now.order->is_thread(byte.write.agent)
               ? "race in shared memory: no barrier since another thread's write"
               : "race in shared memory: the asynchronous copy's mbarrier was not waited for",
           place);
    }
    if (proxy == Proxy::kAsynchronous && byte.write.agent >= 0 && !byte.by_engine &&
        !now.order->sees_fenced(now.thread, byte.write.agent, byte.write.moment)) {
      fail("missing fence.proxy.async between a thread's write and an asynchronous access", place);
    }
    if (proxy == Proxy::kAsynchronous && !writes) continue;  // noted as the engine's
    if (writes) {
      check_after_reads(byte, now, place);
      byte.write = access_of(now);
      byte.write.atomic = atomic;
      byte.read = Access{}, byte.several_readers = false, byte.more_reads = -1;
      byte.by_engine = false;
    } else {
      note_read(byte, now, access_of(now));
    }
  }
}

// Results may be read back by the block that wrote them; what others wrote may not be there yet.
void check_read_back(const Buffer& buffer, const unsigned char* from, size_t bytes,
                     const void* place) {
  for (size_t i = 0; i < bytes && !buffer.writers.empty(); ++i) {
    const uint64_t known = buffer.writers[from - buffer.range.begin + i];
    if (known == 0) fail("read of a result that nobody wrote", place);
    if ((known - 1) / 1024 != active->number)
      fail("read of a result that another block wrote", place);
  }
}

void check_buffer(Buffer& buffer, const unsigned char* from, size_t bytes, bool writes,
                  const Position& now, const void* place) {
  for (size_t i = 0; buffer.elements != nullptr && i < bytes; ++i) {
    if (!buffer.elements[from - buffer.range.begin + i])
      fail("access to what lies between the elements of a view", place);
  }
  if (!writes) return check_read_back(buffer, from, bytes, place);
  if (buffer.kind == 0) fail("write to a read-only buffer", place);
  const uint64_t writer = uint64_t{active->number} * 1024 + now.thread + 1;
  if (buffer.writers.empty()) return;
  for (size_t i = 0; i < bytes; ++i) {
    uint64_t& known = buffer.writers[from - buffer.range.begin + i];
    if (known != 0 && known != writer) fail("element written by two threads", place);
    known = writer;
  }
}

[[noreturn]] void fail_outside(const unsigned char* from, size_t bytes, bool writes,
                               const void* place) {
  static char text[192];
  const int length = std::snprintf(text, sizeof(text), "out-of-bounds %s of %zu bytes",
                                   writes ? "write" : "read", bytes);
  const Buffer* nearest = nullptr;
  ptrdiff_t least = PTRDIFF_MAX;
  bool before = false;
  for (const Buffer& buffer : buffers) {
    const bool in_front = from < buffer.range.begin;
    const ptrdiff_t distance =
        in_front ? buffer.range.begin - from : from + bytes - buffer.range.end;
    if (distance < least) least = distance, nearest = &buffer, before = in_front;
  }
  if (nearest != nullptr) {
    std::snprintf(text + length, sizeof(text) - length, ", %td bytes %s buffer %td", least,
                  before ? "before" : "behind the end of", nearest - buffers.data());
  }
  fail(text, place);
}

size_t dynamic_index(const void* address, size_t bytes, const void* place) {
  const auto* from = static_cast<const unsigned char*>(address);
  const Range range{active->dynamic, active->dynamic + active->dynamic_bytes};
  if (!range.holds(from, bytes)) fail("out-of-bounds access to shared memory", place);
  return static_cast<size_t>(from - active->dynamic);
}

}  // namespace

SharedMemory::SharedMemory() {
  void* room = mmap(nullptr, kSharedBytes + kSharedAlignment, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  dynamic = static_cast<unsigned char*>(room);  // pages are larger than kSharedAlignment
}

SharedMemory::~SharedMemory() { munmap(dynamic, kSharedBytes + kSharedAlignment); }

size_t shared_capacity() { return kSharedBytes; }
unsigned char* shared_memory() { return active->dynamic; }

void activate(SharedMemory& memory) {
  if (active == &memory) return;
  if (static_range.size() != 0) {
    auto* fixed = const_cast<unsigned char*>(static_range.begin);
    if (active != nullptr) active->static_copy.assign(fixed, fixed + static_range.size());
    if (!memory.static_copy.empty())
      std::memcpy(fixed, memory.static_copy.data(), static_range.size());
  }
  active = &memory;
}

void begin_block(SharedMemory& memory, size_t shared_bytes) {
  if (image.empty()) {
    static_shared_exists = 1;
    dl_iterate_phdr(note_library, nullptr);
  }
  activate(memory);
  memory.number = ++block_number;
  memory.dynamic_bytes = shared_bytes;
  memory.read_sets.clear();
  if (memory.dynamic_histories.size() < shared_bytes) memory.dynamic_histories.resize(shared_bytes);
  memory.static_histories.resize(static_range.size());
  std::memset(memory.dynamic, 0xFF, shared_bytes);
  if (static_range.size() != 0)
    std::memset(const_cast<unsigned char*>(static_range.begin), 0xFF, static_range.size());
}

size_t offset_in_library(const void* place) {
  if (image.empty()) return 0;
  return static_cast<size_t>(static_cast<const unsigned char*>(place) - image.front().begin);
}

bool is_shared(const void* address) {
  const auto* from = static_cast<const unsigned char*>(address);
  return from >= active->dynamic && from < active->dynamic + kSharedBytes;
}

bool is_ordered(const Access& before) { return are_ordered(position(), before); }

void check_global(const void* address, size_t bytes, bool writes, const void* place) {
  const auto* from = static_cast<const unsigned char*>(address);
  for (Buffer& buffer : buffers) {
    if (buffer.range.holds(from, bytes))
      return check_buffer(buffer, from, bytes, writes, position(), place);
  }
  for (const Range& segment : image) {
    if (!writes && segment.holds(from, bytes)) return;  // constants, and threadIdx and its like
  }
  fail_outside(from, bytes, writes, place);
}

void check_access(const void* address, size_t bytes, bool writes, const void* place) {
  if (!is_running()) return;
  const auto* from = static_cast<const unsigned char*>(address);
  const Position now = position();
  if (from >= now.stack_begin && from + bytes <= now.stack_end) return;
  const bool power = (bytes & (bytes - 1)) == 0 && bytes <= 16;
  if (power && reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail("access not aligned to its size", place);
  if (is_shared(address)) {
    return check_histories(active->dynamic_histories, dynamic_index(address, bytes, place), bytes,
                           writes, Proxy::kGeneric, now, place);
  }
  if (static_range.holds(from, bytes)) {
    return check_histories(active->static_histories, static_cast<size_t>(from - static_range.begin),
                           bytes, writes, Proxy::kGeneric, now, place);
  }
  check_global(address, bytes, writes, place);
}

__attribute__((noinline)) void check_atomic(const void* address, size_t bytes) {
  const void* place = __builtin_return_address(0);
  const auto* from = static_cast<const unsigned char*>(address);
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail("access not aligned to its size", place);
  if (is_shared(address)) {
    return check_histories(active->dynamic_histories, dynamic_index(address, bytes, place), bytes,
                           true, Proxy::kGeneric, position(), place, true);
  }
  if (static_range.holds(from, bytes)) {
    return check_histories(active->static_histories, static_cast<size_t>(from - static_range.begin),
                           bytes, true, Proxy::kGeneric, position(), place, true);
  }
  for (const Buffer& buffer : buffers) {
    if (!buffer.range.holds(from, bytes)) continue;
    if (buffer.kind == 0) fail("write to a read-only buffer", place);
    return;  // by as many threads as may come
  }
  fail_outside(from, bytes, true, place);
}

void copy_raw(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

void check_shared_read(const void* address, int bytes, int lane, const void* place) {
  Position now = position();
  now.thread = warp_thread(lane);
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail("access not aligned to its size", place);
  check_histories(active->dynamic_histories, dynamic_index(address, bytes, place), bytes, false,
                  Proxy::kGeneric, now, place);
}

void check_shared(const void* address, size_t bytes, bool writes, Proxy proxy, const void* place) {
  check_histories(active->dynamic_histories, dynamic_index(address, bytes, place), bytes, writes,
                  proxy, position(), place);
}

void check_engine_read(const void* address, size_t bytes, int thread, const void* place) {
  check_histories(active->dynamic_histories, dynamic_index(address, bytes, place), bytes, false,
                  Proxy::kAsynchronous, position_of(thread), place);
}

void note_engine_read(const void* address, size_t bytes, int engine, uint32_t moment) {
  const Position now = position();
  const size_t first =
      static_cast<size_t>(static_cast<const unsigned char*>(address) - active->dynamic);
  for (size_t i = first; i < first + bytes; ++i) {
    note_read(history_of(active->dynamic_histories, i), now,
              {static_cast<int16_t>(engine), 0, 0, moment});
  }
}

void begin_flight(const void* address, size_t bytes) {
  const size_t first =
      static_cast<size_t>(static_cast<const unsigned char*>(address) - active->dynamic);
  for (size_t i = first; i < first + bytes; ++i)
    history_of(active->dynamic_histories, i).in_flight = true;
}

void end_flight(const void* address, size_t bytes, const Access& write, bool by_engine) {
  const size_t first =
      static_cast<size_t>(static_cast<const unsigned char*>(address) - active->dynamic);
  for (size_t i = first; i < first + bytes; ++i) {
    History& byte = history_of(active->dynamic_histories, i);
    byte.in_flight = false, byte.by_engine = by_engine;
    byte.write = write;
  }
}

void mark_barrier(const void* address, bool is_barrier) {
  const size_t first =
      static_cast<size_t>(static_cast<const unsigned char*>(address) - active->dynamic);
  for (size_t i = first; i < first + 8; ++i)
    history_of(active->dynamic_histories, i).is_barrier = is_barrier;
}

}  // namespace emulator

extern "C" {

void emulator_register(const void* begin, size_t bytes, int kind, const unsigned char* elements) {
  const auto* first = static_cast<const unsigned char*>(begin);
  constexpr size_t kTracked = size_t{1} << 26;  // larger ones are only bounds-checked
  emulator::buffers.push_back({{first, first + bytes}, kind, elements, {}});
  if (kind == 1 && bytes <= kTracked) emulator::buffers.back().writers.resize(bytes);
}

void emulator_forget_all() { emulator::buffers.clear(); }

}  // extern "C"
