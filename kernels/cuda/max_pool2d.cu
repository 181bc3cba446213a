// max_pool2d on CUDA, forward.
//
//   output[n,c,p,q] = max_{r,s} input[n,c,h,w]
//   with  h = p * stride_h - pad_h + r * dilation_h,  w likewise
//
// Letters and the rules for NaN, ties and windows in the padding: kernels/max_pool2d.h.
//
// max_pool2d_forward_kernel: one thread = kLanes neighbouring channels of one output pixel
// (channels_last, 16-byte accesses), or one output element of any layout (kLanes = 1; threads
// follow the fastest axis of the output).
// max_pool2d_forward_pairs_kernel: windows two columns wide, two columns apart, in rows without
// padding; one thread = 16 bytes of every row of its windows, which are kVectorLanes / 2 outputs.
// Cost: every input element is read from memory once (overlapping windows meet in L1), every output
// written once.
#include "kernels/max_pool2d.h"

#include <limits>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/max_pool2d.cuh"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

namespace {

template <class T>
__device__ __forceinline__ T lowest() {
  return std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity()
                                              : std::numeric_limits<T>::lowest();
}

// The largest element so far, and where it was. The first element is always taken, so that a window
// of -inf alone has the index of its first element; later ones must be larger, or NaN.
template <class T, class Index>
struct Largest {
  Wide<T> value;
  Index where;

  __device__ __forceinline__ void offer(T element, Index at, bool first) {
    const Wide<T> offered = widen(element);
    if (first || offered > value || offered != offered) {
      value = offered;
      where = at;
    }
  }
};

// The row (or column) of the first tap that is not before the input: few steps, as padding is at
// most half a window.
template <class Index>
__device__ __forceinline__ int64_t first_inside(Index start, Index dilation) {
  while (start < 0) start += dilation;
  return start;
}

template <int kLanes, class T, class Index>
__device__ __forceinline__ void store_values(T* to, const Largest<T, Index> (&largest)[kLanes]) {
  Vector<T, kLanes> values;
#pragma unroll
  for (int v = 0; v < kLanes; ++v) values.lane[v] = Narrow<T>::from(largest[v].value);
  store_vector(to, values);
}

// How a tap is told apart: Where is int64_t for h * W + w, uint8_t for r * S + s.
template <class Where, class Index>
__device__ __forceinline__ Index place_of_tap(const Pool<Index>& pool, Index r, Index s, Index h,
                                              Index w) {
  if constexpr (sizeof(Where) == 1)
    return r * pool.S + s;
  else
    return h * pool.W + w;
}

template <int kLanes, class T, class Index>
__device__ __forceinline__ void store_places(int64_t* to,
                                             const Largest<T, Index> (&largest)[kLanes]) {
  constexpr int kPerStore = kLanes > 1 ? 2 : 1;
#pragma unroll
  for (int v = 0; v < kLanes; v += kPerStore) {
    Vector<int64_t, kPerStore> values;
#pragma unroll
    for (int i = 0; i < kPerStore; ++i) values.lane[i] = largest[v + i].where;
    store_vector(to + v, values);
  }
}

template <int kLanes, class T, class Index>
__device__ __forceinline__ void store_places(uint8_t* to,
                                             const Largest<T, Index> (&largest)[kLanes]) {
  Vector<uint8_t, kLanes> values;
#pragma unroll
  for (int v = 0; v < kLanes; ++v) values.lane[v] = static_cast<uint8_t>(largest[v].where);
  store_vector(to, values);
}

// The place of a window without an element inside.
template <class Where, class Index>
__device__ __forceinline__ Where outside_of(const Pool<Index>& pool, Index start_h, Index start_w) {
  if constexpr (sizeof(Where) == 1)
    return kNoTap;
  else
    return first_inside(start_h, pool.dilation_h) * pool.W + first_inside(start_w, pool.dilation_w);
}

// Values alone count their taps as indices, which nobody asks for.
template <class Where>
using Placed = typename std::conditional<std::is_void<Where>::value, int64_t, Where>::type;

template <class T, int kLanes, class Index, class Where>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<Index>)
    max_pool2d_forward_kernel(const Pool<Index> pool) {
  // Which output
  const int64_t thread = int64_t{blockIdx.x} * kPoolThreads + threadIdx.x;
  if (thread >= pool.count) return;
  const Place<Index> at = place_of(pool, static_cast<Index>(thread), pool.P, pool.Q);
  const Index channel = at.c * (pool.channels_last ? kLanes : 1);
  const Index start_h = at.y * pool.stride_h - pool.pad_h;
  const Index start_w = at.x * pool.stride_w - pool.pad_w;
  const T* plane =
      static_cast<const T*>(pool.values) + at.n * pool.input[0] + channel * pool.input[1];

  // A window without a tap inside keeps this
  Largest<T, Index> largest[kLanes];
#pragma unroll
  for (int v = 0; v < kLanes; ++v) largest[v] = {lowest<Wide<T>>(), 0};
  bool first = true;

  // Walk the taps inside the input
  for (Index r = 0; r < pool.R; ++r) {
    const Index h = start_h + r * pool.dilation_h;
    if (h < 0 || h >= pool.H) continue;
    for (Index s = 0; s < pool.S; ++s) {
      const Index w = start_w + s * pool.dilation_w;
      if (w < 0 || w >= pool.W) continue;
      const auto elements = load_vector<T, kLanes>(plane + h * pool.input[2] + w * pool.input[3]);
      const Index place = place_of_tap<Placed<Where>>(pool, r, s, h, w);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) largest[v].offer(elements.lane[v], place, first);
      first = false;
    }
  }

  // Write
  store_values(static_cast<T*>(pool.result) + offset_of(pool.output, at.n, channel, at.y, at.x),
               largest);
  if constexpr (!std::is_void<Where>::value) {
    Where* where =
        static_cast<Where*>(pool.places) + offset_of(pool.index_strides, at.n, channel, at.y, at.x);
    if (first) {
      const Where outside = outside_of<Where>(pool, start_h, start_w);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) where[v] = outside;
    } else {
      store_places(where, largest);
    }
  }
}

