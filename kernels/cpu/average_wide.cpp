// Averages over large windows one row and one column apart, of rows whose columns lie next to each
// other (NCHW), in a time that hardly depends on the window. Lanes are columns.
//
// One task = a band of output rows of one plane.
//   rows      kBlock output rows at a time share the rows that are under all of their windows; what
//             else each needs are sums of the first few rows from below, and of the last few from
//             above. A column of registers holds them all.
//   columns   the lines of sums, zeros between them, pass through window_sums together.
// Nothing is subtracted: see average_window.h.
// The gradient of such windows with one divisor is such an average too, over the mirrored window.
// Cost of kLanes outputs: (R + kBlock - 1) / kBlock loads for the rows, those of window_sums for the
// columns.
#include "../parallel.h"
#include "../scratch.h"
#include "average.h"
#include "average_window.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kBandElements = 4096;  // of sums: 16 KiB of L1
constexpr int64_t kRowsOfBlocks = 16;    // bands begin at multiples of every kBlock

template <class S>
struct WideWindows {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const Average& g;
  const S* read;
  S* written;
  int64_t pad_h, pad_w;
  const T* column_counts;  // null where all windows have one divisor

  int64_t rows() const { return written_extent(g, g.rows); }
  int64_t columns() const { return written_extent(g, g.columns); }
  int64_t width() const { return read_extent(g, g.columns); }
  // From one line of sums to the next: columns, and zeros that serve the windows of both.
  int64_t pitch() const { return width() + larger(pad_w, columns() + g.columns.taps - 1 - width() - pad_w); }

  // Rows

  // `count` output rows from p on, of the columns [x, x + lanes), into lines from `to` on.
  template <int kBlock>
  FASTCONV_INLINE void block(const S* plane, int64_t p, int64_t count, int64_t lanes, T* to) const {
    const int64_t first = p - pad_h, taps = g.rows.taps, height = read_extent(g, g.rows);
    const auto has = [&](int64_t t) { return first + t >= 0 && first + t < height; };
    const auto row = [&](int64_t t) {
      const S* at = plane + (first + t) * g.read.s[2];
      return lanes == kLanes ? load_as_compute(at) : load_some_as_compute(at, lanes);
    };
    // The first rows, from below
    Vec<T> front[kBlock];
    front[kBlock - 1] = Vec<T>::zero();
#pragma GCC unroll 16
    for (int t = kBlock - 2; t >= 0; --t)
      front[t] = has(t) ? row(t) + front[t + 1] : front[t + 1];
    // The rows under all windows
    Vec<T> common = Vec<T>::zero();
    const int64_t end = smaller(taps, height - first);
    for (int64_t t = larger(int64_t{kBlock - 1}, -first); t < end; ++t) common = common + row(t);
    // The last rows, from above
    const auto store = [&](Vec<T> v, T* at) {
      lanes == kLanes ? v.store(at) : store_some(at, v, lanes);
    };
    store(front[0] + common, to);
    Vec<T> back = Vec<T>::zero();
#pragma GCC unroll 16
    for (int k = 1; k < kBlock; ++k) {
      if (k >= count) break;
      if (has(taps - 1 + k)) back = back + row(taps - 1 + k);
      store((front[k] + common) + back, to + k * pitch());
    }
  }

  // Windows of fewer rows than a block.
  void few(const S* plane, int64_t p, int64_t lanes, T* to) const {
    const int64_t first = p - pad_h, end = smaller(first + g.rows.taps, read_extent(g, g.rows));
    Vec<T> sum = Vec<T>::zero();
    for (int64_t a = larger(first, int64_t{0}); a < end; ++a) {
      const S* at = plane + a * g.read.s[2];
      sum = sum + (lanes == kLanes ? load_as_compute(at) : load_some_as_compute(at, lanes));
    }
    lanes == kLanes ? sum.store(to) : store_some(to, sum, lanes);
  }

