// Averages on CUDA: avg_pool2d and adaptive_avg_pool2d, forward and backward. Both are gathers: no
// atomics, and every sum has one order.
//
//   written[i,j] = sum_{a in rows(i), b in columns(j)} read[a,b]  over the divisor of the window
//
// Letters, spans and divisors: kernels/average.h.
//
// average_pixels_kernel: one thread = 16 bytes of neighbouring channels of one pixel written
//   (channels_last), or one element of any layout (kLanes = 1; threads follow the fastest axis).
// average_strips_kernel: forward, windows of a few columns known at compile time; one thread = 16
//   bytes of a row written. It adds up the rows of the columns below, in registers, then columns.
// average_columns_kernel: backward; one thread = 16 bytes of a row written. A window's gradient is
//   added up over its rows first, then given to the columns that it holds.
// average_planes_kernel: forward, the mean of contiguous planes; one warp or one block = one plane.
// average_wide_kernel: forward, channels_last, large windows; one block = 32 x 16 bytes of
//   channels of one pixel written, of whose window each warp adds up every eighth pixel.
// Cost: every element read comes from memory once (overlapping windows meet in L1), every element
// written once.
#include "kernels/cuda/average.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace fastconv {
namespace cuda {

namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kPoolThreads / kWarp;

template <class T, int kLanes, class Index, bool kBackward>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<Index>)
    average_pixels_kernel(const Means<Index> means) {
  // Which pixel, and its spans
  const int64_t thread = int64_t{blockIdx.x} * kPoolThreads + threadIdx.x;
  if (thread >= means.count) return;
  const Axis<Index>&of_rows = means.rows, &of_columns = means.columns;
  const Place<Index> at =
      place_of(means, static_cast<Index>(thread), kBackward ? of_rows.inputs : of_rows.outputs,
               kBackward ? of_columns.inputs : of_columns.outputs);
  const Index channel = at.c * (means.channels_last ? kLanes : 1);
  const auto rows = kBackward ? windows_over(of_rows, at.y, at.y) : window_at(of_rows, at.y);
  const auto columns =
      kBackward ? windows_over(of_columns, at.x, at.x) : window_at(of_columns, at.x);
  const bool divide_terms = kBackward && means.divisor == 0;

  // Rows of the span, each summed for itself
  const T* plane =
      static_cast<const T*>(means.read) + at.n * means.from[0] + channel * means.from[1];
  Wide<T> sums[kLanes] = {};
  for (Index a = rows.begin; a < rows.end; ++a) {
    Wide<T> row_sums[kLanes] = {};
    for (Index b = columns.begin; b < columns.end; ++b) {
      const auto elements = load_vector<T, kLanes>(plane + a * means.from[2] + b * means.from[3]);
      const Wide<T> divisor = divide_terms ? divisor_at<Wide<T>>(means, a, b) : Wide<T>(1);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) {
        const Wide<T> term = widen(elements.lane[v]);
        row_sums[v] += divide_terms ? term / divisor : term;
      }
    }
#pragma unroll
    for (int v = 0; v < kLanes; ++v) sums[v] += row_sums[v];
  }

  // Write
  const Wide<T> divisor = divide_terms ? Wide<T>(1)
                          : kBackward  ? static_cast<Wide<T>>(means.divisor)
                                       : divisor_at<Wide<T>>(means, at.y, at.x);
  store_quotients<T, kLanes>(
      static_cast<T*>(means.written) + offset_of(means.to, at.n, channel, at.y, at.x), sums,
      divisor);
}

