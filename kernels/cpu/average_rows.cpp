// Averages of any layout, made for rows whose columns lie next to each other (NCHW): lanes are
// columns.
//
// Rows first, then columns: the rows of a line's span are added up into a line of sums in L1, whose
// spans of columns are added up into the line that is written. Several lines of sums stand one
// behind the other and pass through each step together.
// How spans of columns are summed:
//   kShifted   windows one column apart: sums of neighbours, in a time that grows with the
//              logarithm of the window
//   kPicked    windows further apart: every stride-th of the above
//   kExpanded  the gradient of those: columns between two starts of windows have the same sum
//   kListed    spans of different sizes, one by one
// Cost: every element read is loaded rows-of-its-spans times; the rest is in L1.
#include "../parallel.h"
#include "../scratch.h"
#include "average.h"
#include "average_window.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kLineSums = 4096;  // of all lines that pass together: 16 KiB of L1
constexpr int64_t kMostLines = 64;
constexpr int64_t kSegmentColumns = 2048;  // written at once: longer lines go piece by piece

enum class Columns { kShifted, kPicked, kExpanded, kListed };

// A piece of a line: the columns written, and the line of sums that they need: the first of its
// columns, possibly before what can be read, and how many.
struct Segment {
  int64_t begin, count;
  int64_t first, length;
};

template <class S>
struct RowAverages {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const Average& g;
  const S* read;
  S* written;

  FASTCONV_INLINE static Vec<T> load(const S* p, int64_t count) {
    return count == kLanes ? load_as_compute(p) : load_some_as_compute(p, count);
  }

  Columns columns() const {
    const PoolAxis& w = g.columns;
    if (w.adaptive) return Columns::kListed;
    if (w.stride == 1) return Columns::kShifted;
    return g.backward ? Columns::kExpanded : Columns::kPicked;
  }

  // Of windows that hold one column, the most there are.
  int64_t overlap() const { return (g.columns.taps + g.columns.stride - 1) / g.columns.stride; }

  Segment segment(int64_t begin, int64_t count) const {
    const PoolAxis& w = g.columns;
    const int64_t last = begin + count - 1;
    switch (columns()) {
      case Columns::kShifted:
        return {begin, count, begin - (g.backward ? w.taps - 1 - w.pad : w.pad),
                count + w.taps - 1};
      case Columns::kPicked:
        return {begin, count, begin * w.stride - w.pad, (count - 1) * w.stride + w.taps};
      case Columns::kExpanded: {
        const int64_t start = (begin + w.pad) / w.stride - (overlap() - 1);
        return {begin, count, start, (last + w.pad) / w.stride - start + 1};
      }
      case Columns::kListed:
        break;
    }
    const int64_t start = span_of(g, g.columns, begin).begin;
    return {begin, count, start, larger(span_of(g, g.columns, last).end - start, int64_t{1})};
  }

  // Rows of sums

  // to[x] = sum of rows[a][x] over `count` rows, for kVectors vectors of which the last has `lanes`.
  template <int kVectors>
  FASTCONV_INLINE void add_rows(const S* rows, int64_t count, T* to, int64_t lanes) const {
    Vec<T> sums[kVectors];
    for (int v = 0; v < kVectors; ++v)
      sums[v] = load(rows + v * kLanes, v + 1 < kVectors ? kLanes : lanes);
    for (int64_t a = 1; a < count; ++a)
      for (int v = 0; v < kVectors; ++v)
        sums[v] =
            sums[v] + load(rows + a * g.read.s[2] + v * kLanes, v + 1 < kVectors ? kLanes : lanes);
    for (int v = 0; v < kVectors; ++v) sums[v].store(to + v * kLanes);
  }

