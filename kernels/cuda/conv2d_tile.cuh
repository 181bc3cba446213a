// The matrix product that every tiled convolution is: a block computes kRows x kColumns sums, stage
// by stage of kStage terms, from two operands in shared memory.
//
//   sum[row, column] = sum over terms of left[row, term] * right[column, term]
//
// One warp = 32 x 32 sums over a kSplits-th of the terms of each stage; one lane = 32 of these
// sums. The warps of the other splits are added at the end, in order, through shared memory.
// float32 and float64 use fused multiply-adds; float16 and bfloat16 use the tensor cores with
// float32 sums.
// Cost: kRows * kColumns * kStage products per (kRows + kColumns) * kStage elements loaded.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kWarpTile = 32;  // rows and columns of one warp
constexpr int kLaneSums = kWarpTile * kWarpTile / kWarp;
constexpr int64_t kNowhere = INT64_MIN;  // an offset that is not stored to

// One operand of one stage in shared memory. kTermsInner: [row][term], what ldmatrix takes as it
// is; else [term][row]. The padding of one vector per line keeps the eight 16-byte lines of an
// ldmatrix in different banks.
template <class T, int kExtent, int kStage, bool kTermsInner>
struct Operand {
  static constexpr int kLanes = kVectorLanes<T>;
  static constexpr int kPitch = (kTermsInner ? kStage : kExtent) + kLanes;

  T elements[(kTermsInner ? kExtent : kStage) * kPitch];

  __device__ __forceinline__ T* at(int row, int term) {
    return elements + (kTermsInner ? row * kPitch + term : term * kPitch + row);
  }
  __device__ __forceinline__ void store_terms(int row, int term, const Vector<T, kLanes>& values) {
    if constexpr (kTermsInner) {
      store_vector(at(row, term), values);
    } else {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) *at(row, term + lane) = values.lane[lane];
    }
  }
  __device__ __forceinline__ void store_rows(int row, int term, const Vector<T, kLanes>& values) {
    static_assert(!kTermsInner, "rows are neighbours only where terms are not");
    store_vector(at(row, term), values);
  }
};

template <class T, int kWarpRows, int kWarpColumns, int kSplitCount, int kStageTerms,
          bool kTermsInnerWanted>
struct Tile {
  using Element = T;
  using Sum = Wide<T>;
  static constexpr bool kTensorCores = sizeof(T) == 2;
  static constexpr bool kTermsInner = kTermsInnerWanted && kTensorCores;
  static constexpr int kRows = kWarpTile * kWarpRows;
  static constexpr int kColumns = kWarpTile * kWarpColumns;
  static constexpr int kSplits = kSplitCount;
  static constexpr int kStage = kStageTerms;
  static constexpr int kThreads = kWarp * kWarpRows * kWarpColumns * kSplitCount;
  static constexpr int kSplitStage = kStage / kSplits;
  static constexpr int kSumPitch =
      kColumns + 1;  // odd: both directions of the write-out avoid bank conflicts

  struct Stage {
    Operand<T, kRows, kStage, kTermsInner> left;
    Operand<T, kColumns, kStage, kTermsInner> right;
  };
  struct Shared {
    union {
      Stage stages[2];
      Sum sums[kSplits * kRows * kSumPitch];
    };
    int64_t row_offsets[kRows];
    int64_t column_offsets[kColumns];
  };
  static_assert(sizeof(Shared) <= 48 * 1024, "more dynamic shared memory must be asked for");

  // Which part of the tile this warp computes
  int first_row, first_column, split, lane;

  __device__ __forceinline__ Tile() {
    const int warp = threadIdx.x / kWarp;
    lane = threadIdx.x % kWarp;
    first_row = warp % kWarpRows * kWarpTile;
    first_column = warp / kWarpRows % kWarpColumns * kWarpTile;
    split = warp / (kWarpRows * kWarpColumns);
  }

  __device__ __forceinline__ void multiply(Stage& stage, Sum (&sums)[kLaneSums]) const {
#pragma unroll
    for (int step = 0; step < kSplitStage; step += (kTensorCores ? 16 : 1)) {
      if constexpr (kTensorCores) {
        multiply_matrices(stage, split * kSplitStage + step, sums);
      } else {
        multiply_scalars(stage, split * kSplitStage + step, sums);
      }
    }
  }

  // 4 rows x 8 columns per lane; the columns are two groups of four, 16 apart, so that a warp reads
  // 16 neighbours.
  __device__ __forceinline__ void multiply_scalars(Stage& stage, int term,
                                                   Sum (&sums)[kLaneSums]) const {
    constexpr int kLanes = kVectorLanes<T>;
    T left[4], right[8];
#pragma unroll
    for (int i = 0; i < 4; i += kLanes) {
      const auto values = load_vector<T, kLanes>(stage.left.at(first_row + lane / 4 * 4 + i, term));
#pragma unroll
      for (int v = 0; v < kLanes; ++v) left[i + v] = values.lane[v];
    }
#pragma unroll
    for (int j = 0; j < 8; j += kLanes) {
      const auto values = load_vector<T, kLanes>(
          stage.right.at(first_column + j / 4 * 16 + lane % 4 * 4 + j % 4, term));
#pragma unroll
      for (int v = 0; v < kLanes; ++v) right[j + v] = values.lane[v];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[i * 8 + j] += left[i] * right[j];
    }
  }

