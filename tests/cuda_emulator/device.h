// The instructions that include/kernels/cuda/*.cuh hand to the emulator. Those that can fail are
// called from functions that are always inlined, so that the return address is the kernel's.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace emulator {

unsigned char* shared_memory();
const void* collective_place();

struct MatrixLoad {
  uint32_t* values;
  const void* row;
  bool transposed;
};
void load_matrices(void* const (&lanes)[32], unsigned mask);

struct MatrixProduct {
  float* sum;
  uint32_t a[4], b[2];
  float (*widen)(uint16_t);
};
void multiply_add(void* const (&lanes)[32], unsigned mask);

constexpr unsigned kAllLanes = 0xffffffffu;
inline void meet_lanes(void* const (&)[32], unsigned) {}  // of an instruction of whole warps

void named_barrier(int id, int threads);
void arrive_at_counter(unsigned* counter);
void wait_for_counter(const unsigned* counter, unsigned least);

void copy_async(void* shared, const void* global, int bytes, int source_bytes);
void commit_copies();
void wait_copies(int most);

void initialise_barrier(void* at, unsigned arrivals);
void fence_barrier_initialisation();
void fence_proxies();
void arrive_at_barrier(void* at, int64_t expected_bytes);
void wait_for_barrier(void* at, unsigned parity);

void load_bulk(void* shared, const void* global, unsigned bytes, void* barrier);
void store_bulk(void* global, const void* shared, unsigned bytes);
void commit_stores();
void wait_stores(int most);

// Tensor copies (tensor_map.cpp); coordinates of the innermost axis first.
void load_tile(void* shared, const CUtensorMap* map, void* barrier, int rank, const int* at);
void load_im2col(void* shared, const CUtensorMap* map, void* barrier, const int (&at)[4],
                 const uint16_t (&offsets)[2]);
void store_tile(const CUtensorMap* map, const void* shared, int rank, const int* at);

// wgmma (warpgroup.cpp). What one thread hands in, and what becomes of its sums.
struct SumsState {
  uint32_t needed_fence = 1;  // the number of the wgmma.fence that must lie before the next product
  uint32_t group = 0;         // the group of products that writes them last
};
struct GroupProduct {
  float* sums;
  SumsState* state;
  int columns;
  bool a_in_registers;
  uint32_t a[4];
  uint64_t a_descriptor, b_descriptor;
  bool a_transposed, b_transposed;  // rows, columns are neighbours, not terms
  bool accumulate;
  float (*widen)(uint16_t);
};
using GroupWork = void (*)(void* const (&threads)[128], const void* place);
void warpgroup_collective(GroupWork work, void* operands, const void* place);
void multiply_add_group(GroupProduct& product);
void touch_sums(SumsState& state);
void fence_products();
void commit_products();
void wait_products(int most);
void set_registers(int count, bool more);

}  // namespace emulator
