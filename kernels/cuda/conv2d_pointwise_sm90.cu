// The pointwise correlation (conv2d_pointwise.h) on Hopper's own instructions: tensor copies bring
// the factors, wgmma multiplies them.
//
// conv2d_pointwise_sm90_kernel: as many blocks as multiprocessors, each walks over tiles of 128
// pixels x kColumns columns. Three warpgroups: one thread of the first queues tensor copies into a
// ring of stages of 64 terms, ahead of the other two, which multiply 64 pixels each. Two mbarriers
// per stage go round: `full`, when its bytes have come; `empty`, when every warp has multiplied. The
// results go through shared memory to a tensor copy, which the next tile's products overlap.
// What lies outside of the tensors arrives as zeros, and is not stored.
// Cost: 2 * pixels * columns * channels FLOP, rounded up to whole tiles; per 64 terms a block loads
// (128 + kColumns) * 128 bytes.
#include "kernels/cuda/conv2d_pointwise.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/device_barrier.cuh"
#include "kernels/cuda/device_copy.cuh"
#include "kernels/cuda/device_wgmma.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matrix_descriptor.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/tensor_map.h"

namespace fastconv {
namespace cuda {

namespace {

constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kConsumers = 2;       // warpgroups that multiply
constexpr int kBlockThreads = kGroupThreads * (1 + kConsumers);
constexpr int kGroupRows = 64;  // pixels of one consumer: wgmma's m64
constexpr int kTileRows = kGroupRows * kConsumers;
constexpr int kLine = 64;  // elements of one line of 128 bytes, the swizzle's span

template <class T, int kColumnCount, int kStageCount>
struct Sm90Tile {
  using Element = T;
  static constexpr int kColumns = kColumnCount;
  static constexpr int kStages = kStageCount;

