// Averages where channels lie next to each other (NHWC): lanes are channels.
//
// One task = one row of pixels written, or a block of its channels. Four ways to a pixel's sum:
//   spans      its rows and columns are walked; its sums, and those of one of its rows, stay in
//              registers: no sum has more terms than rows + columns
//   ring       windows of two or three columns, one column apart: the sums of the last columns
//              stay in registers while the row is walked
//   lines      longer windows one column apart: the sums of columns go to a line in L1, whose
//              windows are summed up in a time that grows with their logarithm
//   images     windows of many pixels: memory is read as it lies, sums are a line of channels in
//              L1; where windows are few, parts of them are summed up side by side, then together
// Cost: spans loads every element once per window that holds it, ring and lines once per row of
// windows, images once.
#include "../parallel.h"
#include "../scratch.h"
#include "average.h"
#include "average_window.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int kGroup = kVectorRegisters == 32 ? 8 : 4;  // vectors whose sums and row sums fit
constexpr int kRing = kGroup / 2;                       // vectors of which three columns fit
constexpr int64_t kManyPixels = 16;                     // of a window
constexpr int64_t kFewWindows = 16;                     // all there are
constexpr int64_t kLineElements = 4096;                 // of a line of sums: 16 KiB of L1

template <class S>
struct ChannelAverages {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const Average& g;
  const S* read;
  S* written;
  const Span* spans;            // of columns written
  const T* column_counts;       // of the windows' columns; null where all have one divisor

  int64_t rows() const { return written_extent(g, g.rows); }
  int64_t columns() const { return written_extent(g, g.columns); }
  bool divides_terms() const { return g.backward && column_counts; }
  const S* pixel_at(int64_t n, int64_t a, int64_t b) const {
    return read + n * g.read.s[0] + a * g.read.s[2] + b * g.read.s[3];
  }
  S* written_at(int64_t n, int64_t i, int64_t j) const {
    return written + n * g.written.s[0] + i * g.written.s[2] + j * g.written.s[3];
  }
  // Of the sum of pixel i, j.
  double divisor_at(int64_t i, int64_t j) const {
    if (!column_counts) return g.divisor;
    return g.backward ? 1.0
                      : static_cast<double>(count_at(g.rows, i)) *
                            static_cast<double>(column_counts[j]);
  }

  FASTCONV_INLINE static Vec<T> load(const S* p, int64_t count) {
    return count == kLanes ? load_as_compute(p) : load_some_as_compute(p, count);
  }
  FASTCONV_INLINE static void store(S* p, Vec<T> v, int64_t count) {
    count == kLanes ? store_from_compute(p, v) : store_some_from_compute(p, v, count);
  }

  // spans

