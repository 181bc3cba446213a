#include "memory.h"

#include <link.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "emulator.h"

namespace emulator {

namespace {

constexpr size_t kSharedBytes = 227 * 1024;  // the most that one block of an H100 can have

struct Range {
  const unsigned char *begin = nullptr, *end = nullptr;
  bool holds(const unsigned char* from, size_t bytes) const {
    return from >= begin && from + bytes <= end;
  }
};

struct Buffer {
  Range range;
  bool writable;
  std::vector<uint64_t> writers;  // block and thread of each byte's writer, plus one
};

// The last accesses to one byte of shared memory; those of earlier blocks count as none.
struct History {
  uint32_t block = 0;
  int16_t writer = -1, reader = -1;
  bool several_readers = false;
  uint32_t write_syncs = 0, write_warp_syncs = 0;
  uint32_t read_syncs = 0, read_warp_syncs = 0;
};

struct SharedRegion {
  Range range;
  std::vector<History> histories;
};

thread_local volatile char
    static_shared_exists;  // touched so that the library's thread-local memory is there to be seen
alignas(128) unsigned char dynamic_shared[kSharedBytes];
SharedRegion dynamic_region, static_region;
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
      ours = ours || range.holds(dynamic_shared, 1);
    }
    if (header.p_type == PT_TLS && info->dlpi_tls_data != nullptr) {
      const auto* tls = static_cast<const unsigned char*>(info->dlpi_tls_data);
      static_region.range = {tls, tls + header.p_memsz};
    }
  }
  if (!ours) {
    static_region.range = {};
    return 0;
  }
  image = segments;
  return 1;
}

// Were the two moments parted by a barrier that both threads took part in?
bool are_ordered(const Position& now, int thread, uint32_t syncs, uint32_t warp_syncs) {
  return thread == now.thread || syncs != now.block_syncs ||
         (thread / 32 == now.warp && warp_syncs != now.warp_syncs);
}

void check_shared(SharedRegion& region, const unsigned char* from, size_t bytes, bool writes,
                  const Position& now, const void* place) {
  History* history = &region.histories[from - region.range.begin];
  for (size_t i = 0; i < bytes; ++i) {
    History& byte = history[i];
    if (byte.block != block_number) byte = History{}, byte.block = block_number;
    if (!writes && byte.writer < 0)
      fail("read of shared memory that no thread of the block wrote", place);
    if (byte.writer >= 0 &&
        !are_ordered(now, byte.writer, byte.write_syncs, byte.write_warp_syncs)) {
      fail("race in shared memory: no barrier since another thread's write", place);
    }
    if (writes) {
      if (byte.reader >= 0 &&
          (!are_ordered(now, byte.reader, byte.read_syncs, byte.read_warp_syncs) ||
           (byte.several_readers && byte.read_syncs == now.block_syncs))) {
        fail("race in shared memory: no barrier since another thread's read", place);
      }
      byte.writer = static_cast<int16_t>(now.thread);
      byte.write_syncs = now.block_syncs, byte.write_warp_syncs = now.warp_syncs;
      byte.reader = -1, byte.several_readers = false;
    } else {
      const bool same_moment = byte.reader >= 0 && byte.read_syncs == now.block_syncs;
      byte.several_readers = same_moment && (byte.several_readers || byte.reader / 32 != now.warp);
      byte.reader = static_cast<int16_t>(now.thread);
      byte.read_syncs = now.block_syncs, byte.read_warp_syncs = now.warp_syncs;
    }
  }
}

void check_buffer(Buffer& buffer, const unsigned char* from, size_t bytes, bool writes,
                  const Position& now, const void* place) {
  if (!writes) return;
  if (!buffer.writable) fail("write to a read-only buffer", place);
  const uint64_t writer = uint64_t{block_number} * 1024 + now.thread + 1;
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

}  // namespace

size_t shared_capacity() { return kSharedBytes; }
unsigned char* shared_memory() { return dynamic_shared; }

