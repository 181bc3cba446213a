// The pointwise correlation (conv2d_pointwise.h) on mma.sync, for every device since sm_80.
//
// conv2d_pointwise_kernel: one block = kRows pixels x kColumns columns; one warp = kWarpRows x
// kWarpColumns of their sums. Stages of 32 terms go through a ring in shared memory: cp.async fills
// the stages ahead while the warps multiply the oldest. What lies outside of the tensors is filled
// with zeros by the copy.
// Cost: 2 * pixels * columns * channels FLOP; per 32 terms a block loads (kRows + kColumns) * 64
// bytes.
#include "kernels/cuda/conv2d_pointwise.cuh"

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/device_copy.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

namespace {

struct TiledPointwise {
  Pointwise of;
  int64_t column_tiles;
  bool vectors;  // lines of dest can be written 16 bytes at a time
};

template <class T, int kWarpsDown, int kWarpsAcross, int kWarpRowCount, int kWarpColumnCount,
          int kStageCount>
struct PointwiseTile {
  using Element = T;
  static constexpr int kWarpRows = kWarpRowCount, kWarpColumns = kWarpColumnCount;
  static constexpr int kRows = kWarpsDown * kWarpRows, kColumns = kWarpsAcross * kWarpColumns;
  static constexpr int kTerms = 32, kUnits = kTerms / 8;  // a unit is 16 bytes
  static constexpr int kStages = kStageCount;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kRowFragments = kWarpRows / 16, kColumnFragments = kWarpColumns / 8;
  static constexpr int kOutputPitch = kColumns + 8;  // the margin spreads lines over the banks

  // Line by line of 64 bytes; unit u of line r is kept at place u ^ (r / 2 % 4). So any 8
  // neighbouring lines' unit u lie in 8 different sixteenths of the 128 bytes that banks repeat
  // after.
  struct Stage {
    T source[kRows * kTerms], weight[kColumns * kTerms];
  };
  union Shared {
    Stage stages[kStages];
    T output[kRows * kOutputPitch];
  };
};

__device__ __forceinline__ int swizzled_place(int line, int unit) {
  return line * 32 + (unit ^ (line / 2 % 4)) * 8;
}

// Queues the copy of kLines lines' terms [term, term + 32); lines from `count` on, and terms from
// `channels` on, are zeros.
template <class TileType, int kLines>
__device__ __forceinline__ void queue_lines(typename TileType::Element* to,
                                            const typename TileType::Element* from,
                                            int64_t line_step, int64_t count, int64_t term,
                                            int64_t channels) {
  constexpr int kUnits = TileType::kUnits, kAll = kLines * kUnits;
  static_assert(kAll % TileType::kThreads == 0, "every thread copies equally many units");
#pragma unroll
  for (int i = 0; i < kAll / TileType::kThreads; ++i) {
    const int index = i * TileType::kThreads + static_cast<int>(threadIdx.x);
    const int line = index / kUnits, unit = index % kUnits;
    const bool inside = line < count && term + unit * 8 < channels;
    const auto* source = inside ? from + line * line_step + term + unit * 8 : from;
    copy_async<16>(to + swizzled_place(line, unit), source, inside ? 16 : 0);
  }
}

template <class TileType>
struct Fragments {
  using T = typename TileType::Element;
  float sums[TileType::kRowFragments][TileType::kColumnFragments][4] = {};
  int first_row, first_column, lane;  // of the warp in the tile

  __device__ __forceinline__ Fragments() {
    constexpr int kAcross = TileType::kColumns / TileType::kWarpColumns;
    const int warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    first_row = warp / kAcross * TileType::kWarpRows;
    first_column = warp % kAcross * TileType::kWarpColumns;
  }

  __device__ __forceinline__ void multiply(const typename TileType::Stage& stage) {
    const int eighth = lane / 8, line = lane % 8;
#pragma unroll
    for (int step = 0; step < TileType::kUnits; step += 2) {
      uint32_t left[TileType::kRowFragments][4], right[TileType::kColumnFragments / 2][4];
#pragma unroll
      for (int i = 0; i < TileType::kRowFragments; ++i) {
        load_matrices(left[i],
                      stage.source + swizzled_place(first_row + i * 16 + eighth % 2 * 8 + line,
                                                    step + eighth / 2));
      }
#pragma unroll
      for (int j = 0; j < TileType::kColumnFragments / 2; ++j) {
        load_matrices(right[j],
                      stage.weight + swizzled_place(first_column + j * 16 + eighth / 2 * 8 + line,
                                                    step + eighth % 2));
      }
#pragma unroll
      for (int i = 0; i < TileType::kRowFragments; ++i) {
#pragma unroll
        for (int j = 0; j < TileType::kColumnFragments; ++j) {
          multiply_add_16x8x16(sums[i][j], left[i], right[j / 2][j % 2 * 2],
                               right[j / 2][j % 2 * 2 + 1], T(0));
        }
      }
    }
  }