  // Channels [c, c + count) of a pixel: kVectors registers, of which the last has `count` lanes.
  // Several pixels of a row are added up side by side, as registers allow.
  template <int kVectors, bool kDividesTerms>
  FASTCONV_INLINE void sum_span(const S* corner, Span of_rows, Span of_columns, S* to,
                                const Divisor<T>& divisor, int64_t count) const {
    constexpr int kPixels = kDividesTerms ? 1 : kGroup / kVectors;
    const auto lanes = [&](int v) { return v + 1 < kVectors ? kLanes : count; };
    Vec<T> sums[kVectors];
    for (auto& sum : sums) sum = Vec<T>::zero();
    for (int64_t a = of_rows.begin; a < of_rows.end; ++a) {
      const S* row = corner + a * g.read.s[2];
      Vec<T> of_row[kPixels][kVectors];
      for (auto& pixel : of_row)
        for (auto& sum : pixel) sum = Vec<T>::zero();
      int64_t b = of_columns.begin;
      for (; b + kPixels <= of_columns.end; b += kPixels)
        for (int x = 0; x < kPixels; ++x)
          for (int v = 0; v < kVectors; ++v) {
            Vec<T> term = load(row + (b + x) * g.read.s[3] + v * kLanes, lanes(v));
            if constexpr (kDividesTerms)
              term.raw /= Vec<T>::broadcast(static_cast<T>(count_at(g.rows, a)) * column_counts[b])
                              .raw;
            of_row[x][v] = of_row[x][v] + term;
          }
      for (; b < of_columns.end; ++b)
        for (int v = 0; v < kVectors; ++v)
          of_row[0][v] = of_row[0][v] + load(row + b * g.read.s[3] + v * kLanes, lanes(v));
      for (int x = 1; x < kPixels; ++x)
        for (int v = 0; v < kVectors; ++v) of_row[0][v] = of_row[0][v] + of_row[x][v];
      for (int v = 0; v < kVectors; ++v) sums[v] = sums[v] + of_row[0][v];
    }
    for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, divisor.divide(sums[v]), lanes(v));
  }

  template <bool kDividesTerms>
  FASTCONV_INLINE void pixel(const S* corner, Span of_rows, Span of_columns, S* to,
                             const Divisor<T>& divisor, int64_t channels) const {
    int64_t c = 0;
    const auto take = [&](auto vectors, int64_t count) {
      constexpr int kVectors = decltype(vectors)::value;
      sum_span<kVectors, kDividesTerms>(corner + c, of_rows, of_columns, to + c, divisor, count);
      c += kVectors * kLanes;
    };
    while (c + kGroup * kLanes <= channels) take(std::integral_constant<int, kGroup>(), kLanes);
    if (c + 4 * kLanes <= channels) take(std::integral_constant<int, 4>(), kLanes);
    if (c + 2 * kLanes <= channels) take(std::integral_constant<int, 2>(), kLanes);
    if (c + kLanes <= channels) take(std::integral_constant<int, 1>(), kLanes);
    if (c < channels) take(std::integral_constant<int, 1>(), channels - c);
  }

  // Channels [c, c_end) of row i.
  template <bool kDividesTerms>
  void row_by_spans(int64_t n, int64_t i, int64_t c, int64_t c_end) const {
    const Span of_rows = span_of(g, g.rows, i);
    const S* corner = pixel_at(n, 0, 0) + c;
    if (!column_counts || g.backward) {
      const Divisor<T> divisor(divisor_at(i, 0));
      for (int64_t j = 0; j < columns(); ++j)
        pixel<kDividesTerms>(corner, of_rows, spans[j], written_at(n, i, j) + c, divisor,
                             c_end - c);
    } else {
      for (int64_t j = 0; j < columns(); ++j)
        pixel<kDividesTerms>(corner, of_rows, spans[j], written_at(n, i, j) + c,
                             Divisor<T>(divisor_at(i, j)), c_end - c);
    }
  }

  // ring

  // Where the first window begins, of windows one column apart.
  int64_t first_column() const {
    return g.backward ? -(g.columns.taps - 1 - g.columns.pad) : -g.columns.pad;
  }
  bool has_ring() const {
    const PoolAxis& w = g.columns;
    return !w.adaptive && w.stride == 1 && (w.taps == 2 || w.taps == 3) && !divides_terms();
  }

  template <int kTaps, int kVectors>
  FASTCONV_INLINE void ring(int64_t n, int64_t i, int64_t c, int64_t count) const {
    const Span of_rows = span_of(g, g.rows, i);
    const S* corner = pixel_at(n, 0, 0) + c;
    const auto lanes = [&](int v) { return v + 1 < kVectors ? kLanes : count; };
    Vec<T> sums[kTaps][kVectors];
    const auto column = [&](int64_t b, Vec<T>(&sum)[kVectors]) {
      for (auto& each : sum) each = Vec<T>::zero();
      if (b < 0 || b >= read_extent(g, g.columns)) return;
      const S* p = corner + of_rows.begin * g.read.s[2] + b * g.read.s[3];
      for (int64_t a = of_rows.begin; a < of_rows.end; ++a, p += g.read.s[2])
        for (int v = 0; v < kVectors; ++v) sum[v] = sum[v] + load(p + v * kLanes, lanes(v));
    };
    int64_t b = first_column();
    for (int k = 0; k + 1 < kTaps; ++k) column(b++, sums[k]);
    const Divisor<T> common(divisor_at(i, 0));
    for (int64_t j = 0; j < columns(); ++j) {
      column(b++, sums[kTaps - 1]);
      S* to = written_at(n, i, j) + c;
      for (int v = 0; v < kVectors; ++v) {
        Vec<T> sum = sums[0][v];
        for (int k = 1; k < kTaps; ++k) sum = sum + sums[k][v];
        sum = column_counts ? Divisor<T>(divisor_at(i, j)).divide(sum) : common.divide(sum);
        store(to + v * kLanes, sum, lanes(v));
        for (int k = 0; k + 1 < kTaps; ++k) sums[k][v] = sums[k + 1][v];
      }
    }
  }

  template <int kTaps>
  void row_by_ring(int64_t n, int64_t i, int64_t c, int64_t c_end) const {
    for (; c + kRing * kLanes <= c_end; c += kRing * kLanes) ring<kTaps, kRing>(n, i, c, kLanes);
    for (; c + kLanes <= c_end; c += kLanes) ring<kTaps, 1>(n, i, c, kLanes);
    if (c < c_end) ring<kTaps, 1>(n, i, c, c_end - c);
  }

  // lines

  bool has_lines() const {
    const PoolAxis& w = g.columns;
    return !w.adaptive && w.stride == 1 && w.taps > 3 && !divides_terms();
  }

  void row_by_lines(int64_t n, int64_t i, int64_t c, int64_t c_end) const {
    const Span of_rows = span_of(g, g.rows, i);
    const int64_t taps = g.columns.taps, width = columns() + taps - 1, first = first_column();
    const int64_t pitch = smaller(
        larger(kLineElements / width / kLanes * kLanes, kLanes), (c_end - c + kLanes - 1) / kLanes * kLanes);
    const int64_t length = (width + taps) * pitch;
    const int64_t work = window_lines(taps) * length;
    Scratch<T> line(length), windows(work);
    __builtin_memset(line.data(), 0, static_cast<unsigned long>(length) * sizeof(T));
    __builtin_memset(windows.data(), 0, static_cast<unsigned long>(work) * sizeof(T));
    const Divisor<T> common(divisor_at(i, 0));
    for (; c < c_end; c += pitch) {
      const int64_t channels = smaller(pitch, c_end - c);
      for (int64_t x = larger(-first, int64_t{0}); x < width; ++x) {
        if (first + x >= read_extent(g, g.columns)) break;
        const S* p = pixel_at(n, of_rows.begin, first + x) + c;
        for (int64_t l = 0; l < channels; l += kLanes) {
          const int64_t count = smaller(kLanes, channels - l);
          Vec<T> sum = Vec<T>::zero();
          for (int64_t a = 0; a < of_rows.end - of_rows.begin; ++a)
            sum = sum + load(p + a * g.read.s[2] + l, count);
          sum.store(line.data() + x * pitch + l);
        }
      }
      const T* sums = window_sums(line.data(), columns() * pitch, taps, windows.data(), length, pitch);
      for (int64_t j = 0; j < columns(); ++j)
        for (int64_t l = 0; l < channels; l += kLanes) {
          const Vec<T> sum = Vec<T>::load(sums + j * pitch + l);
          store(written_at(n, i, j) + c + l,
                column_counts ? Divisor<T>(divisor_at(i, j)).divide(sum) : common.divide(sum),
                smaller(kLanes, channels - l));
        }
    }
  }

  // images

  // sums[c] += the pixels of rows and columns.
  void add_image(int64_t n, Span of_rows, Span of_columns, T* sums) const {
    for (int64_t a = of_rows.begin; a < of_rows.end; ++a) {
      int64_t b = of_columns.begin;
      for (; b + 4 <= of_columns.end; b += 4) add_pixels<4>(pixel_at(n, a, b), sums);
      for (; b < of_columns.end; ++b) add_pixels<1>(pixel_at(n, a, b), sums);
    }
  }

  template <int kPixels>
  FASTCONV_INLINE void add_pixels(const S* p, T* sums) const {
    for (int64_t c = 0; c < g.C; c += kLanes) {
      const int64_t count = smaller(kLanes, g.C - c);
      Vec<T> sum = load(p + c, count);
      for (int x = 1; x < kPixels; ++x) sum = sum + load(p + x * g.read.s[3] + c, count);
      (Vec<T>::load(sums + c) + sum).store(sums + c);
    }
  }

  void write_sums(int64_t n, int64_t i, int64_t j, const T* sums) const {
    const Divisor<T> divisor(divisor_at(i, j));
    S* to = written_at(n, i, j);
    for (int64_t c = 0; c < g.C; c += kLanes)
      store(to + c, divisor.divide(Vec<T>::load(sums + c)), smaller(kLanes, g.C - c));
  }

  bool has_images() const {
    return !g.backward && g.C >= kLanes && g.rows.outputs > 0 && g.columns.outputs > 0 &&
           g.read.s[2] >= 0 && g.rows.inputs * g.columns.inputs >=
               kManyPixels * g.rows.outputs * g.columns.outputs;
  }

  void run_by_images() const {
    const int64_t windows = g.N * rows() * columns(), pitch = (g.C + kLanes - 1) / kLanes * kLanes;
    const int64_t most_rows = (g.rows.inputs + rows() - 1) / rows();
    const int64_t parts =
        windows < kFewWindows ? smaller((kFewWindows + windows - 1) / windows, most_rows) : 1;
    Scratch<T> partial(parts > 1 ? windows * parts : 0, pitch);
    const double work = static_cast<double>(g.rows.inputs * g.columns.inputs * g.C) /
                        static_cast<double>(rows() * columns() * parts);
    const auto place = [&](int64_t window, int64_t& n, int64_t& i, int64_t& j) {
      j = window % columns(), i = window / columns() % rows(), n = window / columns() / rows();
    };
    parallel_for(windows * parts, static_cast<int64_t>(0x1p15 / work) + 1,
                 [&](int64_t begin, int64_t end) {
                   Scratch<T> own(parts > 1 ? int64_t{0} : pitch);
                   for (int64_t task = begin; task < end; ++task) {
                     int64_t n, i, j;
                     place(task / parts, n, i, j);
                     const Span all = span_of(g, g.rows, i);
                     const int64_t part = task % parts, count = all.end - all.begin;
                     const Span share{all.begin + count * part / parts,
                                      all.begin + count * (part + 1) / parts};
                     T* sums = parts > 1 ? partial.data() + task * pitch : own.data();
                     __builtin_memset(sums, 0, static_cast<unsigned long>(pitch) * sizeof(T));
                     add_image(n, share, spans[j], sums);
                     if (parts == 1) write_sums(n, i, j, sums);
                   }
                 });
    if (parts == 1) return;
    for (int64_t window = 0; window < windows; ++window) {
      int64_t n, i, j;
      place(window, n, i, j);
      T* sums = partial.data() + window * parts * pitch;
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t c = 0; c < pitch; c += kLanes)
          (Vec<T>::load(sums + c) + Vec<T>::load(sums + part * pitch + c)).store(sums + c);
      write_sums(n, i, j, sums);
    }
  }

  void row(int64_t n, int64_t i, int64_t c, int64_t c_end) const {
    if (has_ring())
      g.columns.taps == 3 ? row_by_ring<3>(n, i, c, c_end) : row_by_ring<2>(n, i, c, c_end);
    else if (has_lines())
      row_by_lines(n, i, c, c_end);
    else if (divides_terms())
      row_by_spans<true>(n, i, c, c_end);
    else
      row_by_spans<false>(n, i, c, c_end);
  }

  void run() const {
    if (has_images()) return run_by_images();
    // A task has all channels of a row, unless rows are few
    const int64_t lines = g.N * rows(), group = kGroup * kLanes;
    const int64_t block = lines < kFewWindows ? group : (g.C + kLanes - 1) / kLanes * kLanes;
    const int64_t blocks = (g.C + block - 1) / block;
    const double pixels = static_cast<double>(read_extent(g, g.rows)) *
                              static_cast<double>(read_extent(g, g.columns)) +
                          static_cast<double>(rows()) * static_cast<double>(columns());
    const double work =
        pixels * static_cast<double>(smaller(block, g.C)) / static_cast<double>(rows());
    parallel_for(lines * blocks, static_cast<int64_t>(0x1p15 / work) + 1,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t c = task % blocks * block, line = task / blocks;
                     row(line / rows(), line % rows(), c, smaller(c + block, g.C));
                   }
                 });
  }
};

}  // namespace

void average_channels(const Average& g, const void* read, void* written) {
  const int64_t columns = written_extent(g, g.columns);
  Scratch<Span> spans(columns);
  for (int64_t j = 0; j < columns; ++j) spans.data()[j] = span_of(g, g.columns, j);
  with_storage_type(g.dtype, [&](auto zero) {
    using S = decltype(zero);
    const int64_t counts = g.divisor == 0 ? g.columns.outputs : 0;
    Scratch<Compute<S>> column_counts(counts);
    for (int64_t q = 0; q < counts; ++q)
      column_counts.data()[q] = static_cast<Compute<S>>(count_at(g.columns, q));
    ChannelAverages<S>{g, static_cast<const S*>(read), static_cast<S*>(written), spans.data(),
                       g.divisor == 0 ? column_counts.data() : nullptr}
        .run();
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