  // Lines of sums of output rows [p, p_end); the zeros between lines are there.
  void sum_rows(const S* plane, int64_t p, int64_t p_end, T* lines) const {
    const int64_t taps = g.rows.taps, size = taps < 4 ? 1 : taps < 8 ? 4 : taps < 32 ? 8 : 16;
    for (int64_t i = p; i < p_end; i += size) {
      const int64_t count = smaller(size, p_end - i);
      T* to = lines + (i - p) * pitch() + pad_w;
      for (int64_t x = 0; x < width(); x += kLanes) {
        const int64_t lanes = smaller(kLanes, width() - x);
        if (size == 1)
          few(plane + x, i, lanes, to + x);
        else if (size == 4)
          block<4>(plane + x, i, count, lanes, to + x);
        else if (size == 8)
          block<8>(plane + x, i, count, lanes, to + x);
        else
          block<16>(plane + x, i, count, lanes, to + x);
      }
    }
  }

  // Divides and writes output row i of the sums of its windows.
  void finish(const T* sums, int64_t i, S* to) const {
    const Divisor<T> common(g.divisor != 0 ? g.divisor
                                           : static_cast<double>(count_at(g.rows, i)));
    for (int64_t j = 0; j < columns(); j += kLanes) {
      const int64_t lanes = smaller(kLanes, columns() - j);
      Vec<T> sum = Vec<T>::load(sums + j);
      if (column_counts)
        sum.raw /= (load_some(column_counts + j, lanes) * common.divisor).raw;
      else
        sum = common.divide(sum);
      lanes == kLanes ? store_from_compute(to + j, sum) : store_some_from_compute(to + j, sum, lanes);
    }
  }

  void run() const {
    const int64_t taps = g.columns.taps;
    const int64_t most = larger(kBandElements / pitch() / kRowsOfBlocks, int64_t{1}) * kRowsOfBlocks;
    const int64_t height = smaller(most, rows()), bands = (rows() + height - 1) / height;
    const int64_t length = height * pitch() + taps + 4 * kLanes;
    const double work = static_cast<double>(height) * static_cast<double>(4 * pitch());
    parallel_for(
        g.N * g.C * bands, static_cast<int64_t>(0x1p15 / work) + 1, [&](int64_t begin, int64_t end) {
          const int64_t work_lines = window_lines(taps);
          Scratch<T> lines(length), windows(work_lines * length);
          __builtin_memset(lines.data(), 0, static_cast<unsigned long>(length) * sizeof(T));
          if (work_lines)
            __builtin_memset(windows.data(), 0,
                             static_cast<unsigned long>(work_lines * length) * sizeof(T));
          for (int64_t task = begin; task < end; ++task) {
            const int64_t nc = task / bands, n = nc / g.C, c = nc % g.C;
            const int64_t p = task % bands * height, p_end = smaller(p + height, rows());
            sum_rows(read + n * g.read.s[0] + c * g.read.s[1], p, p_end, lines.data());
            const T* sums =
                window_sums(lines.data(), (p_end - p) * pitch(), taps, windows.data(), length);
            S* to = written + n * g.written.s[0] + c * g.written.s[1];
            for (int64_t i = p; i < p_end; ++i)
              finish(sums + (i - p) * pitch(), i, to + i * g.written.s[2]);
          }
        });
  }
};

}  // namespace

bool average_wide_windows(const Average& g, const void* read, void* written) {
  const PoolAxis &rows = g.rows, &columns = g.columns;
  if (rows.adaptive || columns.adaptive || rows.stride != 1 || columns.stride != 1 ||
      g.read.s[3] != 1 || g.written.s[3] != 1 || (g.backward && g.divisor == 0))
    return false;
  const auto pad_of = [&](const PoolAxis& axis) {
    return g.backward ? axis.taps - 1 - axis.pad : axis.pad;
  };
  with_storage_type(g.dtype, [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    const int64_t counts = g.divisor == 0 ? columns.outputs : 0;
    Scratch<T> column_counts(counts);
    for (int64_t q = 0; q < counts; ++q)
      column_counts.data()[q] = static_cast<T>(count_at(columns, q));
    WideWindows<S>{g,
                   static_cast<const S*>(read),
                   static_cast<S*>(written),
                   pad_of(rows),
                   pad_of(columns),
                   counts ? column_counts.data() : nullptr}
        .run();
  });
  return true;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
