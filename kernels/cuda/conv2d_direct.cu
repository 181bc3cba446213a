// conv2d on CUDA without tiles: for groups of few channels (depthwise), which are limited by memory
// and not by products, and for extents beyond 32 bits.
//
// Letters and formulas: kernels/conv2d.h, kernels/cuda/conv2d_correlation.h.
//
// conv2d_correlation_direct_kernel (forward, input_grad): one thread = kPixels columns of one dest
// row, a quarter row apart, x kLanes neighbouring groups (depthwise channels_last, 16-byte
// accesses) or 1 dest channel (any layout). Every weight is loaded once per thread and used kPixels
// times.
// Cost: taps * channels products per element.
//
// conv2d_weight_grad_direct_kernel: one block = kChannels neighbouring k x one c x one r x kTaps
// neighbouring s, over all n, p, q; its threads share the spots (n,p,q) out among themselves and
// add up through shared memory, in an order that depends on the shape alone.
// Cost: grad_output is read R * ceil(S / kTaps) * C/G times, input K/G * R * S times.
#include "kernels/cuda/conv2d_correlation.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;
constexpr int kBlocks = 2;  // per multiprocessor: leaves 128 registers, below which some spill

template <class Index>
struct DirectCorrelation {
  Correlation of;
  int64_t count;     // threads that have work
  Index rows, span;  // of the first phase, which has the most: dest rows, and quarters of a row
  Index channels, groups;  // dest channels per group and groups, in units of a thread's lanes
  bool channels_last;      // neighbouring threads: neighbouring channels, else columns
};

template <class T, int kLanes, class Index>
__global__ void __launch_bounds__(kThreads, sizeof(Index) == 4 ? kBlocks : 1)
    conv2d_correlation_direct_kernel(const DirectCorrelation<Index> direct) {
  // Which elements
  const Correlation& of = direct.of;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (thread >= direct.count) return;
  Index i = static_cast<Index>(thread);
  Index channel = 0;  // of the dest, in units of lanes
  const Index dest_channels = direct.channels * direct.groups;
  if (direct.channels_last) channel = take_axis(i, dest_channels);
  const Index first_x = take_axis(i, direct.span);
  const Index row = take_axis(i, direct.rows);
  if (!direct.channels_last) channel = take_axis(i, dest_channels);
  const auto w =
      phase_of<Index>(of.w, of.transposed, take_axis(i, static_cast<Index>(of.phases_w)));
  const auto h =
      phase_of<Index>(of.h, of.transposed, take_axis(i, static_cast<Index>(of.phases_h)));
  const int64_t n = i;
  if (row >= h.count) return;
  const Index column = take_axis(channel, direct.channels), group = channel * kLanes;

  // Where its tensors begin
  const int64_t* along = of.source_strides.s;
  const T* source =
      static_cast<const T*>(of.source) + n * along[0] + group * of.channels * along[1];
  const T* weights = static_cast<const T*>(of.weight) + group * of.weight_group +
                     column * of.weight_column + h.first_tap * of.weight_r +
                     w.first_tap * of.weight_s;
  Wide<T> sums[kPixels][kLanes] = {};

  // Walk the taps inside the source
  for (int64_t c = 0; c < of.channels; ++c) {
    for (Index a = 0; a < h.taps; ++a) {
      const Index y = h.first_source + row * h.source_step + a * h.source_move;
      if (y < 0 || y >= of.h.source) continue;
      for (Index b = 0; b < w.taps; ++b) {
        const T* weight = weights + c * of.weight_channel + a * h.tap_step * of.weight_r +
                          b * w.tap_step * of.weight_s;
        Wide<T> factors[kLanes];
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane)
          factors[lane] = widen(weight[lane * of.weight_group]);
#pragma unroll
        for (int pixel = 0; pixel < kPixels; ++pixel) {
          const Index x =
              w.first_source + (first_x + pixel * direct.span) * w.source_step + b * w.source_move;
          if (x < 0 || x >= of.w.source || first_x + pixel * direct.span >= w.count) continue;
          const auto values =
              load_vector<T, kLanes>(source + c * along[1] + y * along[2] + x * along[3]);
#pragma unroll
          for (int lane = 0; lane < kLanes; ++lane)
            sums[pixel][lane] += widen(values.lane[lane]) * factors[lane];
        }
      }
    }
  }

  // Bias and write
  const int64_t dest_channel = group * of.columns + column;
  const int64_t* dest_along = of.dest_strides.s;
  T* dest = static_cast<T*>(of.dest) + n * dest_along[0] + dest_channel * dest_along[1] +
            (h.first_dest + row * h.dest_step) * dest_along[2];
