// max_pool2d on CUDA, backward: a gather, so that no atomics are needed and every sum has one
// order.
//
//   grad_input[n,c,h,w] = sum of grad_output[n,c,p,q] over the p, q, in row-major order,
//                         whose indices[n,c,p,q] == h * W + w, or whose taps say the same
//
// Letters: kernels/max_pool2d.h.
//
// When the shape names the window, only the windows that cover h, w can have taken it:
//   max_pool2d_backward_channels_kernel: one thread = 16 bytes of neighbouring channels of an input
//   pixel.
//   max_pool2d_backward_columns_kernel: one thread = kLanes neighbouring columns of one input row;
//   any layout if kLanes is 1.
//   Cost: ceil(R / stride_h) * ceil(S / stride_w) indices per element, from L1 but for the first
//   touch.
// When it does not (R = 0: whoever calls knows the indices alone), an index may lie anywhere:
//   max_pool2d_backward_scan_kernel: one block = 32 planes (n,c) x a band of input positions whose
//   sums are in shared memory; one thread = one plane, whose indices it reads from first to last.
//   Cost: every index is read ceil(H * W / band) times.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/max_pool2d.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/max_pool2d.h"

namespace fastconv {
namespace cuda {

namespace {

// The tap by which the window of an output holds an element `distance` behind its start, -1 if by none.
template <class Index>
__device__ __forceinline__ Index tap_at(Index distance, Index dilation) {
  if (dilation == 1) return distance;
  const Index tap = quotient(distance, dilation);
  return tap * dilation == distance ? tap : -1;
}

template <class T, class Index, class Where>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<Index>)
    max_pool2d_backward_channels_kernel(const Pool<Index> pool) {
  constexpr int kLanes = kVectorLanes<T>;

  // Which input pixel, and the windows over it
  const int64_t thread = int64_t{blockIdx.x} * kPoolThreads + threadIdx.x;
  if (thread >= pool.count) return;
  const Place<Index> at = place_of(pool, static_cast<Index>(thread), pool.H, pool.W);
  const Index channel = at.c * kLanes;
  const int64_t wanted = int64_t{at.y} * pool.W + at.x;
  const auto rows =
      windows_over(at.y, at.y, pool.R, pool.stride_h, pool.pad_h, pool.dilation_h, pool.P);
  const auto columns =
      windows_over(at.x, at.x, pool.S, pool.stride_w, pool.pad_w, pool.dilation_w, pool.Q);

  // Add what took this pixel
  Wide<T> sums[kLanes] = {};
  for (Index p = rows.begin; p < rows.end; ++p) {
    const Index r = tap_at(at.y + pool.pad_h - p * pool.stride_h, pool.dilation_h);
    for (Index q = columns.begin; q < columns.end; ++q) {
      const Where* places = static_cast<const Where*>(pool.places) +
                            offset_of(pool.index_strides, at.n, channel, p, q);
      const auto gradient = load_vector<T, kLanes>(static_cast<const T*>(pool.values) +
                                                   offset_of(pool.output, at.n, channel, p, q));
      if constexpr (sizeof(Where) == 1) {
        const Index s = tap_at(at.x + pool.pad_w - q * pool.stride_w, pool.dilation_w);
        if (r < 0 || s < 0) continue;
        const auto taken = load_vector<uint8_t, kLanes>(places);
#pragma unroll
        for (int v = 0; v < kLanes; ++v)
          if (taken.lane[v] == r * pool.S + s) sums[v] += widen(gradient.lane[v]);
      } else {
#pragma unroll
        for (int v = 0; v < kLanes; v += 2) {
          const auto taken = load_vector<int64_t, 2>(places + v);
          if (taken.lane[0] == wanted) sums[v] += widen(gradient.lane[v]);
          if (taken.lane[1] == wanted) sums[v + 1] += widen(gradient.lane[v + 1]);
        }
      }
    }
  }
  store_sums<T, kLanes, Index>(
      static_cast<T*>(pool.result) + offset_of(pool.input, at.n, channel, at.y, at.x), sums);
}

// The index for which a place stands, -1 for none.
template <class Index>
__device__ __forceinline__ int64_t index_of(const Pool<Index>&, int64_t index, Index, Index) {
  return index;
}
template <class Index>
__device__ __forceinline__ int64_t index_of(const Pool<Index>& pool, uint8_t tap, Index p,
                                            Index q) {
  if (tap >= pool.R * pool.S) return -1;
  const Index r = quotient(static_cast<Index>(tap), pool.S);
  const Index h = p * pool.stride_h - pool.pad_h + r * pool.dilation_h;
  const Index w = q * pool.stride_w - pool.pad_w + (tap - r * pool.S) * pool.dilation_w;
  return int64_t{h} * pool.W + w;
}

template <class T, int kLanes, class Index, class Where>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<Index>)
    max_pool2d_backward_columns_kernel(const Pool<Index> pool) {
  // Which input columns, and the windows over them
  const int64_t thread = int64_t{blockIdx.x} * kPoolThreads + threadIdx.x;
  if (thread >= pool.count) return;
  const Place<Index> at = place_of(pool, static_cast<Index>(thread), pool.H, pool.W / kLanes);
  const Index w = at.x * kLanes;
  const int64_t wanted = int64_t{at.y} * pool.W + w;
  const auto rows =
      windows_over(at.y, at.y, pool.R, pool.stride_h, pool.pad_h, pool.dilation_h, pool.P);
  const auto columns =
      windows_over(w, w + kLanes - 1, pool.S, pool.stride_w, pool.pad_w, pool.dilation_w, pool.Q);

  // Add what took one of these columns
  Wide<T> sums[kLanes] = {};
  for (Index p = rows.begin; p < rows.end; ++p) {
    for (Index q = columns.begin; q < columns.end; ++q) {
      const Where place =
          static_cast<const Where*>(pool.places)[offset_of(pool.index_strides, at.n, at.c, p, q)];
      const int64_t column = index_of(pool, place, p, q) - wanted;
      if (column < 0 || column >= kLanes) continue;
      const Wide<T> gradient =
          widen(static_cast<const T*>(pool.values)[offset_of(pool.output, at.n, at.c, p, q)]);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) {
        if (column == v) sums[v] += gradient;
      }
    }
  }
  store_sums<T, kLanes, Index>(
      static_cast<T*>(pool.result) + offset_of(pool.input, at.n, at.c, at.y, w), sums);
}

