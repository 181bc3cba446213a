// max_unpool2d on CUDA, forward and backward.
//
//   output[n,c,h,w]     = input[n,c,p,q] with indices[n,c,p,q] == h * W + w, 0 if there is none
//   grad_input[n,c,p,q] = grad_output[n,c,h,w] with h * W + w = indices[n,c,p,q]
//
// Letters: kernels/max_unpool2d.h. Elements move as they are, as unsigned integers of their size.
//
// max_unpool2d_clear_kernel:   one thread = one element of the output, which becomes 0.
// max_unpool2d_scatter_kernel: one thread = one element of the input, which it writes to its place.
// max_unpool2d_gather_kernel:  one thread = one element of grad_input, which it reads from there.
// Threads follow the fastest axis of what they write or read in order.
#include "kernels/max_unpool2d.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

namespace {

constexpr int kThreads = 256;

// 64-bit numbers: a thread does little else than wait for memory.
struct Unpool {
  MaxUnpool2dShape shape;
  const void* from;
  void* to;
  const int64_t* indices;
  int64_t count;       // threads that have work
  bool channels_last;  // neighbouring threads: neighbouring channels, else columns
};

struct Place {
  int64_t n, c, y, x;
};

__device__ __forceinline__ Place place_of(const Unpool& unpool, int64_t height, int64_t width) {
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  Place at;
  if (unpool.channels_last) at.c = take_axis(i, unpool.shape.C);
  at.x = take_axis(i, width);
  at.y = take_axis(i, height);
  if (!unpool.channels_last) at.c = take_axis(i, unpool.shape.C);
  at.n = i;
  return at;
}

__device__ __forceinline__ int64_t offset_of(const Strides4& strides, const Place& at) {
  return at.n * strides.s[0] + at.c * strides.s[1] + at.y * strides.s[2] + at.x * strides.s[3];
}

__device__ __forceinline__ bool has_work(const Unpool& unpool) {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x < unpool.count;
}

template <class B>
__global__ void __launch_bounds__(kThreads) max_unpool2d_clear_kernel(const Unpool unpool) {
  if (!has_work(unpool)) return;
  const Place at = place_of(unpool, unpool.shape.H, unpool.shape.W);
  static_cast<B*>(unpool.to)[offset_of(unpool.shape.output, at)] = 0;
}

// The place in the large tensor that an index names; false if there is none.
__device__ __forceinline__ bool find(const Unpool& unpool, const Place& at, Place& place) {
  const int64_t index = unpool.indices[offset_of(unpool.shape.indices, at)];
  if (index < 0 || index >= unpool.shape.H * unpool.shape.W) return false;
  const int64_t row = quotient(index, unpool.shape.W);
  place = {at.n, at.c, row, index - row * unpool.shape.W};
  return true;
}

template <class B>
__global__ void __launch_bounds__(kThreads) max_unpool2d_scatter_kernel(const Unpool unpool) {
  if (!has_work(unpool)) return;
  const Place at = place_of(unpool, unpool.shape.P, unpool.shape.Q);
  Place place;
  if (!find(unpool, at, place)) return;
  static_cast<B*>(unpool.to)[offset_of(unpool.shape.output, place)] =
      static_cast<const B*>(unpool.from)[offset_of(unpool.shape.input, at)];
}

template <class B>
__global__ void __launch_bounds__(kThreads) max_unpool2d_gather_kernel(const Unpool unpool) {
  if (!has_work(unpool)) return;
  const Place at = place_of(unpool, unpool.shape.P, unpool.shape.Q);
  Place place;
  static_cast<B*>(unpool.to)[offset_of(unpool.shape.input, at)] =
      find(unpool, at, place)
          ? static_cast<const B*>(unpool.from)[offset_of(unpool.shape.output, place)]
          : B(0);
}

template <class Body>
const char* with_bytes(DType dtype, const Body& body) {
  switch (size_of(dtype)) {
    case 2:
      return body(Tag<uint16_t>{});
    case 4:
      return body(Tag<uint32_t>{});
    default:
      return body(Tag<uint64_t>{});
  }
}

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

}  // namespace

const char* max_unpool2d_forward(const MaxUnpool2dShape& shape, const void* input,
                                 const int64_t* indices, void* output, void* stream) {
  Unpool unpool{shape, input, output, indices, shape.N * shape.C * shape.H * shape.W, false};
  unpool.channels_last = shape.output.s[1] < shape.output.s[3];
  return with_bytes(shape.dtype, [&](auto tag) {
    using B = typename decltype(tag)::Type;
    const char* error =
        launch(max_unpool2d_clear_kernel<B>, blocks_for(unpool.count), kThreads, 0, stream, unpool);
    if (error != nullptr) return error;
    unpool.count = shape.N * shape.C * shape.P * shape.Q;
    unpool.channels_last = shape.input.s[1] < shape.input.s[3];
    return launch(max_unpool2d_scatter_kernel<B>, blocks_for(unpool.count), kThreads, 0, stream,
                  unpool);
  });
}

const char* max_unpool2d_backward(const MaxUnpool2dShape& shape, const void* grad_output,
                                  const int64_t* indices, void* grad_input, void* stream) {
  Unpool unpool{shape, grad_output, grad_input, indices, shape.N * shape.C * shape.P * shape.Q,
                false};
  unpool.channels_last = shape.input.s[1] < shape.input.s[3];
  return with_bytes(shape.dtype, [&](auto tag) {
    using B = typename decltype(tag)::Type;
    return launch(max_unpool2d_gather_kernel<B>, blocks_for(unpool.count), kThreads, 0, stream,
                  unpool);
  });
}

}  // namespace cuda
}  // namespace fastconv
