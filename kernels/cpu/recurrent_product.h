// The product of a recurrent step: a few rows of a state with a weight that is packed once for all
// steps.
//
//   sums[m][v][lane] = sum_k rows[m][k] * panel[k][v][lane]
//
// A panel holds vectors of output columns for every k, k by k: it streams from cache, while rows are
// broadcast from L1 and sums stay in registers. Each sum is one chain over k: results depend neither
// on how many rows or vectors go together nor on threads.
#pragma once
#include "../recurrent.h"
#include "../steps.h"
#include "runs.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int kPanelVectors = 4;
// Sums, the vectors of the panel and a broadcast fill the registers.
constexpr int most_rows(int vectors) {
  if (kVectorRegisters == 32) return vectors <= 3 ? 8 : 6;
  return vectors <= 2 ? 4 : vectors == 3 ? 3 : 2;
}
constexpr int kMostRows = 8;
template <class T>
using RecurrentSums = T[kMostRows * kPanelVectors * Vec<T>::kLanes];

template <class T, int kVectors, int kRows>
__attribute__((noinline)) static void multiply_rows(const T* const* rows, const T* panel, int64_t K,
                                                    T* sums) {
  using V = Vec<T>;
  V sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[m][v] = V::zero();
  for (int64_t k = 0; k < K; ++k, panel += kVectors * V::kLanes) {
    V b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) b[v] = V::load(panel + v * V::kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const V a = V::broadcast(rows[m][k]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = sum[m][v] + a * b[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[m][v].store(sums + (m * kVectors + v) * V::kLanes);
}

template <class T, int kVectors, int kRows = most_rows(kVectors)>
FASTCONV_INLINE void multiply_some_rows(int64_t count, const T* const* rows, const T* panel,
                                        int64_t K, T* sums) {
  if (count == kRows) return multiply_rows<T, kVectors, kRows>(rows, panel, K, sums);
  if constexpr (kRows > 1) multiply_some_rows<T, kVectors, kRows - 1>(count, rows, panel, K, sums);
}

// sums: [count][vectors][lanes]; count in [1, most_rows(vectors)].
template <class T>
static void multiply_panel(int vectors, int64_t count, const T* const* rows, const T* panel,
                           int64_t K, T* sums) {
  switch (vectors) {
    case 1:
      return multiply_some_rows<T, 1>(count, rows, panel, K, sums);
    case 2:
      return multiply_some_rows<T, 2>(count, rows, panel, K, sums);
    case 3:
      return multiply_some_rows<T, 3>(count, rows, panel, K, sums);
    default:
      return multiply_some_rows<T, 4>(count, rows, panel, K, sums);
  }
}

// to[k * step + lane] = from[lane * lane_stride + k * depth_stride], lanes behind `count` zero.
template <class S>
static void pack_lanes(Compute<S>* to, int64_t step, const S* from, int64_t lane_stride,
                       int64_t depth_stride, int64_t K, int64_t count) {
  using V = Vec<Compute<S>>;
  constexpr int64_t kLanes = V::kLanes;
  if (lane_stride == 1 || count <= 0) {
    for (int64_t k = 0; k < K; ++k)
      (count <= 0 ? V::zero() : load_some_as_compute(from + k * depth_stride, count))
          .store(to + k * step);
  } else if (depth_stride == 1) {
    for (int64_t k = 0; k < K; k += kLanes) {
      const int64_t depth = smaller(kLanes, K - k);
      V block[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane)
        block[lane] =
            lane < count ? load_some_as_compute(from + lane * lane_stride + k, depth) : V::zero();
      transpose(block);
      for (int64_t d = 0; d < depth; ++d) block[d].store(to + (k + d) * step);
    }
  } else {
    for (int64_t k = 0; k < K; ++k)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        to[k * step + lane] =
            lane < count ? to_compute(from[lane * lane_stride + k * depth_stride]) : 0;
  }
}

// A weight as panels, a block of output columns each.
//   gates interleaved  vector v of block b: column v * columns + b * lanes, `groups` vectors
//   plain (groups 1)   column (b * vectors + v) * lanes
template <class T>
struct Panels {
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  int64_t depth, columns;  // columns of a group
  int groups, vectors;     // vectors of a block
  T* data;

  int64_t blocks() const { return divide_up(columns, groups > 1 ? kLanes : vectors * kLanes); }
  int64_t elements() const { return blocks() * depth * vectors * kLanes; }
  // Vectors of a block that hold anything.
  int vectors_of(int64_t block) const {
    if (groups > 1) return vectors;
    return static_cast<int>(
        smaller<int64_t>(vectors, divide_up(columns, kLanes) - block * vectors));
  }
  const T* block(int64_t block) const { return data + block * depth * vectors * kLanes; }

  // The weight's element of output column c and depth k is from[c * column_stride + k * depth_stride].
  template <class S>
  void pack(const S* from, int64_t column_stride, int64_t depth_stride) const {
    parallel_for(blocks(), (int64_t{1} << 15) / (depth * vectors * kLanes + 1) + 1,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t b = begin; b < end; ++b) {
                     const int count = vectors_of(b);
                     for (int v = 0; v < count; ++v) {
                       const int64_t first = groups > 1 ? b * kLanes : (b * vectors + v) * kLanes;
                       const int64_t c = groups > 1 ? v * columns + first : first;
                       pack_lanes(data + b * depth * vectors * kLanes + v * kLanes, count * kLanes,
                                  from + c * column_stride, column_stride, depth_stride, depth,
                                  smaller(kLanes, columns - first));
                     }
                   }
                 });
  }
};

// Panels of a plain weight: few vectors per block where that gives every thread some.
template <class T>
static Panels<T> plain_panels(int64_t depth, int64_t columns) {
  const int64_t vectors = divide_up<int64_t>(columns, Vec<T>::kLanes), wanted = 2 * num_threads();
  const int per_block = vectors >= 4 * wanted ? 4 : vectors >= 2 * wanted ? 2 : 1;
  return {depth, columns, 1, per_block, nullptr};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