  void add_rows(const S* rows, int64_t count, int64_t length, T* to) const {
    for (int64_t x = 0; x < length; x += 4 * kLanes) {
      const int64_t rest = length - x, last = (rest - 1) % kLanes + 1;
      if (rest >= 4 * kLanes)
        add_rows<4>(rows + x, count, to + x, kLanes);
      else if (rest > 3 * kLanes)
        add_rows<4>(rows + x, count, to + x, last);
      else if (rest > 2 * kLanes)
        add_rows<3>(rows + x, count, to + x, last);
      else if (rest > kLanes)
        add_rows<2>(rows + x, count, to + x, last);
      else
        add_rows<1>(rows + x, count, to + x, last);
    }
  }

  // The same where every term has a divisor of its own: that of its row times that of its column.
  void add_divided_rows(const S* rows, Span span, int64_t length, const T* divisors, T* to) const {
    int64_t alike = span.begin < span.end ? count_at(g.rows, span.begin) : 1;  // 0: they differ
    for (int64_t a = span.begin; a < span.end; ++a)
      if (count_at(g.rows, a) != alike) alike = 0;
    for (int64_t x = 0; x < length; x += kLanes) {
      const int64_t lanes = smaller(kLanes, length - x);
      const Vec<T> of_columns = Vec<T>::load(divisors + x);
      Vec<T> sum = Vec<T>::zero();
      if (alike) {
        for (int64_t a = 0; a < span.end - span.begin; ++a)
          sum = sum + load(rows + a * g.read.s[2] + x, lanes);
        sum.raw /= (Vec<T>::broadcast(static_cast<T>(alike)) * of_columns).raw;
        sum.store(to + x);
        continue;
      }
      for (int64_t a = span.begin; a < span.end; ++a) {
        const Vec<T> of_row = Vec<T>::broadcast(static_cast<T>(count_at(g.rows, a)));
        const Vec<T> term = load(rows + (a - span.begin) * g.read.s[2] + x, lanes);
        sum.raw += term.raw / (of_row * of_columns).raw;
      }
      sum.store(to + x);
    }
  }

  void add_scattered_rows(const S* rows, Span span, int64_t length, const T* divisors,
                          T* to) const {
    for (int64_t x = 0; x < length; ++x) {
      T sum = 0;
      for (int64_t a = span.begin; a < span.end; ++a) {
        const T term = to_compute(rows[(a - span.begin) * g.read.s[2] + x * g.read.s[3]]);
        sum += divisors ? term / (static_cast<T>(count_at(g.rows, a)) * divisors[x]) : term;
      }
      to[x] = sum;
    }
  }

  // The line of sums of a segment; columns that cannot be read are zero already.
  void sum_rows(const S* plane, Span span, const Segment& s, const T* divisors, T* line) const {
    const int64_t begin = larger(s.first, int64_t{0});
    const int64_t length = smaller(s.first + s.length, read_extent(g, g.columns)) - begin;
    if (length <= 0) return;
    const S* rows = plane + span.begin * g.read.s[2] + begin * g.read.s[3];
    T* to = line + (begin - s.first);
    if (g.read.s[3] != 1)
      add_scattered_rows(rows, span, length, divisors, to);
    else if (divisors)
      add_divided_rows(rows, span, length, divisors, to);
    else if (span.begin == span.end)
      __builtin_memset(to, 0, static_cast<unsigned long>(length) * sizeof(T));
    else
      add_rows(rows, span.end - span.begin, length, to);
  }

  // Columns of sums

  // Columns [begin, begin + count) of what is written, before the division.
  const T* spread(const Segment& s, const T* sums, const T* fewer, T* line) const {
    const PoolAxis& w = g.columns;
    switch (columns()) {
      case Columns::kShifted:
        return sums;
      case Columns::kPicked:
        for (int64_t j = 0; j < s.count; ++j) line[j] = sums[j * w.stride];
        return line;
      case Columns::kExpanded: {
        // Of the columns from one start of a window to the next, the first few are in one window
        // more than the rest. Stores reach over what later ones write.
        const int64_t blocks = s.length - (overlap() - 1);
        const int64_t more = w.taps - (overlap() - 1) * w.stride;
        for (int64_t k = 0; k < blocks; ++k) {
          fill(line + k * w.stride, sums[k], more);
          if (more < w.stride) fill(line + k * w.stride + more, fewer[k], w.stride - more);
        }
        return line + (s.begin + w.pad) % w.stride;
      }
      case Columns::kListed:
        break;
    }
    for (int64_t j = 0; j < s.count; ++j) {
      const Span span = span_of(g, g.columns, s.begin + j);
      T sum = 0;
      for (int64_t b = span.begin; b < span.end; ++b) sum += sums[b - s.first];
      line[j] = sum;
    }
    return line;
  }