// Windows of kTaps columns, kStride apart, the first of which begins kPad columns before the row.
template <class T, int kTaps, int kStride, int kPad>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<int32_t>)
    average_strips_kernel(const Means<int32_t> means) {
  constexpr int kLanes = kVectorLanes<T>;
  constexpr int kStrip = (kLanes - 1) * kStride + kTaps;  // columns under the thread's windows
  constexpr int kInside = kStride * kLanes;               // of them, those in whole vectors
  static_assert(kPad + kInside <= kStrip, "whole vectors lie in the strip");

  // Which windows
  const int64_t thread = int64_t{blockIdx.x} * kPoolThreads + threadIdx.x;
  if (thread >= means.count) return;
  const Place<int32_t> at = place_of(means, static_cast<int32_t>(thread), means.rows.outputs,
                                     means.columns.outputs / kLanes);
  const int32_t first = at.x * kLanes * kStride;
  const auto rows = window_at(means.rows, at.y);
  const T* plane = static_cast<const T*>(means.read) + offset_of(means.from, at.n, at.c, 0, first);

  // Rows
  Wide<T> strip[kStrip] = {};
  for (int32_t a = rows.begin; a < rows.end; ++a) {
    const T* row = plane + a * means.from[2];
#pragma unroll
    for (int k = 0; k < kPad; ++k) {
      if (first + k >= kPad) strip[k] += widen(row[k - kPad]);
    }
#pragma unroll
    for (int m = 0; m < kStride; ++m) {
      const auto elements = load_vector<T, kLanes>(row + m * kLanes);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) strip[kPad + m * kLanes + v] += widen(elements.lane[v]);
    }
#pragma unroll
    for (int k = kPad + kInside; k < kStrip; ++k) {
      if (first + k - kPad < means.columns.inputs) strip[k] += widen(row[k - kPad]);
    }
  }

  // Columns
  Vector<T, kLanes> values;
#pragma unroll
  for (int v = 0; v < kLanes; ++v) {
    Wide<T> sum = strip[v * kStride];
#pragma unroll
    for (int s = 1; s < kTaps; ++s) sum += strip[v * kStride + s];
    values.lane[v] = Narrow<T>::from(sum / divisor_at<Wide<T>>(means, at.y, at.x * kLanes + v));
  }
  store_vector(
      static_cast<T*>(means.written) + offset_of(means.to, at.n, at.c, at.y, at.x * kLanes),
      values);
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<int32_t>)
    average_columns_kernel(const Means<int32_t> means) {
  constexpr int kLanes = kVectorLanes<T>;

  // Which columns, and the windows over them
  const int64_t thread = int64_t{blockIdx.x} * kPoolThreads + threadIdx.x;
  if (thread >= means.count) return;
  const Place<int32_t> at = place_of(means, static_cast<int32_t>(thread), means.rows.inputs,
                                     means.columns.inputs / kLanes);
  const int32_t w = at.x * kLanes;
  const auto rows = windows_over(means.rows, at.y, at.y);
  const auto columns = windows_over(means.columns, w, w + kLanes - 1);
  const bool divide_terms = means.divisor == 0;
  const T* plane = static_cast<const T*>(means.read) + offset_of(means.from, at.n, at.c, 0, 0);

  // Each window's gradient, to the columns that it holds
  Wide<T> sums[kLanes] = {};
  for (int32_t q = columns.begin; q < columns.end; ++q) {
    Wide<T> gradient = 0;
    for (int32_t p = rows.begin; p < rows.end; ++p) {
      const Wide<T> term = widen(plane[p * means.from[2] + q * means.from[3]]);
      gradient += divide_terms ? term / divisor_at<Wide<T>>(means, p, q) : term;
    }
    const auto window = window_at(means.columns, q);
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
      if (w + v >= window.begin && w + v < window.end) sums[v] += gradient;
    }
  }
  store_quotients<T, kLanes>(
      static_cast<T*>(means.written) + offset_of(means.to, at.n, at.c, at.y, w), sums,
      divide_terms ? Wide<T>(1) : static_cast<Wide<T>>(means.divisor));
}

// Planes of means.columns.inputs elements, one behind the other; kWarpsEach warps add up one.
template <class T, int kLanes, int kWarpsEach>
__global__ void __launch_bounds__(kPoolThreads) average_planes_kernel(const Means<int32_t> means) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t plane =
      static_cast<int32_t>(blockIdx.x) * (kWarps / kWarpsEach) + (kWarpsEach == 1 ? warp : 0);
  const bool works = plane < means.count;

  // Each lane a few vectors
  Wide<T> sums[kLanes] = {};
  if (works) {
    const T* elements = static_cast<const T*>(means.read) + plane / means.C * means.from[0] +
                        plane % means.C * means.from[1];
    const int32_t first = (kWarpsEach == 1 ? lane : static_cast<int>(threadIdx.x)) * kLanes;
    for (int32_t i = first; i < means.columns.inputs; i += kWarpsEach * kWarp * kLanes) {
      const auto vector = load_vector<T, kLanes>(elements + i);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) sums[v] += widen(vector.lane[v]);
    }
  }

  // Lanes, then warps
  Wide<T> sum = 0;
