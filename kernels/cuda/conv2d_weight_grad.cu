// conv2d on CUDA: weight_grad, as one implicit matrix product.
//
//   grad_weight[k, (r,s,c)] = sum over (n,p,q) of grad_output[n,k,p,q] * input[n, g*C/G + c, h, w]
//
// Letters: kernels/conv2d.h.
//
// conv2d_weight_grad_tiled_kernel: one block = a tile of kRows output channels x kColumns of
// (r,s,c) of one group, over all n, p, q: no atomics and no workspace, so the order of every sum is
// fixed. The sum is long and the tiles are few; therefore the warps of a block share the terms of
// every stage (kSplits) and small tiles are preferred.
// Cost: 2 * N*P*Q * K * C/G * R*S FLOP; grad_output is read R*S*C/G / kColumns times, input
// K/G / kRows * R*S times.
#include "kernels/conv2d.h"
#include "kernels/cuda/conv2d_correlation.h"
#include "kernels/cuda/conv2d_gather.cuh"
#include "kernels/cuda/conv2d_tile.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

namespace {

struct TiledWeightGrad {
  Conv2dShape shape;
  const void* grad_output;
  const void* input;
  void* grad_weight;
  int64_t row_tiles, column_tiles;
  bool grad_output_vectors, input_vectors;
  WriteOut write_out;
};

template <class T>
__device__ __forceinline__ Reader<T> grad_output_reader(const TiledWeightGrad& tiled,
                                                        int64_t group) {
  const Conv2dShape& shape = tiled.shape;
  const int64_t* strides = shape.output.s;
  Reader<T> reader;
  reader.channels = static_cast<int>(shape.K / shape.G);
  reader.data = static_cast<const T*>(tiled.grad_output) + group * reader.channels * strides[1];
  reader.along_n = strides[0], reader.along_c = strides[1], reader.along_h = strides[2],
  reader.along_w = strides[3];
  reader.H = static_cast<int>(shape.P), reader.W = static_cast<int>(shape.Q);
  reader.first_h = 0, reader.step_h = 1, reader.move_h = 0;
  reader.first_w = 0, reader.step_w = 1, reader.move_w = 0;
  reader.taps_h = 1, reader.taps_w = 1;
  reader.vectors = tiled.grad_output_vectors;
  return reader;
}

template <class T>
__device__ __forceinline__ Reader<T> input_reader(const TiledWeightGrad& tiled, int64_t group) {
  const Conv2dShape& shape = tiled.shape;
  const Window2d& window = shape.window;
  const int64_t* strides = shape.input.s;
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  Reader<T> reader;
  reader.channels = narrow(shape.C / shape.G);
  reader.data = static_cast<const T*>(tiled.input) + group * reader.channels * strides[1];
  reader.along_n = strides[0], reader.along_c = strides[1], reader.along_h = strides[2],
  reader.along_w = strides[3];
  reader.H = narrow(shape.H), reader.W = narrow(shape.W);
  reader.first_h = -narrow(window.pad_h), reader.step_h = narrow(window.stride_h);
  reader.first_w = -narrow(window.pad_w), reader.step_w = narrow(window.stride_w);
  reader.move_h = narrow(window.dilation_h), reader.move_w = narrow(window.dilation_w);
  reader.taps_h = narrow(window.R), reader.taps_w = narrow(window.S);
  reader.vectors = tiled.input_vectors;
  return reader;
}

template <class TileType>
__device__ __forceinline__ void fill_offsets(const Conv2dShape& shape, int64_t first_row,
                                             int64_t first_column,
                                             typename TileType::Shared& shared) {
  const int thread = threadIdx.x;
  const int64_t* strides = shape.weight.s;
  const int64_t channels = shape.C / shape.G;
  if (thread < TileType::kRows) {
    const int64_t k = first_row + thread;
    shared.row_offsets[thread] = k < shape.K / shape.G ? k * strides[0] : kNowhere;
  }
  if (thread < TileType::kColumns) {
    const int64_t column = first_column + thread;
    const int64_t tap = column / channels;
    const int64_t r = tap / shape.window.S, s = tap % shape.window.S;
    shared.column_offsets[thread] =
        r < shape.window.R ? (column % channels) * strides[1] + r * strides[2] + s * strides[3]
                           : kNowhere;
  }
}

template <class TileType>
__global__ void __launch_bounds__(TileType::kThreads)
    conv2d_weight_grad_tiled_kernel(const TiledWeightGrad tiled) {
  using T = typename TileType::Element;
  constexpr int kLanes = kVectorLanes<T>;
  using RowGather = SpotGather<T, TileType::kRows, TileType::kStage, TileType::kThreads>;
  using ColumnGather = SpotGather<T, TileType::kColumns, TileType::kStage, TileType::kThreads>;
  auto& shared = *reinterpret_cast<typename TileType::Shared*>(dynamic_shared_memory());

  // Which tile
  const Conv2dShape& shape = tiled.shape;
  int64_t block = blockIdx.x;
  const int64_t first_column = block % tiled.column_tiles * TileType::kColumns;
  block /= tiled.column_tiles;
  const int64_t first_row = block % tiled.row_tiles * TileType::kRows;
  const int64_t group = block / tiled.row_tiles;
  fill_offsets<TileType>(shape, first_row, first_column, shared);

  // The first stage
  const Reader<T> rows = grad_output_reader<T>(tiled, group),
                  columns = input_reader<T>(tiled, group);
  const int images = static_cast<int>(shape.N), P = static_cast<int>(shape.P),
            Q = static_cast<int>(shape.Q);
  RowGather row_gather;
  ColumnGather column_gather;
  row_gather.start(rows, static_cast<int>(first_row), P, Q);
  column_gather.start(columns, static_cast<int>(first_column), P, Q);
  Vector<T, kLanes> row_slots[RowGather::kSlots], column_slots[ColumnGather::kSlots];
  row_gather.fetch(rows, images, row_slots);
  column_gather.fetch(columns, images, column_slots);
  row_gather.store(rows, shared.stages[0].left, row_slots);
  column_gather.store(columns, shared.stages[0].right, column_slots);
  __syncthreads();

  // Multiply one stage while the next one is on its way
  const TileType tile;
  typename TileType::Sum sums[kLaneSums] = {};
  const int64_t stages = (shape.N * shape.P * shape.Q + TileType::kStage - 1) / TileType::kStage;
  for (int64_t stage = 0; stage < stages; ++stage) {
    const bool more = stage + 1 < stages;
    if (more) {
      row_gather.advance(P, Q);
      column_gather.advance(P, Q);
      row_gather.fetch(rows, images, row_slots);
      column_gather.fetch(columns, images, column_slots);
    }
    tile.multiply(shared.stages[stage % 2], sums);
    if (more) {
      row_gather.store(rows, shared.stages[(stage + 1) % 2].left, row_slots);
      column_gather.store(columns, shared.stages[(stage + 1) % 2].right, column_slots);
    }
    __syncthreads();
  }

  // Write
  T* grad_weight =
      static_cast<T*>(tiled.grad_weight) + group * (shape.K / shape.G) * shape.weight.s[0];
  write_tile<TileType>(tile, shared, sums, tiled.write_out, static_cast<const T*>(nullptr), 0,
                       grad_weight);
}

template <class T>
struct Tiles {
  using Large = Tile<T, 2, 2, 2, 64 / static_cast<int>(sizeof(T)), false>;
  using Small = Tile<T, 1, 1, 8, sizeof(T) == 2 ? 128 : 32, false>;
};
template <>
struct Tiles<double> {
  using Large = Tile<double, 2, 2, 1, 8, false>;
  using Small = Tile<double, 1, 1, 4, 16, false>;
};

constexpr int64_t kEnoughBlocks =
    128;  // about one per multiprocessor: an A100 has 108, an H100 132

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class TileType>
int64_t lay_tiles(TiledWeightGrad& tiled) {
  const Conv2dShape& shape = tiled.shape;
  tiled.row_tiles = ceil_div(shape.K / shape.G, TileType::kRows);
  tiled.column_tiles =
      ceil_div(shape.C / shape.G * shape.window.R * shape.window.S, TileType::kColumns);
  return tiled.row_tiles * tiled.column_tiles * shape.G;
}

template <class TileType>
const char* launch_tiled(TiledWeightGrad& tiled, void* stream) {
  const int64_t blocks = lay_tiles<TileType>(tiled);
  return launch(conv2d_weight_grad_tiled_kernel<TileType>, blocks, TileType::kThreads,
                sizeof(typename TileType::Shared), stream, tiled);
}

template <class T>
const char* weight_grad_tiled(TiledWeightGrad& tiled, void* stream) {
  constexpr int64_t kLanes = kVectorLanes<T>;
  const Conv2dShape& shape = tiled.shape;
  const int64_t channels = shape.C / shape.G;
  tiled.grad_output_vectors =
      moves_in_vectors(tiled.grad_output, shape.output, 1, shape.K / shape.G, kLanes, sizeof(T));
  tiled.input_vectors = moves_in_vectors(tiled.input, shape.input, 1, channels, kLanes, sizeof(T));
  tiled.write_out.columns_first = shape.weight.s[1] <= shape.weight.s[0];
  tiled.write_out.vectors =
      moves_in_vectors(tiled.grad_weight, shape.weight, 1, channels, kLanes, sizeof(T));
  if (lay_tiles<typename Tiles<T>::Large>(tiled) >= kEnoughBlocks) {
    return launch_tiled<typename Tiles<T>::Large>(tiled, stream);
  }
  return launch_tiled<typename Tiles<T>::Small>(tiled, stream);
}

}  // namespace

const char* conv2d_weight_grad(const Conv2dShape& shape, const void* grad_output, const void* input,
                               void* grad_weight, void* stream) {
  if (!tiles_fit(shape) || groups_are_small(shape)) {
    return weight_grad_direct(shape, grad_output, input, grad_weight, stream);
  }
  TiledWeightGrad tiled{};
  tiled.shape = shape;
  tiled.grad_output = grad_output, tiled.input = input, tiled.grad_weight = grad_weight;
  return with_floating(shape.dtype, [&](auto tag) {
    return weight_grad_tiled<typename decltype(tag)::Type>(tiled, stream);
  });
}

}  // namespace cuda
}  // namespace fastconv