  FASTCONV_INLINE static void fill(T* p, T value, int64_t count) {
    const Vec<T> values = Vec<T>::broadcast(value);
    for (int64_t x = 0; x < count; x += kLanes) values.store(p + x);
  }

  // Divides and writes; `divisors`, if not null, are those of the columns.
  void finish(const T* line, int64_t count, double divisor, const T* divisors, S* to) const {
    const Divisor<T> common(divisor);
    for (int64_t x = 0; x < count; x += kLanes) {
      const int64_t lanes = smaller(kLanes, count - x);
      Vec<T> sum = Vec<T>::load(line + x);
      if (divisors)
        sum.raw /= (Vec<T>::load(divisors + x) * common.divisor).raw;
      else
        sum = common.divide(sum);
      if (g.written.s[3] == 1) {
        lanes == kLanes ? store_from_compute(to + x, sum)
                        : store_some_from_compute(to + x, sum, lanes);
      } else {
        for (int64_t l = 0; l < lanes; ++l)
          to[(x + l) * g.written.s[3]] = from_compute<S>(sum.raw[l]);
      }
    }
  }

  // Lines

  // Taps of the windows of sums.
  int64_t taps() const {
    switch (columns()) {
      case Columns::kExpanded:
        return overlap();
      case Columns::kListed:
        return 1;
      default:
        return g.columns.taps;
    }
  }

  struct Buffers {
    T *sums, *windows, *fewer, *spread, *divisors;
    int64_t lines, pitch, length;  // length: of all lines, with what is read beyond
  };

  static bool same(Span a, Span b) { return a.begin == b.begin && a.end == b.end; }

  // Lines [begin, end) of one segment; a line is a row of a plane: n, c, i.
  void lines(int64_t begin, int64_t end, const Segment& s, const Buffers& b) const {
    const int64_t rows = written_extent(g, g.rows);
    const T* divisors = g.divisor == 0 && g.backward ? b.divisors : nullptr;
    while (begin < end) {
      // As many lines as pass together; rows of one span are one line
      int64_t at[kMostLines + 1], count = 0;
      for (; count < b.lines && begin < end; ++count) {
        const int64_t nc = begin / rows;
        const Span span = span_of(g, g.rows, begin % rows);
        const S* plane = read + nc / g.C * g.read.s[0] + nc % g.C * g.read.s[1];
        sum_rows(plane, span, s, divisors, b.sums + count * b.pitch);
        at[count] = begin++;
        while (begin < end && begin % rows != 0 && same(span, span_of(g, g.rows, begin % rows)))
          ++begin;
      }
      at[count] = begin;
      // Windows
      const T* windows = window_sums(b.sums, count * b.pitch, taps(), b.windows, b.length);
      const T* fewer = b.fewer;
      if (columns() == Columns::kExpanded && taps() > 1)
        fewer = window_sums(b.sums + 1, count * b.pitch, taps() - 1, b.fewer, b.length);
      // Division
      for (int64_t k = 0; k < count; ++k) {
        const T* line = spread(s, windows + k * b.pitch, fewer + k * b.pitch, b.spread);
        for (int64_t l = at[k]; l < at[k + 1]; ++l) write(l, s, b, line);
      }
    }
  }