constexpr int kScanPlanes = 32;
constexpr int kScanBytes = 32 * 1024;
template <class T>
constexpr int kScanBand = kScanBytes / kScanPlanes / static_cast<int>(sizeof(Wide<T>));

struct Scan {
  MaxPool2dShape shape;
  const void* grad_output;
  const int64_t* indices;
  void* grad_input;
  int64_t bands;
};

template <class T>
__global__ void __launch_bounds__(kScanPlanes) max_pool2d_backward_scan_kernel(const Scan scan) {
  const MaxPool2dShape& shape = scan.shape;

  // Which plane and which band
  int64_t block = blockIdx.x;
  const int64_t first = take_axis(block, scan.bands) * kScanBand<T>;
  int64_t n = block * kScanPlanes + threadIdx.x;
  const int64_t c = take_axis(n, shape.C);
  if (n >= shape.N) return;
  const int64_t rest = shape.H * shape.W - first;
  const int64_t positions = rest < kScanBand<T> ? rest : kScanBand<T>;

  // The thread's sums are a column of its own: nobody else touches it
  Wide<T>* sums = reinterpret_cast<Wide<T>*>(dynamic_shared_memory()) + threadIdx.x;
  for (int64_t i = 0; i < positions; ++i) sums[i * kScanPlanes] = Wide<T>(0);

  // Every output, row-major
  const int64_t* indices = scan.indices + n * shape.indices.s[0] + c * shape.indices.s[1];
  const T* gradients =
      static_cast<const T*>(scan.grad_output) + n * shape.output.s[0] + c * shape.output.s[1];
  for (int64_t p = 0; p < shape.P; ++p) {
    for (int64_t q = 0; q < shape.Q; ++q) {
      const int64_t position = indices[p * shape.indices.s[2] + q * shape.indices.s[3]] - first;
      if (position < 0 || position >= positions) continue;
      sums[position * kScanPlanes] +=
          widen(gradients[p * shape.output.s[2] + q * shape.output.s[3]]);
    }
  }

  // Write the band
  T* result = static_cast<T*>(scan.grad_input) + n * shape.input.s[0] + c * shape.input.s[1];
  int64_t h = first, w = take_axis(h, shape.W);
  for (int64_t i = 0; i < positions; ++i) {
    result[h * shape.input.s[2] + w * shape.input.s[3]] = Narrow<T>::from(sums[i * kScanPlanes]);
    if (++w == shape.W) w = 0, ++h;
  }
}