#pragma unroll
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    const Index x = first_x + pixel * direct.span;
    if (x >= w.count) continue;
    Vector<T, kLanes> values;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      Wide<T> sum = sums[pixel][lane];
      if (of.bias != nullptr)
        sum += widen(static_cast<const T*>(of.bias)[(dest_channel + lane) * of.bias_stride]);
      values.lane[lane] = Narrow<T>::from(sum);
    }
    store_vector(dest + (w.first_dest + x * w.dest_step) * dest_along[3], values);
  }
}

// Rows, and quarters of a row, of the first phase.
int64_t rows_of(const Correlation& of) { return phase_of<int64_t>(of.h, of.transposed, 0).count; }
int64_t span_of(const Correlation& of) {
  return (phase_of<int64_t>(of.w, of.transposed, 0).count + kPixels - 1) / kPixels;
}

int64_t threads_of(const Correlation& of) {
  return of.N * of.G * of.columns * of.phases_h * of.phases_w * rows_of(of) * span_of(of);
}

template <class T, int kLanes, class Index>
const char* launch_correlation(const Correlation& of, bool channels_last, void* stream) {
  DirectCorrelation<Index> direct{};
  direct.of = of;
  direct.rows = static_cast<Index>(rows_of(of));
  direct.span = static_cast<Index>(span_of(of));
  direct.channels = static_cast<Index>(of.columns);
  direct.groups = static_cast<Index>(of.G / kLanes);
  direct.channels_last = channels_last;
  direct.count = threads_of(of) / kLanes;
  return launch(conv2d_correlation_direct_kernel<T, kLanes, Index>,
                (direct.count + kThreads - 1) / kThreads, kThreads, 0, stream, direct);
}

// Coordinates of 64 bits only where 32 cannot hold them: they cost twice the time.
bool needs_int64(const Axis& axis) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const int64_t longer = axis.dest > axis.source ? axis.dest : axis.source;
  return longer >= kLimit || axis.pad >= kLimit || axis.stride >= kLimit ||
         axis.dilation >= kLimit || longer * axis.stride >= kLimit ||
         axis.taps * axis.dilation >= kLimit;
}

template <class T>
const char* correlate_direct(const Correlation& of, void* stream) {
  constexpr int64_t kLanes = kVectorLanes<T>;
  const bool channels_last = of.dest_strides.s[1] < of.dest_strides.s[3];
  if (needs_int64(of.h) || needs_int64(of.w) || threads_of(of) >= kInt32Limit) {
    return launch_correlation<T, 1, int64_t>(of, channels_last, stream);
  }
  const bool depthwise = of.channels == 1 && of.columns == 1;
  if (depthwise && moves_in_vectors(of.source, of.source_strides, 1, of.G, kLanes, sizeof(T)) &&
      moves_in_vectors(of.dest, of.dest_strides, 1, of.G, kLanes, sizeof(T))) {
    return launch_correlation<T, kLanes, int32_t>(of, true, stream);
  }
  return launch_correlation<T, 1, int32_t>(of, channels_last, stream);
}

constexpr int kTaps = 8;
constexpr int kChannelsLast =
    8;  // neighbouring k of one block where these are neighbours in memory

struct DirectWeightGrad {
  Conv2dShape shape;
  const void* grad_output;
  const void* input;
  void* grad_weight;
  int64_t channel_blocks, tap_blocks;
  int channels;  // k per block: kChannelsLast or 1
};

