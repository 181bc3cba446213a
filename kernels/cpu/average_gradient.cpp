// The gradient of windows of two or three rows and columns, two apart, of rows whose columns lie next
// to each other (NCHW): lanes are neighbouring windows.
//
// One task = a band of output rows (of the gradient that comes in) of one plane. A block of kLanes
// windows walks down the band; its gradients, divided, make the two columns and the two rows that
// begin under each window: those in one window, and those in two. Each pair of columns is
// interleaved and written; nothing is read again or cleared.
// Cost: two loads and four stores per block of windows.
#include "../parallel.h"
#include "../scratch.h"
#include "average.h"
#include "simd_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kBandElements = 4096;

template <class S, int kTaps>
struct HalvedGradient {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  // Column 2m and column 2m + 1, of kLanes m, summed over the windows of one row that hold them.
  struct Pair {
    Vec<T> even, odd;
  };

  const Average& g;
  const S* read;
  S* written;
  const T* column_counts;  // null where all windows have one divisor

  // Windows [q, q + kLanes) of a row, zero where there are none, each divided.
  template <bool kInside>
  FASTCONV_INLINE Vec<T> divided(const S* row, int64_t p, int64_t q) const {
    const int64_t columns = g.columns.outputs;
    const int64_t begin = q < 0 ? -q : 0, end = smaller(columns - q, kLanes);
    Vec<T> sums;
    if constexpr (kInside)
      sums = load_as_compute(row + q);
    else if (begin < end)
      sums = load_between_as_compute(row + q + begin, begin, end);
    else
      return Vec<T>::zero();
    if (!column_counts) return Divisor<T>(g.divisor).divide(sums);
    const auto of_row = Vec<T>::broadcast(static_cast<T>(count_at(g.rows, p)));
    return {sums.raw / (of_row * Vec<T>::load(column_counts + kLanes + q)).raw};
  }

  template <bool kInside>
  FASTCONV_INLINE Pair pair_of(const S* plane, int64_t p, int64_t m) const {
    if (p < 0 || p >= g.rows.outputs) return {Vec<T>::zero(), Vec<T>::zero()};
    const S* row = plane + p * g.read.s[2];
    const Vec<T> own = divided<kInside>(row, p, m);
    if (g.columns.pad == 0) {
      if constexpr (kTaps == 2) return {own, own};
      return {own + divided<kInside>(row, p, m - 1), own};
    }
    const Vec<T> next = divided<kInside>(row, p, m + 1);
    if constexpr (kTaps == 2) return {own, next};
    return {own, own + next};
  }

  FASTCONV_INLINE static Pair sum_of(Pair a, Pair b) { return {a.even + b.even, a.odd + b.odd}; }

  void write(Pair pair, S* to, int64_t h, int64_t m) const {
    if (h >= g.rows.inputs) return;
    S* const at = to + h * g.written.s[2] + 2 * m;
    const Vec<T> front = interleave<false>(pair.even, pair.odd);
    const Vec<T> back = interleave<true>(pair.even, pair.odd);
    const int64_t count = g.columns.inputs - 2 * m;
    count >= kLanes ? store_from_compute(at, front) : store_some_from_compute(at, front, count);
    if (count >= 2 * kLanes)
      store_from_compute(at + kLanes, back);
    else if (count > kLanes)
      store_some_from_compute(at + kLanes, back, count - kLanes);
  }

  // Rows 2k and 2k + 1, [k, k_end), of columns from 2m on.
  template <bool kInside>
  FASTCONV_INLINE void block(const S* plane, S* to, int64_t k, int64_t k_end, int64_t m) const {
    if (g.rows.pad == 0) {
      Pair before = kTaps == 3 ? pair_of<kInside>(plane, k - 1, m) : Pair{};
      for (; k < k_end; ++k) {
        const Pair own = pair_of<kInside>(plane, k, m);
        write(kTaps == 3 ? sum_of(own, before) : own, to, 2 * k, m);
        write(own, to, 2 * k + 1, m);
        before = own;
      }
    } else {
      Pair own = pair_of<kInside>(plane, k, m);
      for (; k < k_end; ++k) {
        const Pair next = pair_of<kInside>(plane, k + 1, m);
        write(own, to, 2 * k, m);
        write(kTaps == 3 ? sum_of(own, next) : next, to, 2 * k + 1, m);
        own = next;
      }
    }
  }

  void run() const {
    const int64_t pairs = (g.rows.inputs + 1) / 2, columns = (g.columns.inputs + 1) / 2;
    const int64_t height =
        smaller(larger(kBandElements / (4 * columns), int64_t{4}), pairs);
    const int64_t bands = (pairs + height - 1) / height;
    const double work = static_cast<double>(height) * static_cast<double>(5 * columns);
    parallel_for(
        g.N * g.C * bands, static_cast<int64_t>(0x1p15 / work) + 1, [&](int64_t begin, int64_t end) {
          for (int64_t task = begin; task < end; ++task) {
            const int64_t nc = task / bands, n = nc / g.C, c = nc % g.C;
            const int64_t k = task % bands * height, k_end = smaller(k + height, pairs);
            const S* plane = read + n * g.read.s[0] + c * g.read.s[1];
            S* to = written + n * g.written.s[0] + c * g.written.s[1];
            for (int64_t m = 0; m < columns; m += kLanes) {
              if (m >= 1 && m + kLanes + 1 <= g.columns.outputs)
                block<true>(plane, to, k, k_end, m);
              else
                block<false>(plane, to, k, k_end, m);
            }
          }
        });
  }
};

}  // namespace

bool average_halved_gradient(const Average& g, const void* read, void* written) {
  const PoolAxis &rows = g.rows, &columns = g.columns;
  const int64_t taps = rows.taps;
  if (!g.backward || rows.adaptive || columns.adaptive || rows.stride != 2 || columns.stride != 2 ||
      columns.taps != taps || (taps != 2 && taps != 3) || g.read.s[3] != 1 || g.written.s[3] != 1)
    return false;
  with_storage_type(g.dtype, [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const bool counts = g.divisor == 0;
    Scratch<T> column_counts(counts ? columns.outputs + 3 * kLanes : 0);
    for (int64_t q = -kLanes; counts && q < columns.outputs + 2 * kLanes; ++q)
      column_counts.data()[q + kLanes] =
          q < 0 || q >= columns.outputs ? T{1} : static_cast<T>(count_at(columns, q));
    const auto run = [&](const auto& gradient) { gradient.run(); };
    const S* from = static_cast<const S*>(read);
    S* to = static_cast<S*>(written);
    const T* each = counts ? column_counts.data() : nullptr;
    taps == 2 ? run(HalvedGradient<S, 2>{g, from, to, each})
              : run(HalvedGradient<S, 3>{g, from, to, each});
  });
  return true;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
