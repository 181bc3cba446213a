// What the kernels of averages share: their parameters, windows, divisions.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/average.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/pool.cuh"

namespace fastconv {
namespace cuda {

// A PoolAxis in the index type that the tensors need.
template <class Index>
struct Axis {
  Index inputs, outputs, taps, stride, pad;
  bool adaptive, counts_padding;
};

// An Average with the pointers.
template <class Index>
struct Means {
  const void* read;
  void* written;
  double divisor;  // 0: every window's own
  Index count;     // threads that have work, or warps
  Index C;         // in units of a thread's channels
  Axis<Index> rows, columns;
  Index from[4], to[4];
  bool channels_last;  // neighbouring threads: neighbouring channels, else columns
};

template <class Index>
Axis<Index> axis_of(const PoolAxis& axis) {
  const auto narrow = [](int64_t x) { return static_cast<Index>(x); };
  return {narrow(axis.inputs), narrow(axis.outputs), narrow(axis.taps),  narrow(axis.stride),
          narrow(axis.pad),    axis.adaptive,        axis.counts_padding};
}

template <class Index>
Means<Index> means_of(const Average& average, const void* read, void* written) {
  Means<Index> means{};
  means.read = read, means.written = written, means.divisor = average.divisor;
  means.C = static_cast<Index>(average.C);
  means.rows = axis_of<Index>(average.rows), means.columns = axis_of<Index>(average.columns);
  for (int axis = 0; axis < 4; ++axis) {
    means.from[axis] = static_cast<Index>(average.read.s[axis]);
    means.to[axis] = static_cast<Index>(average.written.s[axis]);
  }
  means.channels_last = average.written.s[1] < average.written.s[3];
  return means;
}

template <class Index>
struct Range {
  Index begin, end;
};

// What window o holds.
template <class Index>
__device__ __forceinline__ Range<Index> window_at(const Axis<Index>& axis, Index o) {
  if (axis.adaptive) {
    return {quotient(o * axis.inputs, axis.outputs),
            quotient((o + 1) * axis.inputs + axis.outputs - 1, axis.outputs)};
  }
  const Index start = o * axis.stride - axis.pad, end = start + axis.taps;
  return {start < 0 ? 0 : start, end < axis.inputs ? end : axis.inputs};
}

// The windows that hold one of the inputs [first, last].
template <class Index>
__device__ __forceinline__ Range<Index> windows_over(const Axis<Index>& axis, Index first,
                                                     Index last) {
  if (axis.adaptive) {
    return {quotient(first * axis.outputs, axis.inputs),
            quotient((last + 1) * axis.outputs + axis.inputs - 1, axis.inputs)};
  }
  const auto windows =
      windows_over(first, last, axis.taps, axis.stride, axis.pad, Index{1}, axis.outputs);
  return {windows.begin, windows.end};
}

// How many elements window o counts.
template <class Index>
__device__ __forceinline__ Index count_at(const Axis<Index>& axis, Index o) {
  const Range<Index> range = window_at(axis, o);
  if (!axis.counts_padding) return range.end - range.begin;
  const Index start = o * axis.stride - axis.pad, end = start + axis.taps;
  const Index most = axis.inputs + axis.pad;
  return (end < most ? end : most) - start;
}

// The divisor of window p, q. A product of 32 bits could overflow.
template <class W, class Index>
__device__ __forceinline__ W divisor_at(const Means<Index>& means, Index p, Index q) {
  if (means.divisor != 0) return static_cast<W>(means.divisor);
  return static_cast<W>(count_at(means.rows, p)) * static_cast<W>(count_at(means.columns, q));
}

template <class T, int kLanes>
__device__ __forceinline__ void store_quotients(T* to, const Wide<T> (&sums)[kLanes],
                                                Wide<T> divisor) {
  Vector<T, kLanes> values;
#pragma unroll
  for (int v = 0; v < kLanes; ++v) values.lane[v] = Narrow<T>::from(sums[v] / divisor);
  store_vector(to, values);
}

// Does every offset and every coordinate that a kernel computes fit 32 bits?
inline bool fits_int32(const Average& average) {
  constexpr int64_t kLimit = kInt32Limit / 2;  // sums of two such numbers still fit
  const PoolAxis &rows = average.rows, &columns = average.columns;
  const int64_t read_rows = read_extent(average, rows);
  const int64_t read_columns = read_extent(average, columns);
  const int64_t written_rows = written_extent(average, rows);
  const int64_t written_columns = written_extent(average, columns);
  const int64_t numbers[] = {
      average.N * average.C * written_rows * written_columns,
      average.N * average.C * read_rows * read_columns,
      reach(average.read, average.N, average.C, read_rows, read_columns),
      reach(average.written, average.N, average.C, written_rows, written_columns),
      rows.adaptive ? (rows.inputs + 1) * (rows.outputs + 1)
                    : rows.outputs * rows.stride + rows.pad + rows.taps,
      columns.adaptive ? (columns.inputs + 1) * (columns.outputs + 1)
                       : columns.outputs * columns.stride + columns.pad + columns.taps,
  };
  for (const int64_t number : numbers) {
    if (number >= kLimit) return false;
  }
  return true;
}

}  // namespace cuda
}  // namespace fastconv