template <class T, class Index>
__global__ void __launch_bounds__(kThreads)
    conv2d_weight_grad_direct_kernel(const DirectWeightGrad direct) {
  auto* shared = reinterpret_cast<Wide<T>*>(dynamic_shared_memory());  // [tap][slot][channel]

  // Which weights
  const Conv2dShape& shape = direct.shape;
  const Window2d& window = shape.window;
  int64_t c = blockIdx.x;
  const int64_t first_s = take_axis(c, direct.tap_blocks) * kTaps;
  const int64_t r = take_axis(c, window.R);
  const int64_t first_k = take_axis(c, direct.channel_blocks) * direct.channels;
  const int slots = kThreads / direct.channels;
  const int slot = threadIdx.x / direct.channels;
  const int64_t k = first_k + threadIdx.x % direct.channels;
  const bool exists = k < shape.K;

  // Where its tensors begin
  const int64_t channel =
      exists ? quotient(k, quotient(shape.K, shape.G)) * quotient(shape.C, shape.G) + c : 0;
  const int64_t *input_along = shape.input.s, *output_along = shape.output.s;
  const T* input = static_cast<const T*>(direct.input) + channel * input_along[1];
  const T* grad_output =
      static_cast<const T*>(direct.grad_output) + (exists ? k : 0) * output_along[1];
  const Index P = static_cast<Index>(shape.P), Q = static_cast<Index>(shape.Q);
  const Index first_h = static_cast<Index>(r * window.dilation_h - window.pad_h);
  const Index first_w = static_cast<Index>(first_s * window.dilation_w - window.pad_w);
  const Index stride_h = static_cast<Index>(window.stride_h),
              stride_w = static_cast<Index>(window.stride_w);
  const Index dilation_w = static_cast<Index>(window.dilation_w);
  const int taps = static_cast<int>(window.S - first_s < kTaps ? window.S - first_s : kTaps);

  // Every slots-th spot
  Wide<T> sums[kTaps] = {};
  Index first = slot;
  Index q = take_axis(first, Q), p = take_axis(first, P);
  for (int64_t n = exists ? first : shape.N; n < shape.N;) {
    const Index h = first_h + p * stride_h;
    if (h >= 0 && h < shape.H) {
      const Wide<T> gradient =
          widen(grad_output[n * output_along[0] + p * output_along[2] + q * output_along[3]]);
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        const Index w = first_w + q * stride_w + tap * dilation_w;
        if (tap >= taps || w < 0 || w >= shape.W) continue;
        sums[tap] +=
            gradient * widen(input[n * input_along[0] + h * input_along[2] + w * input_along[3]]);
      }
    }
    q += slots;
    if (q < Q) continue;
    Index rows = q;
    q = take_axis(rows, Q);
    p += rows;
    if (p < P) continue;
    Index images = p;
    p = take_axis(images, P);
    n += images;
  }

  // Add the slots pairwise
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) shared[tap * kThreads + threadIdx.x] = sums[tap];
  for (int half = kThreads / 2; half >= direct.channels; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) >= half) continue;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      shared[tap * kThreads + threadIdx.x] += shared[tap * kThreads + threadIdx.x + half];
    }
  }

  // The first slot writes its own sums
  if (slot != 0 || !exists) return;
  T* weights = static_cast<T*>(direct.grad_weight) + k * shape.weight.s[0] + c * shape.weight.s[1] +
               r * shape.weight.s[2] + first_s * shape.weight.s[3];
  for (int tap = 0; tap < taps; ++tap) {
    weights[tap * shape.weight.s[3]] = Narrow<T>::from(shared[tap * kThreads + threadIdx.x]);
  }
}

}  // namespace

const char* correlate_direct(DType dtype, const Correlation& correlation, void* stream) {
  return with_floating(dtype, [&](auto tag) {
    return correlate_direct<typename decltype(tag)::Type>(correlation, stream);
  });
}

const char* weight_grad_direct(const Conv2dShape& shape, const void* grad_output, const void* input,
                               void* grad_weight, void* stream) {
  const Window2d& window = shape.window;
  DirectWeightGrad direct{shape, grad_output, input, grad_weight, 0, 0, 0};
  direct.channels = shape.output.s[1] < shape.output.s[3] ? kChannelsLast : 1;
  direct.channel_blocks = (shape.K + direct.channels - 1) / direct.channels;
  direct.tap_blocks = (window.S + kTaps - 1) / kTaps;
  const int64_t blocks = direct.channel_blocks * (shape.C / shape.G) * window.R * direct.tap_blocks;
  return with_floating(shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const auto kernel = tiles_fit(shape) ? conv2d_weight_grad_direct_kernel<T, int32_t>
                                         : conv2d_weight_grad_direct_kernel<T, int64_t>;
    return launch(kernel, blocks, kThreads, kTaps * kThreads * sizeof(Wide<T>), stream, direct);
  });
}

}  // namespace cuda
}  // namespace fastconv
