// conv2d on CUDA: forward and input_grad, as one implicit matrix product.
//
//   sum[(n,i,j), column] = sum over (a,b,c) of source[n, c, h, w] * weight(column, c, r, s)
//
// Letters: kernels/cuda/conv2d_correlation.h, where also the two passes become one correlation. Here
// is chosen who computes it: few channels per group, or extents beyond 32 bits, conv2d_direct.cu;
// one tap on 16-bit pixels with their channels inside, a plain product, conv2d_pointwise*.cu; else
// the kernel below.
//
// conv2d_correlation_tiled_kernel: one block = a tile of kRows spots (n,i,j) of one phase x
// kColumns columns of one group. Nothing is materialised: the threads gather the next stage of both
// operands from the tensors into registers while the block multiplies the current one from shared
// memory, two stages in turn, one barrier per stage.
// Cost: 2 * N*P*Q * K * C/G * R*S FLOP, in both passes; the source is read columns / kColumns * R*S
// times, mostly from L2.
#include "kernels/conv2d.h"

#include "kernels/cuda/conv2d_correlation.h"
#include "kernels/cuda/conv2d_gather.cuh"
#include "kernels/cuda/conv2d_pointwise.h"
#include "kernels/cuda/conv2d_tile.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

namespace {

struct TiledCorrelation {
  Correlation of;
  int64_t row_tiles, column_tiles;  // row tiles of the first phase, which has the most rows
  bool source_vectors, weight_vectors;
  WriteOut write_out;
};

// One block's share: which group, phase and tile.
struct Share {
  int64_t group, first_row, first_column, spots;
  Phase<int> h, w;
};

template <class TileType>
__device__ __forceinline__ Share share_of(const TiledCorrelation& tiled) {
  int64_t block = blockIdx.x;
  Share share;
  share.first_column = block % tiled.column_tiles * TileType::kColumns;
  block /= tiled.column_tiles;
  share.first_row = block % tiled.row_tiles * TileType::kRows;
  block /= tiled.row_tiles;
  const Correlation& of = tiled.of;
  share.w = phase_of<int>(of.w, of.transposed, static_cast<int>(block % of.phases_w));
  block /= of.phases_w;
  share.h = phase_of<int>(of.h, of.transposed, static_cast<int>(block % of.phases_h));
  share.group = block / of.phases_h;
  if (share.h.taps == 0 || share.w.taps == 0)
    share.h.taps = 0, share.w.taps = 1;  // none, and none divides by 0
  share.spots = of.N * share.h.count * share.w.count;
  return share;
}

template <class T>
__device__ __forceinline__ Reader<T> source_reader(const TiledCorrelation& tiled,
                                                   const Share& share) {
  const Correlation& of = tiled.of;
  const int64_t* strides = of.source_strides.s;
  Reader<T> reader;
  reader.data = static_cast<const T*>(of.source) + share.group * of.channels * strides[1];
  reader.along_n = strides[0], reader.along_c = strides[1], reader.along_h = strides[2],
  reader.along_w = strides[3];
  reader.H = static_cast<int>(of.h.source), reader.W = static_cast<int>(of.w.source);
  reader.first_h = share.h.first_source, reader.step_h = share.h.source_step,
  reader.move_h = share.h.source_move;
  reader.first_w = share.w.first_source, reader.step_w = share.w.source_step,
  reader.move_w = share.w.source_move;
  reader.taps_h = share.h.taps, reader.taps_w = share.w.taps,
  reader.channels = static_cast<int>(of.channels);
  reader.vectors = tiled.source_vectors;
  return reader;
}

// The weight as a tensor whose spots are the columns and whose taps always lie inside.
template <class T>
__device__ __forceinline__ Reader<T> weight_reader(const TiledCorrelation& tiled,
                                                   const Share& share) {
  const Correlation& of = tiled.of;
  Reader<T> reader;
  reader.data = static_cast<const T*>(of.weight) + share.group * of.weight_group +
                share.h.first_tap * of.weight_r + share.w.first_tap * of.weight_s;
  reader.along_n = of.weight_column, reader.along_c = of.weight_channel;
  reader.along_h = share.h.tap_step * of.weight_r, reader.along_w = share.w.tap_step * of.weight_s;
  reader.H = share.h.taps, reader.W = share.w.taps;
  reader.first_h = 0, reader.step_h = 0, reader.move_h = 1;
  reader.first_w = 0, reader.step_w = 0, reader.move_w = 1;
  reader.taps_h = share.h.taps, reader.taps_w = share.w.taps,
  reader.channels = static_cast<int>(of.channels);
  reader.vectors = tiled.weight_vectors;
  return reader;
}

template <class TileType>
__device__ __forceinline__ void fill_offsets(const Correlation& of, const Share& share,
                                             typename TileType::Shared& shared) {
  const int thread = threadIdx.x;
  const int64_t* strides = of.dest_strides.s;
  if (thread < TileType::kRows) {
    const int64_t index = share.first_row + thread;
    const SpotPlace spot = spot_at(index < share.spots ? index : 0, share.h.count, share.w.count);
    const int64_t y = share.h.first_dest + int64_t{spot.i} * share.h.dest_step;
    const int64_t x = share.w.first_dest + int64_t{spot.j} * share.w.dest_step;
    shared.row_offsets[thread] =
        index < share.spots ? spot.n * strides[0] + y * strides[2] + x * strides[3] : kNowhere;
  }
  if (thread < TileType::kColumns) {
    const int64_t column = share.first_column + thread;
    shared.column_offsets[thread] = column < of.columns ? column * strides[1] : kNowhere;
  }
}

template <class TileType>
__global__ void __launch_bounds__(TileType::kThreads)
    conv2d_correlation_tiled_kernel(const TiledCorrelation tiled) {
  using T = typename TileType::Element;
  constexpr int kLanes = kVectorLanes<T>;
  using SourceGather = TapGather<T, TileType::kRows, TileType::kStage, TileType::kThreads>;
  using WeightGather = TapGather<T, TileType::kColumns, TileType::kStage, TileType::kThreads>;
  auto& shared = *reinterpret_cast<typename TileType::Shared*>(dynamic_shared_memory());

  // Which tile; later phases may have fewer of them
  const Correlation& of = tiled.of;
  const Share share = share_of<TileType>(tiled);
  if (share.first_row >= share.spots) return;
  fill_offsets<TileType>(of, share, shared);

  // The first stage
  const Reader<T> source = source_reader<T>(tiled, share), weight = weight_reader<T>(tiled, share);
  SourceGather source_gather;
  WeightGather weight_gather;
  source_gather.start(source, share.first_row, share.spots, share.h.count, share.w.count);
  weight_gather.start(weight, share.first_column, of.columns, 1, 1);
  Vector<T, kLanes> source_slots[SourceGather::kSlots], weight_slots[WeightGather::kSlots];
  source_gather.fetch(source, source_slots);
  weight_gather.fetch(weight, weight_slots);
  source_gather.store(source, shared.stages[0].left, source_slots);
  weight_gather.store(weight, shared.stages[0].right, weight_slots);
  __syncthreads();

  // Multiply one stage while the next one is on its way
  const TileType tile;
  typename TileType::Sum sums[kLaneSums] = {};
  const int terms = share.h.taps * share.w.taps * static_cast<int>(of.channels);
  const int stages = (terms + TileType::kStage - 1) / TileType::kStage;
  for (int stage = 0; stage < stages; ++stage) {
    const bool more = stage + 1 < stages;
    if (more) {
      source_gather.advance(source);
      weight_gather.advance(weight);
      source_gather.fetch(source, source_slots);
      weight_gather.fetch(weight, weight_slots);
    }
    tile.multiply(shared.stages[stage % 2], sums);
    if (more) {
      source_gather.store(source, shared.stages[(stage + 1) % 2].left, source_slots);
      weight_gather.store(weight, shared.stages[(stage + 1) % 2].right, weight_slots);
    }
    __syncthreads();
  }

  // Bias and write
  const int64_t first_column = share.group * of.columns;
  const T* bias = of.bias == nullptr ? nullptr
                                     : static_cast<const T*>(of.bias) +
                                           (first_column + share.first_column) * of.bias_stride;
  T* dest = static_cast<T*>(of.dest) + first_column * of.dest_strides.s[1];
  write_tile<TileType>(tile, shared, sums, tiled.write_out, bias, of.bias_stride, dest);
}

// Tiles by element type: large ones need fewer bytes per product, small ones make more blocks of a
// small problem.
template <class T>
struct Tiles {
  using Large = Tile<T, 4, 2, 1, 64 / static_cast<int>(sizeof(T)), true>;
  using Medium = Tile<T, 2, 2, 2, 64 / static_cast<int>(sizeof(T)), true>;
  using Small = Tile<T, 1, 1, 8, sizeof(T) == 2 ? 128 : 32, true>;
};
template <>
struct Tiles<double> {
  using Large = Tile<double, 2, 2, 1, 8, true>;
  using Medium = Large;
  using Small = Tile<double, 1, 1, 4, 16, true>;
};

constexpr int64_t kEnoughBlocks =
    128;  // about one per multiprocessor: an A100 has 108, an H100 132

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Lays tiles over the correlation; returns the number of blocks.
template <class TileType>
int64_t lay_tiles(TiledCorrelation& tiled) {
  const Correlation& of = tiled.of;
  const auto h = phase_of<int64_t>(of.h, of.transposed, 0),
             w = phase_of<int64_t>(of.w, of.transposed, 0);
  tiled.row_tiles = ceil_div(of.N * h.count * w.count, TileType::kRows);
  tiled.column_tiles = ceil_div(of.columns, TileType::kColumns);
  return tiled.row_tiles * tiled.column_tiles * of.phases_h * of.phases_w * of.G;
}

template <class TileType>
const char* launch_tiled(TiledCorrelation& tiled, void* stream) {
  const int64_t blocks = lay_tiles<TileType>(tiled);
  return launch(conv2d_correlation_tiled_kernel<TileType>, blocks, TileType::kThreads,
                sizeof(typename TileType::Shared), stream, tiled);
}

template <class T>
const char* correlate_tiled(const Correlation& correlation, void* stream) {
  constexpr int64_t kLanes = kVectorLanes<T>;
  const Correlation& of = correlation;
  TiledCorrelation tiled{};
  tiled.of = correlation;
  tiled.source_vectors =
      moves_in_vectors(of.source, of.source_strides, 1, of.channels, kLanes, sizeof(T));
  const Strides4 weight_strides{{of.weight_column, of.weight_channel, of.weight_r, of.weight_s}};
  tiled.weight_vectors =
      of.weight_group % kLanes == 0 &&
      moves_in_vectors(of.weight, weight_strides, 1, of.channels, kLanes, sizeof(T));
  tiled.write_out.columns_first = of.dest_strides.s[1] == 1;
  tiled.write_out.vectors =
      moves_in_vectors(of.dest, of.dest_strides, 1, of.columns, kLanes, sizeof(T));
  if (lay_tiles<typename Tiles<T>::Large>(tiled) >= kEnoughBlocks && of.columns > kWarpTile) {
    return launch_tiled<typename Tiles<T>::Large>(tiled, stream);
  }
  if (lay_tiles<typename Tiles<T>::Medium>(tiled) >= kEnoughBlocks) {
    return launch_tiled<typename Tiles<T>::Medium>(tiled, stream);
  }
  return launch_tiled<typename Tiles<T>::Small>(tiled, stream);
}

const char* correlate(const Conv2dShape& shape, const Correlation& correlation, void* stream) {
  if (!tiles_fit(shape) || groups_are_small(shape))
    return correlate_direct(shape.dtype, correlation, stream);
  Pointwise pointwise;
  if (is_pointwise(shape.dtype, correlation, pointwise)) {
    const char* error = nullptr;
    if (correlate_pointwise_sm90(shape.dtype, pointwise, stream, error)) return error;
    return correlate_pointwise(shape.dtype, pointwise, stream);
  }
  return with_floating(shape.dtype, [&](auto tag) {
    return correlate_tiled<typename decltype(tag)::Type>(correlation, stream);
  });
}

}  // namespace