template <class T, class Index, class Where>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<Index>)
    max_pool2d_forward_pairs_kernel(const Pool<Index> pool) {
  constexpr int kOutputs = kVectorLanes<T> / 2;

  // Which outputs
  const int64_t thread = int64_t{blockIdx.x} * kPoolThreads + threadIdx.x;
  if (thread >= pool.count) return;
  const Place<Index> at = place_of(pool, static_cast<Index>(thread), pool.P, pool.Q / kOutputs);
  const Index q = at.x * kOutputs;
  const Index start_h = at.y * pool.stride_h - pool.pad_h;
  const T* row =
      static_cast<const T*>(pool.values) + offset_of(pool.input, at.n, at.c, Index{0}, 2 * q);

  Largest<T, Index> largest[kOutputs];
#pragma unroll
  for (int v = 0; v < kOutputs; ++v) largest[v] = {lowest<Wide<T>>(), 0};
  bool first = true;

  // One vector per row of the windows
  for (Index r = 0; r < pool.R; ++r) {
    const Index h = start_h + r * pool.dilation_h;
    if (h < 0 || h >= pool.H) continue;
    const auto elements = load_vector<T, 2 * kOutputs>(row + h * pool.input[2]);
#pragma unroll
    for (int v = 0; v < 2 * kOutputs; ++v) {
      const Index place = place_of_tap<Placed<Where>>(pool, r, Index{v % 2}, h, 2 * q + v);
      largest[v / 2].offer(elements.lane[v], place, first && v % 2 == 0);
    }
    first = false;
  }

  // Write
  store_values(static_cast<T*>(pool.result) + offset_of(pool.output, at.n, at.c, at.y, q), largest);
  if constexpr (!std::is_void<Where>::value) {
    Where* where =
        static_cast<Where*>(pool.places) + offset_of(pool.index_strides, at.n, at.c, at.y, q);
    if (first) {
#pragma unroll
      for (int v = 0; v < kOutputs; ++v)
        where[v] = outside_of<Where>(pool, start_h, static_cast<Index>(2 * (q + v)));
    } else {
      store_places(where, largest);
    }
  }
}

// May a thread take 16 bytes of neighbouring channels?
bool vectors_of_channels(const MaxPool2dShape& shape, const void* input, const void* output,
                         const void* places) {
  const int64_t bytes = size_of(shape.dtype);
  const int64_t lanes = kVectorBytes / bytes;
  return moves_in_vectors(input, shape.input, 1, shape.C, lanes, bytes) &&
         moves_in_vectors(output, shape.output, 1, shape.C, lanes, bytes) &&
         (places == nullptr || places_in_vectors(shape, places, 1, shape.C, lanes));
}

