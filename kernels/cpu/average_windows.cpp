// Averages over small windows of rows whose columns lie next to each other (NCHW): sums that never
// leave the registers. Lanes are neighbouring windows of a row.
//
// One task = a band of output rows of one plane, short enough for its input to stay in L1. A block
// of kLanes windows walks down the band: of each input row, the taps across are loaded and added
// up once; the sums of the rows that the next windows share are kept.
// The gradient of windows one row and one column apart with one divisor is such an average too,
// over the mirrored window.
// Cost: kTaps loads per input row and block of windows.
#include "../parallel.h"
#include "../scratch.h"
#include "average.h"
#include "simd_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kBandElements = 4096;

// Windows of kRows x kTaps, kDown x kAcross apart.
template <class S, int kRows, int kDown, int kTaps, int kAcross>
struct SmallWindows {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  static constexpr int kKept = kRows > kDown ? kRows - kDown : 0;

  const Average& g;
  const S* read;
  S* written;
  int64_t pad_h, pad_w;
  const T* column_counts;  // null where all windows have one divisor

  int64_t read_rows() const { return read_extent(g, g.rows); }
  int64_t read_columns() const { return read_extent(g, g.columns); }

  // Columns [c, c + kLanes) of a row, zero where there are none.
  template <bool kInside>
  FASTCONV_INLINE Vec<T> columns_at(const S* row, int64_t c) const {
    if constexpr (kInside) return load_as_compute(row + c);
    const int64_t begin = c < 0 ? -c : 0, end = smaller(read_columns() - c, kLanes);
    return begin < end ? load_between_as_compute(row + c + begin, begin, end) : Vec<T>::zero();
  }

  // The taps across of kLanes windows, of which the first begins at column c, summed.
  template <bool kInside>
  FASTCONV_INLINE Vec<T> across(const S* row, int64_t c) const {
    Vec<T> sum = columns_at<kInside>(row, c);
    if constexpr (kAcross == 1) {
#pragma GCC unroll 4
      for (int s = 1; s < kTaps; ++s) sum = sum + columns_at<kInside>(row, c + s);
    } else {
      const Vec<T> next = columns_at<kInside>(row, c + kLanes);
      const Vec<T> first = even_lanes(sum, next);
      sum = first + odd_lanes(sum, next);
      if constexpr (kTaps == 3)
        sum = sum + even_lanes(columns_at<kInside>(row, c + 2),
                               columns_at<kInside>(row, c + 2 + kLanes));
    }
    return sum;
  }

  // Windows [q, q + count) of output rows [p, p_end).
  template <bool kInside>
  FASTCONV_INLINE void block(const S* plane, S* to, int64_t p, int64_t p_end, int64_t q,
                             int64_t count) const {
    const int64_t c = q * kAcross - pad_w, rows = read_rows();
    const auto row_sum = [&](int64_t a) {
      return a >= 0 && a < rows ? across<kInside>(plane + a * g.read.s[2], c) : Vec<T>::zero();
    };
    const Divisor<T> common(g.divisor != 0 ? g.divisor : 1.0);
    Vec<T> of_columns = common.divisor;
    if (column_counts) of_columns = load_some(column_counts + q, count);
    int64_t a = p * kDown - pad_h;
    Vec<T> sums[kRows];
    for (int k = 0; k < kKept; ++k) sums[k] = row_sum(a + k);
    for (; p < p_end; ++p, a += kDown) {
#pragma GCC unroll 4
      for (int k = kKept; k < kRows; ++k) sums[k] = row_sum(a + k);
      Vec<T> sum = sums[0];
#pragma GCC unroll 4
      for (int k = 1; k < kRows; ++k) sum = sum + sums[k];
      if (column_counts) {
        const auto of_row = Vec<T>::broadcast(static_cast<T>(count_at(g.rows, p)));
        sum.raw /= (of_row * of_columns).raw;
      } else {
        sum = common.divide(sum);
      }
      S* const at = to + p * g.written.s[2] + q;
      if (count == kLanes)
        store_from_compute(at, sum);
      else
        store_some_from_compute(at, sum, count);
#pragma GCC unroll 4
      for (int k = 0; k < kKept; ++k) sums[k] = sums[k + kDown];
    }
  }