  void write(int64_t l, const Segment& s, const Buffers& b, const T* line) const {
    const int64_t rows = written_extent(g, g.rows), nc = l / rows, i = l % rows;
    S* to = written + nc / g.C * g.written.s[0] + nc % g.C * g.written.s[1] + i * g.written.s[2] +
            s.begin * g.written.s[3];
    if (g.divisor != 0)
      finish(line, s.count, g.divisor, nullptr, to);
    else if (g.backward)
      finish(line, s.count, 1.0, nullptr, to);
    else
      finish(line, s.count, static_cast<double>(count_at(g.rows, i)), b.divisors, to);
  }

  // Gives lines [begin, end) of a segment their buffers.
  void segment_lines(int64_t begin, int64_t end, const Segment& s) const {
    const int64_t pitch = (s.length + kLanes - 1) / kLanes * kLanes;
    const int64_t count =
        larger(smaller(smaller(kLineSums / pitch, kMostLines), end - begin), int64_t{1});
    const int64_t length = (count + 1) * pitch + 2 * kLanes;
    const int64_t spread = s.count + (columns() == Columns::kExpanded ? 2 * g.columns.stride : 0);
    const int64_t work = window_lines(taps()), less = window_lines(taps() - 1) + 1;
    Scratch<T> sums(length), windows(work * length), fewer(less * length),
        spread_line(spread + 2 * kLanes), divisors(larger(s.length, s.count) + kLanes);
    clear(sums.data(), length);
    clear(windows.data(), work * length);
    clear(fewer.data(), less * length);
    const Buffers b{sums.data(),     windows.data(), fewer.data(), spread_line.data(),
                    divisors.data(), count,          pitch,        length};
    if (g.divisor == 0) {
      const int64_t first = g.backward ? larger(s.first, int64_t{0}) : s.begin;
      const int64_t end =
          g.backward ? smaller(s.first + s.length, read_extent(g, g.columns)) : s.begin + s.count;
      for (int64_t x = 0; x < larger(s.length, s.count) + kLanes; ++x)
        b.divisors[x] = first + x < end ? static_cast<T>(count_at(g.columns, first + x)) : T{1};
    }
    lines(begin, end, s, b);
  }

  FASTCONV_INLINE static void clear(T* p, int64_t count) {
    if (count) __builtin_memset(p, 0, static_cast<unsigned long>(count) * sizeof(T));
  }

  void run() const {
    const int64_t lines = g.N * g.C * written_extent(g, g.rows),
                  columns = written_extent(g, g.columns);
    const int64_t segments = (columns + kSegmentColumns - 1) / kSegmentColumns;
    const double planes = static_cast<double>(g.N * g.C);
    const double elements =
        planes * static_cast<double>(read_extent(g, g.rows) * read_extent(g, g.columns)) +
        planes * static_cast<double>(written_extent(g, g.rows) * columns);
    const double work = elements / static_cast<double>(lines * segments);
    parallel_for(lines * segments, static_cast<int64_t>(0x1p15 / work) + 1,
                 [&](int64_t begin, int64_t end) {
                   while (begin < end) {
                     const int64_t first = begin / lines * kSegmentColumns, line = begin % lines;
                     const int64_t count = smaller(end - begin, lines - line);
                     segment_lines(line, line + count,
                                   segment(first, smaller(kSegmentColumns, columns - first)));
                     begin += count;
                   }
                 });
  }
};

}  // namespace

void average_rows(const Average& average, const void* read, void* written) {
  with_storage_type(average.dtype, [&](auto zero) {
    using S = decltype(zero);
    RowAverages<S>{average, static_cast<const S*>(read), static_cast<S*>(written)}.run();
  });
}

void average(const Average& average, const void* read, void* written) {
  if (average.read.s[1] == 1 && average.written.s[1] == 1 && average.C > 1)
    average_channels(average, read, written);
  else if (!average_planes(average, read, written) &&
           !average_small_windows(average, read, written) &&
           !average_wide_windows(average, read, written) &&
           !average_halved_gradient(average, read, written))
    average_rows(average, read, written);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