  // Line by line, as tensor copies with the 128-byte swizzle leave it; eight lines are what it
  // repeats after, so that every array starts at a multiple of 1024 bytes.
  struct Shared {
    T source[kStages][kTileRows * kLine];
    T weight[kStages][kColumns * kLine];
    T output[kConsumers][kColumns / kLine][kGroupRows * kLine];
    uint64_t full[kStages], empty[kStages];
  };
  static_assert(sizeof(Shared) <= 227 * 1024, "more than a block can have");
};

struct Sm90Pointwise {
  CUtensorMap source, weight, dest;
  Pointwise of;
  int64_t tiles;
  int column_tiles, stages;
};

// Which place of the ring, and in which of its rounds: both count on over all tiles of a block.
template <int kStages>
struct RingPlace {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

struct TilePlace {
  int row, column;
  __device__ __forceinline__ TilePlace(const Sm90Pointwise& tiled, int64_t tile, int columns)
      : row(static_cast<int>(tile / tiled.column_tiles) * kTileRows),
        column(static_cast<int>(tile % tiled.column_tiles) * columns) {}
};

// One thread: keeps the ring full.
template <class TileType>
__device__ __forceinline__ void produce(const Sm90Pointwise& tiled,
                                        typename TileType::Shared& shared) {
  RingPlace<TileType::kStages> ring;
  for (int64_t tile = blockIdx.x; tile < tiled.tiles; tile += gridDim.x) {
    const TilePlace place(tiled, tile, TileType::kColumns);
    for (int stage = 0; stage < tiled.stages; ++stage) {
      uint64_t* full = &shared.full[ring.stage];
      wait_for_phase(&shared.empty[ring.stage], ring.parity ^ 1);
      arrive_and_expect(full, sizeof(shared.source[0]) + sizeof(shared.weight[0]));
      load_tile(shared.source[ring.stage], &tiled.source, full, stage * kLine, place.row);
      load_tile(shared.weight[ring.stage], &tiled.weight, full, stage * kLine, place.column);
      ring.advance();
    }
  }
}

// Adds the bias, rounds once, and lays 64 columns after 64 columns out as the copy wants it:
// 16-byte unit u of line r at place u ^ r % 8. Neighbouring threads' units lie in different banks.
template <class TileType>
__device__ __forceinline__ void lay_out(
    WarpgroupSums<TileType::kColumns>& sums,
    typename TileType::Element (&output)[TileType::kColumns / kLine][kGroupRows * kLine],
    const Pointwise& of, int first_column) {
  using T = typename TileType::Element;
  const int thread = threadIdx.x % kGroupThreads, lane = thread % 32;
  const int first_row = thread / 32 * 16 + lane / 4;
#pragma unroll
  for (int unit = 0; unit < TileType::kColumns / 8; ++unit) {
    const BiasPair bias(of, int64_t{first_column} + unit * 8 + lane % 4 * 2, T());
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8;
      T* to = output[unit / 8] + row * kLine + (unit % 8 ^ row % 8) * 8 + lane % 4 * 2;
      store_pair(to, sums[unit * 4 + half * 2] + bias.first,
                 sums[unit * 4 + half * 2 + 1] + bias.second);
    }
  }
}

// A warpgroup: multiplies its 64 pixels of every stage.
template <class TileType>
__device__ __forceinline__ void consume(const Sm90Pointwise& tiled,
                                        typename TileType::Shared& shared, int consumer) {
  using T = typename TileType::Element;
  constexpr int kProductTerms = 16;
  constexpr uint32_t kStride = 8 * kLine * 2;  // bytes from eight lines to the next
  const bool first_thread = threadIdx.x % kGroupThreads == 0, first_lane = threadIdx.x % 32 == 0;
  RingPlace<TileType::kStages> ring, behind;
  for (int64_t tile = blockIdx.x; tile < tiled.tiles; tile += gridDim.x) {
    const TilePlace place(tiled, tile, TileType::kColumns);

    // While one stage is multiplied, the next one is queued; a stage is free one stage later
    WarpgroupSums<TileType::kColumns> sums;
    for (int stage = 0; stage < tiled.stages; ++stage) {
      wait_for_phase(&shared.full[ring.stage], ring.parity);
      const uint64_t source =
          matrix_descriptor(shared.source[ring.stage] + consumer * kGroupRows * kLine, 16, kStride,
                            Swizzle::k128Bytes);
      const uint64_t weight =
          matrix_descriptor(shared.weight[ring.stage], 16, kStride, Swizzle::k128Bytes);
      fence_products();
#pragma unroll
      for (int term = 0; term < kLine; term += kProductTerms) {
        multiply_add_warpgroup<T>(sums, advanced(source, term * 2), advanced(weight, term * 2),
                                  stage > 0 || term > 0);
      }
      commit_products();
      ring.advance();
      if (stage == 0) continue;
      wait_products<1>();
      if (first_lane) arrive(&shared.empty[behind.stage]);
      behind.advance();
    }
    wait_products<0>(sums);
    if (first_lane) arrive(&shared.empty[behind.stage]);
    behind.advance();

    // Out, when the last tile has left shared memory
    if (first_thread) wait_stores_read<0>();
    synchronise_threads(1 + consumer, kGroupThreads);
    lay_out<TileType>(sums, shared.output[consumer], tiled.of, place.column);
    fence_asynchronous_proxy();
    synchronise_threads(1 + consumer, kGroupThreads);
    if (!first_thread) continue;
    for (int part = 0; part < TileType::kColumns / kLine; ++part) {
      const int column = place.column + part * kLine;
      if (column >= tiled.of.columns) break;
      store_tile(&tiled.dest, shared.output[consumer][part], column,
                 place.row + consumer * kGroupRows);
    }
    commit_stores();
  }
  if (first_thread) wait_stores_read<0>();
}

template <class TileType>
__device__ __forceinline__ void run(const Sm90Pointwise& tiled) {
  auto& shared = *reinterpret_cast<typename TileType::Shared*>(swizzled_shared_memory());
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < TileType::kStages; ++stage) {
      initialise_barrier(&shared.full[stage], 1);
      initialise_barrier(&shared.empty[stage], kConsumers * kGroupThreads / 32);
    }
    fence_barrier_initialisation();
    for (const CUtensorMap* map : {&tiled.source, &tiled.weight, &tiled.dest})
      prefetch_tensor_map(map);
  }
  __syncthreads();
  const int group = threadIdx.x / kGroupThreads;
  if (group == 0) {
    give_registers<40>();
    if (threadIdx.x < 32 && elect_lane()) produce<TileType>(tiled, shared);
  } else {
    take_registers<232>();
    consume<TileType>(tiled, shared, group - 1);
  }
}

// Where the instructions are missing the kernel is empty, and says so by the size of its block:
// a launch of kBlockThreads cannot succeed.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int kImageThreads = 32;
#else
constexpr int kImageThreads = kBlockThreads;
#endif

template <class TileType>
__global__ void __launch_bounds__(kImageThreads, 1)
    conv2d_pointwise_sm90_kernel(const __grid_constant__ Sm90Pointwise tiled) {
  if constexpr (kImageThreads == kBlockThreads) run<TileType>(tiled);
}

// Is the present device of compute capability 9.0, and does this build hold its instructions?
template <class TileType>
bool is_for_this_device(int& multiprocessors) {
  int device = 0, major = 0, minor = 0;
  cudaFuncAttributes attributes{};
  const bool known =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) ==
          cudaSuccess &&
      major == 9 && minor == 0 &&
      cudaFuncGetAttributes(&attributes, conv2d_pointwise_sm90_kernel<TileType>) == cudaSuccess;
  if (!known) cudaGetLastError();  // takes an error off the thread
  return known && attributes.maxThreadsPerBlock >= kBlockThreads;
}