#pragma unroll
  for (int v = 0; v < kLanes; ++v) sum += sums[v];
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  if constexpr (kWarpsEach > 1) {
    Wide<T>* of_threads = reinterpret_cast<Wide<T>*>(dynamic_shared_memory());
    of_threads[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += of_threads[w * kWarp];
  }
  if (!works || lane != 0 || (kWarpsEach > 1 && warp != 0)) return;
  static_cast<T*>(means.written)[plane / means.C * means.to[0] + plane % means.C * means.to[1]] =
      Narrow<T>::from(sum / static_cast<Wide<T>>(means.divisor));
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads) average_wide_kernel(const Means<int32_t> means) {
  constexpr int kLanes = kVectorLanes<T>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  // Which pixel and channels
  int32_t block = static_cast<int32_t>(blockIdx.x);
  const int32_t c = take_axis(block, (means.C + kWarp - 1) / kWarp) * kWarp + lane;
  const int32_t j = take_axis(block, means.columns.outputs);
  const int32_t i = take_axis(block, means.rows.outputs);
  const auto rows = window_at(means.rows, i), columns = window_at(means.columns, j);
  const bool works = c < means.C;

  // Every eighth pixel of the window
  Wide<T> sums[kLanes] = {};
  if (works) {
    const T* pixels = static_cast<const T*>(means.read) + block * means.from[0] + c * kLanes;
    const int32_t width = columns.end - columns.begin;
    for (int32_t pixel = warp; pixel < (rows.end - rows.begin) * width; pixel += kWarps) {
      const int32_t a = rows.begin + pixel / width, b = columns.begin + pixel % width;
      const auto elements = load_vector<T, kLanes>(pixels + a * means.from[2] + b * means.from[3]);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) sums[v] += widen(elements.lane[v]);
    }
  }

  // Warps, in order
  Wide<T>* of_warps = reinterpret_cast<Wide<T>*>(dynamic_shared_memory());
#pragma unroll
  for (int v = 0; v < kLanes; ++v) of_warps[(warp * kLanes + v) * kWarp + lane] = sums[v];
  __syncthreads();
  if (!works || warp != 0) return;
#pragma unroll
  for (int v = 0; v < kLanes; ++v) {
    for (int w = 1; w < kWarps; ++w) sums[v] += of_warps[(w * kLanes + v) * kWarp + lane];
  }
  store_quotients<T, kLanes>(
      static_cast<T*>(means.written) + offset_of(means.to, block, c * kLanes, i, j), sums,
      divisor_at<Wide<T>>(means, i, j));
}

// Is every window the whole plane, and every plane one run of memory?
bool is_plane_mean(const Average& average) {
  const PoolAxis &rows = average.rows, &columns = average.columns;
  if (average.backward || rows.outputs != 1 || columns.outputs != 1) return false;
  const Span all_rows = window_at(rows, 0), all_columns = window_at(columns, 0);
  return all_rows.begin == 0 && all_rows.end == rows.inputs && all_columns.begin == 0 &&
         all_columns.end == columns.inputs && (columns.inputs == 1 || average.read.s[3] == 1) &&
         (rows.inputs == 1 || average.read.s[2] == columns.inputs);
}

template <class T>
const char* launch_planes(const Average& average, const void* read, void* written, void* stream) {
  constexpr int kLanes = kVectorLanes<T>;
  constexpr int32_t kLong = 2048;  // elements worth a block
  Means<int32_t> means = means_of<int32_t>(average, read, written);
  const int32_t length = static_cast<int32_t>(average.rows.inputs * average.columns.inputs);
  means.columns.inputs = length;
  means.count = static_cast<int32_t>(average.N * average.C);
  const bool is_long = length >= kLong;
  const bool vectors = length % kLanes == 0 && means.from[0] % kLanes == 0 &&
                       means.from[1] % kLanes == 0 &&
                       reinterpret_cast<uintptr_t>(read) % kVectorBytes == 0;
  const auto kernel = is_long   ? vectors ? average_planes_kernel<T, kLanes, kWarps>
                                          : average_planes_kernel<T, 1, kWarps>
                        : vectors ? average_planes_kernel<T, kLanes, 1>
                                : average_planes_kernel<T, 1, 1>;
  const int64_t blocks = is_long ? means.count : (int64_t{means.count} + kWarps - 1) / kWarps;
  return launch(kernel, blocks, kPoolThreads, is_long ? kPoolThreads * sizeof(Wide<T>) : 0, stream,
                means);
}