// May a thread take 16 bytes of a row, which are whole windows?
bool vectors_of_windows(const MaxPool2dShape& shape, const void* input, const void* output,
                        const void* places) {
  const Window2d& window = shape.window;
  if (window.S != 2 || window.stride_w != 2 || window.dilation_w != 1 || window.pad_w != 0)
    return false;
  if (2 * shape.Q > shape.W) return false;
  const int64_t bytes = size_of(shape.dtype);
  const int64_t outputs = kVectorBytes / bytes / 2;
  return moves_in_vectors(input, shape.input, 3, 2 * shape.Q, 2 * outputs, bytes) &&
         moves_in_vectors(output, shape.output, 3, shape.Q, outputs, bytes) &&
         (places == nullptr || places_in_vectors(shape, places, 3, shape.Q, outputs));
}

template <class T, int kLanes, class Index>
const char* launch_forward(const Pool<Index>& pool, DType where, void* stream) {
  const auto kernel = pool.places == nullptr ? max_pool2d_forward_kernel<T, kLanes, Index, void>
                      : where == DType::kUInt8
                          ? max_pool2d_forward_kernel<T, kLanes, Index, uint8_t>
                          : max_pool2d_forward_kernel<T, kLanes, Index, int64_t>;
  return launch(kernel, blocks_for(pool.count), kPoolThreads, 0, stream, pool);
}

template <class T>
const char* launch_forward_pairs(const Pool<int32_t>& pool, DType where, void* stream) {
  const auto kernel = pool.places == nullptr ? max_pool2d_forward_pairs_kernel<T, int32_t, void>
                      : where == DType::kUInt8
                          ? max_pool2d_forward_pairs_kernel<T, int32_t, uint8_t>
                          : max_pool2d_forward_pairs_kernel<T, int32_t, int64_t>;
  return launch(kernel, blocks_for(pool.count), kPoolThreads, 0, stream, pool);
}

template <class T>
const char* forward(const MaxPool2dShape& shape, const void* input, void* output, void* places,
                    void* stream) {
  constexpr int kLanes = kVectorLanes<T>;
  const int64_t outputs = shape.N * shape.C * shape.P * shape.Q;
  if (!fits_int32(shape)) {
    Pool<int64_t> pool = pool_of<int64_t>(shape, input, output, places);
    pool.count = outputs;
    return launch_forward<T, 1>(pool, shape.where, stream);
  }
  Pool<int32_t> pool = pool_of<int32_t>(shape, input, output, places);
  if (vectors_of_channels(shape, input, output, places)) {
    pool.channels_last = true;
    pool.C /= kLanes;
    pool.count = static_cast<int32_t>(outputs / kLanes);
    return launch_forward<T, kLanes>(pool, shape.where, stream);
  }
  if (vectors_of_windows(shape, input, output, places)) {
    pool.channels_last = false;
    pool.count = static_cast<int32_t>(outputs / (kLanes / 2));
    return launch_forward_pairs<T>(pool, shape.where, stream);
  }
  pool.count = static_cast<int32_t>(outputs);
  return launch_forward<T, 1>(pool, shape.where, stream);
}

}  // namespace

const char* max_pool2d_forward(const MaxPool2dShape& shape, const void* input, void* output,
                               void* where, void* stream) {
  const int64_t bytes = size_of(shape.dtype);
  return in_pieces(shape, [&](const MaxPool2dShape& piece, int64_t n, int64_t c) {
    const void* piece_input =
        static_cast<const char*>(input) + offset_of(shape.input, n, c) * bytes;
    void* piece_output = static_cast<char*>(output) + offset_of(shape.output, n, c) * bytes;
    void* piece_places = where == nullptr ? nullptr
                                          : static_cast<char*>(where) +
                                                offset_of(shape.indices, n, c) * place_bytes(shape);
    return with_any(shape.dtype, [&](auto tag) {
      return forward<typename decltype(tag)::Type>(piece, piece_input, piece_output, piece_places,
                                                   stream);
    });
  });
}

}  // namespace cuda
}  // namespace fastconv
