// wgmma: products of a warpgroup, from shared memory by descriptors, by the PTX manual's section
// "Asynchronous warpgroup-level matrix instructions" (matrix descriptor, canonical layouts).
#include <cuda_runtime.h>

#include <cstring>
#include <vector>

#include "asynchronous.h"
#include "device.h"

namespace emulator {

namespace {

constexpr int kRows = 64, kTerms = 16, kWarps = 4;

struct Descriptor {
  size_t start, leading, stride;
  unsigned swizzle;  // 0 none, 1 32 B, 2 64 B, 3 128 B: the number of address bits exchanged
};

Descriptor decode(uint64_t bits, const void* place) {
  const auto field = [&](int first) { return static_cast<size_t>(bits >> first & 0x3FFF) << 4; };
  if ((bits & ~(uint64_t{3} << 62 | 0x3FFF | uint64_t{0x3FFF} << 16 | uint64_t{0x3FFF} << 32)) != 0)
    fail("wgmma: bits of the matrix descriptor that must be zero are not", place);
  const unsigned mode = bits >> 62, swizzle = mode == 0 ? 0 : 4 - mode;
  if ((field(0) >> 7 & ((1u << swizzle) - 1)) != 0)  // the base offset, bits 49-51, is always 0
    fail("wgmma: the matrix does not start where its swizzle does", place);
  return {field(0), field(16), field(32), swizzle};
}

// Where the 16 bytes lie that hold 8 neighbours along the contiguous axis: unit `unit` of them, at
// `other` along the other axis. Terms contiguous: unit of terms, row; else unit of rows, term.
size_t offset_of(const Descriptor& of, bool transposed, int unit, int other) {
  const size_t width = size_t{1} << of.swizzle;  // units of one line of the swizzle's span
  size_t offset;
  if (!transposed) {
    offset = other % 8 * width * 16 + other / 8 * of.stride +
             (of.swizzle == 0 ? unit * of.leading : unit * size_t{16});
  } else if (of.swizzle == 0) {
    offset = other % 8 * size_t{16} + other / 8 * of.leading + unit * of.stride;
  } else {
    offset = unit % width * 16 + unit / width * of.leading + other % 8 * width * 16 +
             other / 8 * of.stride;
  }
  const size_t address = of.start + offset;
  return address ^ ((address >> 7 & (width - 1)) << 4);
}

struct Reader {
  int first_thread;     // of the warpgroup
  int engines[kWarps];  // a warp's products end when that warp waits for them, no other's
  uint32_t group;
  const void* place;

  void read(size_t offset, int first_warp, int warps, uint16_t (&to)[8]) const {
    const unsigned char* from = shared_memory() + offset;
    for (int warp = first_warp; warp < first_warp + warps; ++warp) {
      check_engine_read(from, 16, first_thread + warp * 32, place);
      note_engine_read(from, 16, engines[warp], group);
    }
    std::memcpy(to, from, 16);
  }