const char* conv2d_forward(const Conv2dShape& shape, const void* input, const void* weight,
                           const void* bias, void* output, void* stream) {
  const Window2d& window = shape.window;
  const int64_t* strides = shape.weight.s;
  Correlation correlation{};
  correlation.source = input, correlation.weight = weight, correlation.dest = output;
  correlation.bias = bias, correlation.bias_stride = shape.bias_stride;
  correlation.N = shape.N, correlation.G = shape.G;
  correlation.channels = shape.C / shape.G, correlation.columns = shape.K / shape.G;
  correlation.h = {shape.P, shape.H, window.R, window.stride_h, window.pad_h, window.dilation_h};
  correlation.w = {shape.Q, shape.W, window.S, window.stride_w, window.pad_w, window.dilation_w};
  correlation.transposed = false;
  correlation.source_strides = shape.input, correlation.dest_strides = shape.output;
  correlation.weight_group = correlation.columns * strides[0];
  correlation.weight_column = strides[0], correlation.weight_channel = strides[1];
  correlation.weight_r = strides[2], correlation.weight_s = strides[3];
  correlation.phases_h = phases_of(correlation.h, false),
  correlation.phases_w = phases_of(correlation.w, false);
  return correlate(shape, correlation, stream);
}

const char* conv2d_input_grad(const Conv2dShape& shape, const void* grad_output, const void* weight,
                              const void* bias, void* grad_input, void* stream) {
  const Window2d& window = shape.window;
  const int64_t* strides = shape.weight.s;
  Correlation correlation{};
  correlation.source = grad_output, correlation.weight = weight, correlation.dest = grad_input;
  correlation.bias = bias, correlation.bias_stride = shape.bias_stride;
  correlation.N = shape.N, correlation.G = shape.G;
  correlation.channels = shape.K / shape.G, correlation.columns = shape.C / shape.G;
  correlation.h = {shape.H, shape.P, window.R, window.stride_h, window.pad_h, window.dilation_h};
  correlation.w = {shape.W, shape.Q, window.S, window.stride_w, window.pad_w, window.dilation_w};
  correlation.transposed = true;
  correlation.source_strides = shape.output, correlation.dest_strides = shape.input;
  correlation.weight_group = correlation.channels * strides[0];
  correlation.weight_column = strides[1], correlation.weight_channel = strides[0];
  correlation.weight_r = strides[2], correlation.weight_s = strides[3];
  correlation.phases_h = phases_of(correlation.h, true),
  correlation.phases_w = phases_of(correlation.w, true);
  return correlate(shape, correlation, stream);
}

}  // namespace cuda
}  // namespace fastconv