  // Two 16-row and four 8-column fragments of 16 terms.
  __device__ __forceinline__ void multiply_matrices(Stage& stage, int term,
                                                    Sum (&sums)[kLaneSums]) const {
    uint32_t left[2][4], right[2][4];
    const int eighth = lane / 8;  // which of the four 8x8 tiles this lane's address belongs to
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row + i * 16, column = first_column + i * 16;
      if constexpr (kTermsInner) {
        load_matrices(left[i],
                      stage.left.at(row + eighth % 2 * 8 + lane % 8, term + eighth / 2 * 8));
        load_matrices(right[i],
                      stage.right.at(column + eighth / 2 * 8 + lane % 8, term + eighth % 2 * 8));
      } else {
        load_matrices_transposed(
            left[i], stage.left.at(row + eighth % 2 * 8, term + eighth / 2 * 8 + lane % 8));
        load_matrices_transposed(
            right[i], stage.right.at(column + eighth / 2 * 8, term + eighth % 2 * 8 + lane % 8));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        multiply_add_16x8x16(sums + (i * 4 + j) * 4, left[i], right[j / 2][j % 2 * 2],
                             right[j / 2][j % 2 * 2 + 1], T(0));
      }
    }
  }

  // Where the lane's sum number i lies in the tile.
  __device__ __forceinline__ int row_of(int i) const {
    if constexpr (kTensorCores) return first_row + i / 16 * 16 + i / 2 % 2 * 8 + lane / 4;
    return first_row + lane / 4 * 4 + i / 8;
  }
  __device__ __forceinline__ int column_of(int i) const {
    if constexpr (kTensorCores) return first_column + i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
    return first_column + i % 8 / 4 * 16 + lane % 4 * 4 + i % 4;
  }
};

// The sum of all splits of one element, in order.
template <class TileType>
__device__ __forceinline__ typename TileType::Sum total_of(const typename TileType::Shared& shared,
                                                           int row, int column) {
  typename TileType::Sum total = shared.sums[row * TileType::kSumPitch + column];
#pragma unroll
  for (int split = 1; split < TileType::kSplits; ++split) {
    total += shared.sums[(split * TileType::kRows + row) * TileType::kSumPitch + column];
  }
  return total;
}

// How a tile goes back to memory: element (row, column) to dest[row_offsets[row] +
// column_offsets[column]].
struct WriteOut {
  bool columns_first;  // neighbouring threads write neighbouring columns, else neighbouring rows
  bool vectors;        // kLanes columns are 16 aligned bytes; needs columns_first
};

// Sums to shared memory, splits added, bias added, rounded once, stored. All threads of the block
// must call it, past a barrier behind the last multiply: the sums take the memory of the stages.
template <class TileType>
__device__ __forceinline__ void write_tile(const TileType& tile, typename TileType::Shared& shared,
                                           const typename TileType::Sum (&sums)[kLaneSums],
                                           const WriteOut& how,
                                           const typename TileType::Element* bias,
                                           int64_t bias_stride, typename TileType::Element* dest) {
  using T = typename TileType::Element;
  constexpr int kLanes = kVectorLanes<T>;
#pragma unroll
  for (int i = 0; i < kLaneSums; ++i) {
    shared.sums[(tile.split * TileType::kRows + tile.row_of(i)) * TileType::kSumPitch +
                tile.column_of(i)] = sums[i];
  }
  __syncthreads();

  const auto result = [&](int row, int column) {
    const auto total = total_of<TileType>(shared, row, column);
    return Narrow<T>::from(bias == nullptr ? total : total + widen(bias[column * bias_stride]));
  };
  const int step = how.vectors ? kLanes : 1;
  for (int i = threadIdx.x * step; i < TileType::kRows * TileType::kColumns;
       i += TileType::kThreads * step) {
    const int row = how.columns_first ? i / TileType::kColumns : i % TileType::kRows;
    const int column = how.columns_first ? i % TileType::kColumns : i / TileType::kRows;
    const int64_t row_offset = shared.row_offsets[row],
                  column_offset = shared.column_offsets[column];
    if (row_offset == kNowhere || column_offset == kNowhere) continue;
    T* to = dest + row_offset + column_offset;
    if (!how.vectors) {
      *to = result(row, column);
      continue;
    }
    Vector<T, kLanes> values;
#pragma unroll
    for (int v = 0; v < kLanes; ++v) values.lane[v] = result(row, column + v);
    store_vector(to, values);
  }
}

}  // namespace cuda
}  // namespace fastconv