  // Adds the bias, rounds once, and lays the sums out line by line.
  __device__ __forceinline__ void store(T* output, const Pointwise& of, int64_t tile_column) const {
#pragma unroll
    for (int j = 0; j < TileType::kColumnFragments; ++j) {
      const int column = first_column + j * 8 + lane % 4 * 2;
      const BiasPair bias(of, tile_column + column, T());
#pragma unroll
      for (int i = 0; i < TileType::kRowFragments * 2; ++i) {
        const int row = first_row + i * 8 + lane / 4;
        const float* pair = sums[i / 2][j] + i % 2 * 2;
        store_pair(output + row * TileType::kOutputPitch + column, pair[0] + bias.first,
                   pair[1] + bias.second);
      }
    }
  }
};

template <class TileType>
__device__ __forceinline__ void write_lines(const TiledPointwise& tiled,
                                            const typename TileType::Element* output,
                                            typename TileType::Element* dest, int64_t rows,
                                            int64_t columns) {
  using T = typename TileType::Element;
  const int step = tiled.vectors ? 8 : 1, units = TileType::kColumns / step;
  for (int i = threadIdx.x; i < TileType::kRows * units; i += TileType::kThreads) {
    const int row = i / units, column = i % units * step;
    if (row >= rows || column >= columns) continue;
    const T* from = output + row * TileType::kOutputPitch + column;
    T* to = dest + row * tiled.of.dest_line + column;
    if (tiled.vectors) {
      store_vector(to, load_vector<T, 8>(from));
    } else {
      *to = *from;
    }
  }
}

template <class TileType>
__global__ void __launch_bounds__(TileType::kThreads)
    conv2d_pointwise_kernel(const TiledPointwise tiled) {
  using T = typename TileType::Element;
  auto& shared = *reinterpret_cast<typename TileType::Shared*>(dynamic_shared_memory());

  // Which tile; neighbouring blocks share their pixels
  const Pointwise& of = tiled.of;
  const int64_t first_row = blockIdx.x / tiled.column_tiles * TileType::kRows;
  const int64_t first_column = blockIdx.x % tiled.column_tiles * TileType::kColumns;
  const int64_t rows = of.pixels - first_row, columns = of.columns - first_column;
  const T* source = static_cast<const T*>(of.source) + first_row * of.source_line;
  const T* weight = static_cast<const T*>(of.weight) + first_column * of.weight_line;
  const auto queue = [&](int64_t stage) {
    if (stage * TileType::kTerms < of.channels) {
      auto& to = shared.stages[stage % TileType::kStages];
      const int64_t term = stage * TileType::kTerms;
      queue_lines<TileType, TileType::kRows>(to.source, source, of.source_line, rows, term,
                                             of.channels);
      queue_lines<TileType, TileType::kColumns>(to.weight, weight, of.weight_line, columns, term,
                                                of.channels);
    }
    commit_copies();  // also of nothing, so that stages can be counted by groups
  };

  // Fill the ring but for one place
#pragma unroll
  for (int stage = 0; stage < TileType::kStages - 1; ++stage) queue(stage);

  // Multiply a stage; the place of the one before is free for the next copy
  Fragments<TileType> fragments;
  const int64_t stages = (of.channels + TileType::kTerms - 1) / TileType::kTerms;
  for (int64_t stage = 0; stage < stages; ++stage) {
    wait_copies<TileType::kStages - 2>();
    __syncthreads();
    queue(stage + TileType::kStages - 1);
    fragments.multiply(shared.stages[stage % TileType::kStages]);
  }

  // Through shared memory, so that neighbouring threads write neighbouring bytes. No copy is on its
  // way: all stages were waited for
  __syncthreads();
  fragments.store(shared.output, of, first_column);
  __syncthreads();
  write_lines<TileType>(tiled, shared.output,
                        static_cast<T*>(of.dest) + first_row * of.dest_line + first_column, rows,
                        columns);
}

template <class TileType>
int64_t tiles_of(TiledPointwise& tiled) {
  tiled.column_tiles = (tiled.of.columns + TileType::kColumns - 1) / TileType::kColumns;
  return (tiled.of.pixels + TileType::kRows - 1) / TileType::kRows * tiled.column_tiles;
}

template <class TileType>
const char* launch_tiles(TiledPointwise& tiled, void* stream) {
  const int64_t blocks = tiles_of<TileType>(tiled);
  return launch(conv2d_pointwise_kernel<TileType>, blocks, TileType::kThreads,
                sizeof(typename TileType::Shared), stream, tiled);
}

constexpr int64_t kEnoughBlocks = 128;  // about one per multiprocessor of an A100

template <class T>
const char* choose_tile(TiledPointwise& tiled, void* stream) {
  using Large = PointwiseTile<T, 2, 4, 64, 32, 4>;
  using Small = PointwiseTile<T, 2, 2, 32, 32, 4>;
  if (tiles_of<Large>(tiled) >= kEnoughBlocks && tiled.of.columns > Small::kColumns)
    return launch_tiles<Large>(tiled, stream);
  return launch_tiles<Small>(tiled, stream);
}

}  // namespace

const char* correlate_pointwise(DType dtype, const Pointwise& pointwise, void* stream) {
  TiledPointwise tiled{};
  tiled.of = pointwise;
  tiled.vectors = pointwise.columns % 8 == 0 && pointwise.dest_line % 8 == 0 &&
                  reinterpret_cast<uintptr_t>(pointwise.dest) % 16 == 0;
  if (dtype == DType::kFloat16) return choose_tile<__half>(tiled, stream);
  return choose_tile<__nv_bfloat16>(tiled, stream);
}

}  // namespace cuda
}  // namespace fastconv