  // elements[i][term] for i in [0, extent); rows of A are read by the warp that they belong to.
  void read_matrix(uint64_t bits, bool transposed, int extent, bool by_rows,
                   std::vector<uint16_t>& elements) const {
    const Descriptor descriptor = decode(bits, place);
    elements.resize(extent * kTerms);
    const int units = (transposed ? extent : kTerms) / 8, others = transposed ? kTerms : extent;
    for (int unit = 0; unit < units; ++unit) {
      for (int other = 0; other < others; ++other) {
        const int row = transposed ? unit * 8 : other;
        uint16_t values[8];
        read(offset_of(descriptor, transposed, unit, other), by_rows ? row / 16 : 0,
             by_rows ? 1 : kWarps, values);
        for (int i = 0; i < 8; ++i) {
          const int index =
              transposed ? (unit * 8 + i) * kTerms + other : other * kTerms + unit * 8 + i;
          elements[index] = values[i];
        }
      }
    }
  }
};

// The fragment of a warp's 16 rows, as of mma.m16n8k16.
void gather_registers(void* const (&threads)[128], std::vector<uint16_t>& elements) {
  elements.resize(kRows * kTerms);
  for (int thread = 0; thread < 128; ++thread) {
    const auto& a = static_cast<const GroupProduct*>(threads[thread])->a;
    const int lane = thread % 32, row = thread / 32 * 16 + lane / 4, term = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      uint16_t* to = &elements[(row + i % 2 * 8) * kTerms + term + i / 2 * 8];
      to[0] = static_cast<uint16_t>(a[i]), to[1] = static_cast<uint16_t>(a[i] >> 16);
    }
  }
}

std::vector<float> widened(const std::vector<uint16_t>& elements, float (*widen)(uint16_t)) {
  std::vector<float> values(elements.size());
  for (size_t i = 0; i < elements.size(); ++i) values[i] = widen(elements[i]);
  return values;
}

void check_agreement(void* const (&threads)[128], const void* place) {
  const auto& first = *static_cast<const GroupProduct*>(threads[0]);
  for (void* const thread : threads) {
    const auto& other = *static_cast<const GroupProduct*>(thread);
    if (other.columns != first.columns || other.a_in_registers != first.a_in_registers ||
        other.b_descriptor != first.b_descriptor || other.accumulate != first.accumulate ||
        (!first.a_in_registers && other.a_descriptor != first.a_descriptor)) {
      fail("wgmma: threads of the warpgroup disagree on the operands", place);
    }
  }
}

void multiply(void* const (&threads)[128], const void* place) {
  check_agreement(threads, place);
  const auto& first = *static_cast<const GroupProduct*>(threads[0]);
  Asynchronous& engines = asynchronous();
  const int first_thread = running_thread() / 128 * 128;
  Reader reader{first_thread, {}, engines.products[first_thread].committed + 1, place};
  for (int warp = 0; warp < kWarps; ++warp) {
    int& engine = engines.product_engines.try_emplace(first_thread / 32 + warp, -1).first->second;
    if (engine < 0) engine = new_engine(place);
    reader.engines[warp] = engine;
  }
  std::vector<uint16_t> a_bits, b_bits;
  if (first.a_in_registers) {
    gather_registers(threads, a_bits);
  } else {
    reader.read_matrix(first.a_descriptor, first.a_transposed, kRows, true, a_bits);
  }
  reader.read_matrix(first.b_descriptor, first.b_transposed, first.columns, false, b_bits);
  const std::vector<float> a = widened(a_bits, first.widen), b = widened(b_bits, first.widen);
  for (int thread = 0; thread < 128; ++thread) {
    const auto& mine = *static_cast<const GroupProduct*>(threads[thread]);
    const int lane = thread % 32;
    for (int i = 0; i < mine.columns / 2; ++i) {
      const float* left = &a[(thread / 32 * 16 + i / 2 % 2 * 8 + lane / 4) * kTerms];
      const float* right = &b[(i / 4 * 8 + lane % 4 * 2 + i % 2) * kTerms];
      float sum = mine.accumulate ? mine.sums[i] : 0.0f;
      for (int term = 0; term < kTerms; ++term) sum += left[term] * right[term];
      mine.sums[i] = sum;
    }
    Products& products = engines.products[first_thread + thread];
    products.engine = reader.engines[thread / 32];
    products.open = true;
    products.place = place;
    mine.state->group = products.committed + 1;
  }
}

}  // namespace

__attribute__((noinline)) void multiply_add_group(GroupProduct& product) {
  const void* place = __builtin_return_address(0);
  if (asynchronous().register_fences[running_thread()] < product.state->needed_fence)
    fail("missing wgmma.fence between an access to the sums' registers and wgmma", place);
  warpgroup_collective(multiply, &product, place);
}

__attribute__((noinline)) void touch_sums(SumsState& state) {
  if (!is_running()) return;
  const Products& products = asynchronous().products[running_thread()];
  if (state.group > products.finished)
    fail("touches sums of wgmma before wgmma.wait_group", __builtin_return_address(0));
  state.needed_fence = asynchronous().register_fences[running_thread()] + 1;
}

void fence_products() {
  position().order->use();
  ++asynchronous().register_fences[running_thread()];
}

void commit_products() {
  Products& products = asynchronous().products[running_thread()];
  ++products.committed;
  products.open = false;
}

void wait_products(int most) {
  Products& products = asynchronous().products[running_thread()];
  if (products.committed <= static_cast<uint32_t>(most)) return;
  products.finished = products.committed - static_cast<uint32_t>(most);
  if (products.engine >= 0)
    position().order->learn(running_thread(), products.engine, products.finished);
}

// Registers per thread of every warp together must fit the multiprocessor's 64 Ki; a launch gives
// every warp equally many, which only the compiler knows, so that the warps that spoke are counted.
__attribute__((noinline)) void set_registers(int count, bool more) {
  const void* place = __builtin_return_address(0);
  if (count < 24 || count > 256 || count % 8 != 0)
    fail("setmaxnreg: expected a multiple of 8 from 24 to 256", place);
  auto& registers = asynchronous().registers;
  registers[running_thread() / 32] = {count, place};
  int all = 0;
  for (const auto& [warp, held] : registers) all += held.count * 32;
  if (more && all > 64 * 1024) fail("setmaxnreg: more than the 64 Ki registers there are", place);
}

}  // namespace emulator