void begin_block(size_t shared_bytes) {
  if (image.empty()) {
    static_shared_exists = 1;
    dl_iterate_phdr(note_library, nullptr);
  }
  ++block_number;
  dynamic_region.range = {dynamic_shared, dynamic_shared + shared_bytes};
  for (SharedRegion* region : {&dynamic_region, &static_region}) {
    const size_t bytes = static_cast<size_t>(region->range.end - region->range.begin);
    if (region->histories.size() < bytes) region->histories.resize(bytes);
    if (bytes != 0) std::memset(const_cast<unsigned char*>(region->range.begin), 0xFF, bytes);
  }
}

size_t offset_in_library(const void* place) {
  if (image.empty()) return 0;
  return static_cast<size_t>(static_cast<const unsigned char*>(place) - image.front().begin);
}

void check_access(const void* address, size_t bytes, bool writes, const void* place) {
  if (!is_running()) return;
  const auto* from = static_cast<const unsigned char*>(address);
  const Position now = position();
  if (from >= now.stack_begin && from + bytes <= now.stack_end) return;
  const bool power = (bytes & (bytes - 1)) == 0 && bytes <= 16;
  if (power && reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail("access not aligned to its size", place);
  for (SharedRegion* region : {&dynamic_region, &static_region}) {
    if (region->range.holds(from, bytes))
      return check_shared(*region, from, bytes, writes, now, place);
  }
  for (Buffer& buffer : buffers) {
    if (buffer.range.holds(from, bytes))
      return check_buffer(buffer, from, bytes, writes, now, place);
  }
  if (from >= dynamic_shared && from < dynamic_shared + kSharedBytes) {
    fail("out-of-bounds access to shared memory", place);
  }
  for (const Range& segment : image) {
    if (!writes && segment.holds(from, bytes)) return;  // constants, and threadIdx and its like
  }
  fail_outside(from, bytes, writes, place);
}

void check_shared_read(const void* address, int bytes, int lane) {
  const auto* from = static_cast<const unsigned char*>(address);
  const void* place = __builtin_return_address(0);
  Position now = position();
  now.thread = warp_thread(lane);
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail("access not aligned to its size", place);
  if (!dynamic_region.range.holds(from, bytes))
    fail("out-of-bounds access to shared memory", place);
  check_shared(dynamic_region, from, bytes, false, now, place);
}

}  // namespace emulator

extern "C" {

void emulator_register(const void* begin, size_t bytes, int writable) {
  const auto* first = static_cast<const unsigned char*>(begin);
  constexpr size_t kTracked = size_t{1} << 26;  // larger ones are only bounds-checked
  emulator::buffers.push_back({{first, first + bytes}, writable != 0, {}});
  if (writable != 0 && bytes <= kTracked) emulator::buffers.back().writers.resize(bytes);
}

void emulator_forget_all() { emulator::buffers.clear(); }

// What -fsanitize=kernel-address calls before every access.
#define EMULATED_ACCESS(size)                                                  \
  void __asan_load##size##_noabort(const void* address) {                      \
    emulator::check_access(address, size, false, __builtin_return_address(0)); \
  }                                                                            \
  void __asan_store##size##_noabort(const void* address) {                     \
    emulator::check_access(address, size, true, __builtin_return_address(0));  \
  }
EMULATED_ACCESS(1)
EMULATED_ACCESS(2)
EMULATED_ACCESS(4)
EMULATED_ACCESS(8)
EMULATED_ACCESS(16)
#undef EMULATED_ACCESS
void __asan_loadN_noabort(const void* address, size_t bytes) {
  emulator::check_access(address, bytes, false, __builtin_return_address(0));
}
void __asan_storeN_noabort(const void* address, size_t bytes) {
  emulator::check_access(address, bytes, true, __builtin_return_address(0));
}
void __asan_handle_no_return() {}

}  // extern "C"