// The kernel of a strip's geometry, or null.
template <class T>
void (*strips_of(const PoolAxis& columns))(const Means<int32_t>) {
  if (columns.adaptive) return nullptr;
  const auto is = [&](int64_t taps, int64_t stride, int64_t pad) {
    return columns.taps == taps && columns.stride == stride && columns.pad == pad;
  };
  if (is(2, 2, 0)) return average_strips_kernel<T, 2, 2, 0>;
  if (is(3, 2, 1)) return average_strips_kernel<T, 3, 2, 1>;
  if (is(3, 1, 1)) return average_strips_kernel<T, 3, 1, 1>;
  return nullptr;
}

template <class T, int kLanes, class Index>
const char* launch_pixels(const Average& average, Means<Index> means, void* stream) {
  const auto kernel = average.backward ? average_pixels_kernel<T, kLanes, Index, true>
                                       : average_pixels_kernel<T, kLanes, Index, false>;
  return launch(kernel, blocks_for(means.count), kPoolThreads, 0, stream, means);
}

template <class T>
const char* launch_channels(const Average& average, Means<int32_t> means, void* stream) {
  constexpr int kLanes = kVectorLanes<T>;
  means.channels_last = true;
  means.C /= kLanes;
  means.count /= kLanes;
  const PoolAxis &rows = average.rows, &columns = average.columns;
  constexpr int64_t kLarge = 4 * kWarps;  // pixels of a window that are worth a block
  if (average.backward || count_at(rows, 0) * count_at(columns, 0) < kLarge)
    return launch_pixels<T, kLanes>(average, means, stream);
  const int64_t blocks =
      average.N * rows.outputs * columns.outputs * ((int64_t{means.C} + kWarp - 1) / kWarp);
  return launch(average_wide_kernel<T>, blocks, kPoolThreads,
                kPoolThreads * kLanes * sizeof(Wide<T>), stream, means);
}

template <class T>
const char* run(const Average& average, const void* read, void* written, void* stream) {
  constexpr int kLanes = kVectorLanes<T>;
  const int64_t bytes = sizeof(T);
  const int64_t written_columns = written_extent(average, average.columns);
  const int64_t read_columns = read_extent(average, average.columns);
  const int64_t elements =
      average.N * average.C * written_extent(average, average.rows) * written_columns;
  if (!fits_int32(average)) {
    Means<int64_t> means = means_of<int64_t>(average, read, written);
    means.count = elements;
    return launch_pixels<T, 1>(average, means, stream);
  }
  if (is_plane_mean(average)) return launch_planes<T>(average, read, written, stream);
  Means<int32_t> means = means_of<int32_t>(average, read, written);
  means.count = static_cast<int32_t>(elements);
  if (moves_in_vectors(read, average.read, 1, average.C, kLanes, bytes) &&
      moves_in_vectors(written, average.written, 1, average.C, kLanes, bytes))
    return launch_channels<T>(average, means, stream);
  if (moves_in_vectors(written, average.written, 3, written_columns, kLanes, bytes)) {
    means.channels_last = false;
    means.count /= kLanes;
    if (average.backward)
      return launch(average_columns_kernel<T>, blocks_for(means.count), kPoolThreads, 0, stream,
                    means);
    const auto strips = strips_of<T>(average.columns);
    if (strips != nullptr && written_columns * average.columns.stride <= read_columns &&
        moves_in_vectors(read, average.read, 3, read_columns, kLanes, bytes))
      return launch(strips, blocks_for(means.count), kPoolThreads, 0, stream, means);
    means.count = static_cast<int32_t>(elements);
    means.channels_last = average.written.s[1] < average.written.s[3];
  }
  return launch_pixels<T, 1>(average, means, stream);
}

}  // namespace

const char* average(const Average& average, const void* read, void* written, void* stream) {
  const int64_t bytes = size_of(average.dtype);
  return in_pieces(average, fits_int32, [&](const Average& piece, int64_t n, int64_t c) {
    const void* piece_read = static_cast<const char*>(read) + offset_of(average.read, n, c) * bytes;
    void* piece_written = static_cast<char*>(written) + offset_of(average.written, n, c) * bytes;
    return with_floating(average.dtype, [&](auto tag) {
      return run<typename decltype(tag)::Type>(piece, piece_read, piece_written, stream);
    });
  });
}

}  // namespace cuda
}  // namespace fastconv