const char* make_map(CUtensorMap& map, DType dtype, const void* data, int64_t lines, int64_t line,
                     int64_t extent, int box_lines) {
  TiledTensor tensor{};
  tensor.dtype = dtype, tensor.data = const_cast<void*>(data), tensor.rank = 2;
  tensor.extents[0] = extent, tensor.extents[1] = lines;
  tensor.strides[0] = line * 2;
  tensor.box[0] = kLine, tensor.box[1] = box_lines;
  tensor.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  return make_tensor_map(map, tensor);
}

template <class TileType>
bool launch_sm90(DType dtype, const Pointwise& of, void* stream, const char*& error) {
  int multiprocessors = 0;
  if (!is_for_this_device<TileType>(multiprocessors)) return false;
  Sm90Pointwise tiled{};
  tiled.of = of;
  if (make_map(tiled.source, dtype, of.source, of.pixels, of.source_line, of.channels, kTileRows) ||
      make_map(tiled.weight, dtype, of.weight, of.columns, of.weight_line, of.channels,
               TileType::kColumns) ||
      make_map(tiled.dest, dtype, of.dest, of.pixels, of.dest_line, of.columns, kGroupRows)) {
    return false;
  }
  tiled.column_tiles = static_cast<int>((of.columns + TileType::kColumns - 1) / TileType::kColumns);
  tiled.stages = static_cast<int>((of.channels + kLine - 1) / kLine);
  tiled.tiles = (of.pixels + kTileRows - 1) / kTileRows * tiled.column_tiles;
  const int64_t blocks = tiled.tiles < multiprocessors ? tiled.tiles : multiprocessors;
  error = launch(conv2d_pointwise_sm90_kernel<TileType>, blocks, kBlockThreads,
                 sizeof(typename TileType::Shared), stream, tiled);
  return true;
}

// Wide tiles load fewer bytes per product, where there are enough of them.
template <class T>
bool choose_tile(DType dtype, const Pointwise& of, void* stream, const char*& error) {
  constexpr int64_t kEnoughTiles = 132;  // the multiprocessors of an H100
  const int64_t row_tiles = (of.pixels + kTileRows - 1) / kTileRows;
  if (of.columns > 128 && row_tiles * ((of.columns + 255) / 256) >= kEnoughTiles)
    return launch_sm90<Sm90Tile<T, 256, 3>>(dtype, of, stream, error);
  if (of.columns > 64) return launch_sm90<Sm90Tile<T, 128, 5>>(dtype, of, stream, error);
  return launch_sm90<Sm90Tile<T, 64, 6>>(dtype, of, stream, error);
}

}  // namespace

bool correlate_pointwise_sm90(DType dtype, const Pointwise& of, void* stream, const char*& error) {
  // What tensor copies can reach: 31-bit coordinates, strides below 2^40 bytes, lines of the result
  // that start at multiples of 16 bytes
  const auto reached = [](int64_t line) { return line % 8 == 0 && line < int64_t{1} << 39; };
  constexpr int64_t kCoordinates = int64_t{1} << 30;
  if (of.pixels >= kCoordinates || of.channels >= kCoordinates || of.columns >= kCoordinates ||
      !reached(of.source_line) || !reached(of.weight_line) || !reached(of.dest_line) ||
      reinterpret_cast<uintptr_t>(of.dest) % 16 != 0) {
    return false;
  }
  if (dtype == DType::kFloat16) return choose_tile<__half>(dtype, of, stream, error);
  return choose_tile<__nv_bfloat16>(dtype, of, stream, error);
}

}  // namespace cuda
}  // namespace fastconv
