// adaptive_max_pool2d on CUDA.
//
//   output[n,c,p,q] = max_{h,w} input[n,c,h,w] over the window of p, q
//
// Letters, windows and the rules for NaN and ties: kernels/adaptive_max_pool2d.h.
//
// Small windows of one size are max_pool2d's. Else:
// adaptive_max_pool2d_warps_kernel:   one warp = one output; lanes take every 32nd element of the
//   window, row by row, and meet in five shuffles. For windows of many elements in rows.
// adaptive_max_pool2d_threads_kernel: one thread = one output; neighbouring threads are neighbouring
//   channels (channels_last), so that they read neighbouring elements, or columns.
// Cost: every element once per window that holds it.
#include "kernels/adaptive_max_pool2d.h"

#include <limits>

#include "kernels/adaptive_avg_pool2d.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/max_pool2d.h"

namespace fastconv {
namespace cuda {

namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int64_t kWarpElements = 32;  // of a window: as many as a warp has lanes

struct Adaptive {
  AdaptiveMaxPool2dShape shape;
  const void* input;
  void* output;
  int64_t* indices;
  int64_t count;       // outputs
  bool channels_last;  // neighbouring outputs: neighbouring channels, else columns
};

struct Output {
  int64_t n, c, p, q;
};

__device__ __forceinline__ Output output_of(const Adaptive& adaptive, int64_t i) {
  const AdaptiveMaxPool2dShape& s = adaptive.shape;
  Output at;
  if (adaptive.channels_last) at.c = take_axis(i, s.C);
  at.q = take_axis(i, s.Q);
  at.p = take_axis(i, s.P);
  if (!adaptive.channels_last) at.c = take_axis(i, s.C);
  at.n = i;
  return at;
}

__device__ __forceinline__ int64_t offset_of(const Strides4& strides, int64_t n, int64_t c,
                                             int64_t y, int64_t x) {
  return n * strides.s[0] + c * strides.s[1] + y * strides.s[2] + x * strides.s[3];
}

struct Window {
  int64_t h, h_end, w, w_end;
};

__device__ __forceinline__ Window window_of(const AdaptiveMaxPool2dShape& s, const Output& at) {
  return {quotient(at.p * s.H, s.P), quotient((at.p + 1) * s.H + s.P - 1, s.P),
          quotient(at.q * s.W, s.Q), quotient((at.q + 1) * s.W + s.Q - 1, s.Q)};
}

// The largest element so far and its index; without one lowest, and an index that loses every tie.
template <class T>
struct Largest {
  Wide<T> value = -std::numeric_limits<Wide<T>>::infinity();
  long long index = std::numeric_limits<long long>::max();

  __device__ __forceinline__ void offer(Wide<T> other, long long at) {
    const bool is_nan = value != value, other_is_nan = other != other;
    const bool taken = is_nan || other_is_nan ? other_is_nan && (!is_nan || at > index)
                                              : other > value || (other == value && at < index);
    if (!taken) return;
    value = other;
    index = at;
  }
};

template <class T>
__device__ __forceinline__ void write(const Adaptive& adaptive, const Output& at,
                                      const Largest<T>& largest) {
  const AdaptiveMaxPool2dShape& s = adaptive.shape;
  static_cast<T*>(adaptive.output)[offset_of(s.output, at.n, at.c, at.p, at.q)] =
      Narrow<T>::from(largest.value);
  if (adaptive.indices != nullptr)
    adaptive.indices[offset_of(s.indices, at.n, at.c, at.p, at.q)] = largest.index;
}

template <class T>
__device__ __forceinline__ const T* plane_of(const Adaptive& adaptive, const Output& at) {
  return static_cast<const T*>(adaptive.input) + at.n * adaptive.shape.input.s[0] +
         at.c * adaptive.shape.input.s[1];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adaptive_max_pool2d_threads_kernel(const Adaptive adaptive) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= adaptive.count) return;
  const AdaptiveMaxPool2dShape& s = adaptive.shape;
  const Output at = output_of(adaptive, i);
  const Window window = window_of(s, at);
  const T* plane = plane_of<T>(adaptive, at);

  Largest<T> largest;
  for (int64_t h = window.h; h < window.h_end; ++h)
    for (int64_t w = window.w; w < window.w_end; ++w)
      largest.offer(widen(plane[h * s.input.s[2] + w * s.input.s[3]]), h * s.W + w);
  write(adaptive, at, largest);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adaptive_max_pool2d_warps_kernel(const Adaptive adaptive) {
  // Which output; a warp without one comes along for the shuffles
  const int lane = threadIdx.x % kWarp;
  const int64_t i = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const bool works = i < adaptive.count;
  const AdaptiveMaxPool2dShape& s = adaptive.shape;
  const Output at = output_of(adaptive, works ? i : 0);

  // Every 32nd element
  Largest<T> largest;
  if (works) {
    const Window window = window_of(s, at);
    const T* plane = plane_of<T>(adaptive, at);
    const int64_t width = window.w_end - window.w;
    int64_t h = window.h, w = window.w + lane;
    while (true) {
      while (w >= window.w_end && h < window.h_end) w -= width, ++h;
      if (h >= window.h_end) break;
      largest.offer(widen(plane[h * s.input.s[2] + w * s.input.s[3]]), h * s.W + w);
      w += kWarp;
    }
  }

  // The best of all lanes
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Wide<T> value = __shfl_xor_sync(0xffffffffu, largest.value, distance);
    const long long index = __shfl_xor_sync(0xffffffffu, largest.index, distance);
    largest.offer(value, index);
  }
  if (works && lane == 0) write(adaptive, at, largest);
}

}  // namespace

const char* adaptive_max_pool2d_forward(const AdaptiveMaxPool2dShape& shape, const void* input,
                                        void* output, int64_t* indices, void* stream) {
  const bool regular = shape.H % shape.P == 0 && shape.W % shape.Q == 0;
  const int64_t R = (shape.H + shape.P - 1) / shape.P, S = (shape.W + shape.Q - 1) / shape.Q;
  const bool channels_last = shape.input.s[1] < shape.input.s[3];
  if (regular && R * S < kWarpElements) {
    const MaxPool2dShape pooled{shape.dtype, DType::kInt64, shape.N,
                                shape.C,     shape.H,       shape.W,
                                shape.P,     shape.Q,       {R, S, R, S, 0, 0, 1, 1},
                                shape.input, shape.output,  shape.indices};
    return max_pool2d_forward(pooled, input, output, indices, stream);
  }
  const Adaptive adaptive{
      shape, input, output, indices, shape.N * shape.C * shape.P * shape.Q, channels_last};
  const bool warps = !channels_last && R * S >= kWarpElements;
  const int64_t each = warps ? kThreads / kWarp : kThreads;
  return with_floating(shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return launch(
        warps ? adaptive_max_pool2d_warps_kernel<T> : adaptive_max_pool2d_threads_kernel<T>,
        (adaptive.count + each - 1) / each, kThreads, 0, stream, adaptive);
  });
}

}  // namespace cuda
}  // namespace fastconv