template <class T>
const char* backward_scan(const MaxPool2dShape& shape, const void* grad_output,
                          const int64_t* indices, void* grad_input, void* stream) {
  const int64_t bands = (shape.H * shape.W + kScanBand<T> - 1) / kScanBand<T>;
  const int64_t planes = (shape.N * shape.C + kScanPlanes - 1) / kScanPlanes;
  const Scan scan{shape, grad_output, indices, grad_input, bands};
  return launch(max_pool2d_backward_scan_kernel<T>, planes * bands, kScanPlanes, kScanBytes, stream,
                scan);
}

template <class T, class Where>
const char* backward_gather(const MaxPool2dShape& shape, const void* grad_output,
                            const void* places, void* grad_input, void* stream) {
  constexpr int kLanes = kVectorLanes<T>;
  const int64_t bytes = sizeof(T);
  const int64_t elements = shape.N * shape.C * shape.H * shape.W;
  void* read_places = const_cast<void*>(places);  // Pool serves forward too, which writes them
  if (!fits_int32(shape)) {
    Pool<int64_t> pool = pool_of<int64_t>(shape, grad_output, grad_input, read_places);
    pool.channels_last = shape.input.s[1] < shape.input.s[3];
    pool.count = elements;
    return launch(max_pool2d_backward_columns_kernel<T, 1, int64_t, Where>, blocks_for(elements),
                  kPoolThreads, 0, stream, pool);
  }
  Pool<int32_t> pool = pool_of<int32_t>(shape, grad_output, grad_input, read_places);
  if (moves_in_vectors(grad_input, shape.input, 1, shape.C, kLanes, bytes) &&
      moves_in_vectors(grad_output, shape.output, 1, shape.C, kLanes, bytes) &&
      places_in_vectors(shape, places, 1, shape.C, kLanes)) {
    pool.channels_last = true;
    pool.C /= kLanes;
    pool.count = static_cast<int32_t>(elements / kLanes);
    return launch(max_pool2d_backward_channels_kernel<T, int32_t, Where>, blocks_for(pool.count),
                  kPoolThreads, 0, stream, pool);
  }
  if (moves_in_vectors(grad_input, shape.input, 3, shape.W, kLanes, bytes)) {
    pool.channels_last = false;
    pool.count = static_cast<int32_t>(elements / kLanes);
    return launch(max_pool2d_backward_columns_kernel<T, kLanes, int32_t, Where>,
                  blocks_for(pool.count), kPoolThreads, 0, stream, pool);
  }
  pool.channels_last = shape.input.s[1] < shape.input.s[3];
  pool.count = static_cast<int32_t>(elements);
  return launch(max_pool2d_backward_columns_kernel<T, 1, int32_t, Where>, blocks_for(pool.count),
                kPoolThreads, 0, stream, pool);
}

}  // namespace

const char* max_pool2d_backward(const MaxPool2dShape& shape, const void* grad_output,
                                const void* where, void* grad_input, void* stream) {
  const int64_t bytes = size_of(shape.dtype);
  return in_pieces(shape, [&](const MaxPool2dShape& piece, int64_t n, int64_t c) {
    const void* piece_output =
        static_cast<const char*>(grad_output) + offset_of(shape.output, n, c) * bytes;
    const void* places =
        static_cast<const char*>(where) + offset_of(shape.indices, n, c) * place_bytes(shape);
    void* piece_input = static_cast<char*>(grad_input) + offset_of(shape.input, n, c) * bytes;
    return with_floating(shape.dtype, [&](auto tag) {
      using T = typename decltype(tag)::Type;
      if (shape.window.R == 0)
        return backward_scan<T>(piece, piece_output, static_cast<const int64_t*>(places),
                                piece_input, stream);
      return shape.where == DType::kUInt8
                 ? backward_gather<T, uint8_t>(piece, piece_output, places, piece_input, stream)
                 : backward_gather<T, int64_t>(piece, piece_output, places, piece_input, stream);
    });
  });
}

}  // namespace cuda
}  // namespace fastconv
