// The product of a single step, with a weight as it lies in memory: packing it would cost more.
//
//   sums[m][lane] = sum_k rows[m][k] * weight[lane * stride + k]
//
// Lanes of registers are k; kLanes sums at a time, of some rows and some of the weight's, are added up
// across their lanes together, by a transposition. A weight is read once for four rows, so that one
// row runs at the speed of memory. The order of a sum depends on K alone.
#pragma once
#include "recurrent_product.h"

namespace fastconv::cpu::FASTCONV_ISA {

// kLanes / kRows of the weight's rows, of which `count` are there.
template <class S, int kRows>
__attribute__((noinline)) static void dot_tile(const Compute<S>* const* rows, const S* weight,
                                               int64_t stride, int64_t K, int64_t count,
                                               Compute<S>* sums, int64_t row_step) {
  using T = Compute<S>;
  using V = Vec<T>;
  constexpr int kLanes = V::kLanes, kUnits = kLanes / kRows;
  const S* units[kUnits];
  for (int u = 0; u < kUnits; ++u) units[u] = weight + (u < count ? u : count - 1) * stride;
  V sum[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) sum[i] = V::zero();
  const int64_t whole = K / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    V x[kRows];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) x[m] = V::load(rows[m] + k);
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      const V w = load_as_compute(units[u] + k);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) sum[m * kUnits + u] = sum[m * kUnits + u] + x[m] * w;
    }
  }
  if (whole < K) {
    V x[kRows];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) x[m] = load_some(rows[m] + whole, K - whole);
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      const V w = load_some_as_compute(units[u] + whole, K - whole);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) sum[m * kUnits + u] = sum[m * kUnits + u] + x[m] * w;
    }
  }
  transpose(sum);
  V total = sum[0];
#pragma GCC unroll 16
  for (int i = 1; i < kLanes; ++i) total = total + sum[i];
  T all[kLanes];
  total.store(all);
  for (int m = 0; m < kRows; ++m)
    for (int64_t u = 0; u < smaller<int64_t>(kUnits, count); ++u)
      sums[m * row_step + u] = all[m * kUnits + u];
}

// sums[m * row_step + lane], `count` rows, `lanes` of the weight's.
template <class S>
static void multiply_direct(int64_t count, const Compute<S>* const* rows, const S* weight,
                            int64_t stride, int64_t K, int64_t lanes, Compute<S>* sums,
                            int64_t row_step) {
  constexpr int kLanes = Vec<Compute<S>>::kLanes;
  constexpr int kMost = kLanes >= 4 ? 4 : 2;
  for (int64_t m = 0; m < count;) {
    const int64_t here = count - m >= kMost ? kMost : count - m >= 2 ? 2 : 1;
    const int64_t units = kLanes / here;
    for (int64_t u = 0; u < lanes; u += units) {
      const S* from = weight + u * stride;
      Compute<S>* to = sums + m * row_step + u;
      if (here == 1)
        dot_tile<S, 1>(rows + m, from, stride, K, lanes - u, to, row_step);
      else if (here == 2)
        dot_tile<S, 2>(rows + m, from, stride, K, lanes - u, to, row_step);
      else
        dot_tile<S, kMost>(rows + m, from, stride, K, lanes - u, to, row_step);
    }
    m += here;
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