  // A last block of fewer windows begins earlier, where there are enough.
  void band(const S* plane, S* to, int64_t p, int64_t p_end) const {
    const int64_t columns = written_extent(g, g.columns);
    for (int64_t q = 0; q < columns; q += kLanes) {
      const int64_t first = larger(smaller(q, columns - kLanes), int64_t{0});
      const int64_t count = smaller(kLanes, columns);
      // The last element that a block of whole registers loads, and the first
      const int64_t begin = first * kAcross - pad_w;
      const int64_t reach = kAcross * kLanes + (kTaps > kAcross ? kTaps - kAcross : 0);
      if (begin >= 0 && begin + reach + (kAcross - 1) <= read_columns())
        block<true>(plane, to, p, p_end, first, count);
      else
        block<false>(plane, to, p, p_end, first, count);
    }
  }

  void run() const {
    const int64_t rows = written_extent(g, g.rows);
    const int64_t height =
        smaller(larger(kBandElements / (kDown * read_columns()), int64_t{4}), rows);
    const int64_t bands = (rows + height - 1) / height;
    const double work = static_cast<double>(height * (written_extent(g, g.columns) +
                                                      kDown * read_columns()));
    parallel_for(g.N * g.C * bands, static_cast<int64_t>(0x1p15 / work) + 1,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t nc = task / bands, n = nc / g.C, c = nc % g.C;
                     const int64_t p = task % bands * height;
                     band(read + n * g.read.s[0] + c * g.read.s[1],
                          written + n * g.written.s[0] + c * g.written.s[1], p,
                          smaller(p + height, rows));
                   }
                 });
  }
};

template <class S, int kRows, int kDown, int kTaps, int kAcross>
void run(const Average& g, const void* read, void* written) {
  using T = Compute<S>;
  const bool counts = g.divisor == 0;
  Scratch<T> column_counts(counts ? g.columns.outputs : 0);
  for (int64_t q = 0; counts && q < g.columns.outputs; ++q)
    column_counts.data()[q] = static_cast<T>(count_at(g.columns, q));
  const auto pad_of = [&](const PoolAxis& axis) {
    return g.backward ? axis.taps - 1 - axis.pad : axis.pad;
  };
  SmallWindows<S, kRows, kDown, kTaps, kAcross>{g,
                                                static_cast<const S*>(read),
                                                static_cast<S*>(written),
                                                pad_of(g.rows),
                                                pad_of(g.columns),
                                                counts ? column_counts.data() : nullptr}
      .run();
}

}  // namespace

bool average_small_windows(const Average& g, const void* read, void* written) {
  const PoolAxis &rows = g.rows, &columns = g.columns;
  if (rows.adaptive || columns.adaptive || g.read.s[3] != 1 || g.written.s[3] != 1) return false;
  const auto is = [&](int64_t taps, int64_t stride) {
    return rows.taps == taps && columns.taps == taps && rows.stride == stride &&
           columns.stride == stride;
  };
  if (g.backward && (g.divisor == 0 || !(is(2, 1) || is(3, 1)))) return false;
  const bool known = is(2, 2) || is(3, 2) || is(3, 1) || is(2, 1);
  if (known)
    with_storage_type(g.dtype, [&](auto zero) {
      using S = decltype(zero);
      if (is(2, 2)) run<S, 2, 2, 2, 2>(g, read, written);
      if (is(3, 2)) run<S, 3, 2, 3, 2>(g, read, written);
      if (is(3, 1)) run<S, 3, 1, 3, 1>(g, read, written);
      if (is(2, 1)) run<S, 2, 1, 2, 1>(g, read, written);
    });
  return known;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
