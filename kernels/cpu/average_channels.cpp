// Averages where channels lie next to each other (NHWC): lanes are channels.
//
// One task = one row of pixels written, of a block of channels. A pixel's sums stay in registers
// while its span of rows and columns is walked: the sum of a row of the span first, then the sum of
// those, so that no sum has more terms than rows + columns.
// Cost: every element read is loaded once per window that holds it.
#include "../parallel.h"
#include "average.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int kGroup = kVectorRegisters == 32 ? 8 : 4;  // vectors whose sums and row sums fit

template <class S>
struct ChannelAverages {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const Average& g;
  const S* read;
  S* written;

  // What every term is divided by before it is added, if not the sum.
  bool divides_terms() const { return g.backward && g.divisor == 0; }

  FASTCONV_INLINE static Vec<T> load(const S* p, int64_t count) {
    return count == kLanes ? load_as_compute(p) : load_some_as_compute(p, count);
  }

  // kVectors vectors of channels from `base` on, the last of `count` channels.
  template <int kVectors, bool kDividesTerms>
  FASTCONV_INLINE void pixel(const S* base, Span rows, Span columns, S* to, double divisor,
                             int64_t count) const {
    Vec<T> sums[kVectors];
    for (auto& sum : sums) sum = Vec<T>::zero();
    for (int64_t a = rows.begin; a < rows.end; ++a) {
      const S* row = base + a * g.read.s[2];
      Vec<T> row_sums[kVectors];
      for (auto& sum : row_sums) sum = Vec<T>::zero();
      for (int64_t b = columns.begin; b < columns.end; ++b) {
        const S* p = row + b * g.read.s[3];
        if constexpr (kDividesTerms)
          divisor = static_cast<double>(count_at(g.rows, a) * count_at(g.columns, b));
        for (int v = 0; v < kVectors; ++v) {
          Vec<T> term = load(p + v * kLanes, v + 1 < kVectors ? kLanes : count);
          if constexpr (kDividesTerms) term = Divisor<T>(divisor).divide(term);
          row_sums[v] = row_sums[v] + term;
        }
      }
      for (int v = 0; v < kVectors; ++v) sums[v] = sums[v] + row_sums[v];
    }
    const Divisor<T> common(kDividesTerms ? 1.0 : divisor);
    for (int v = 0; v < kVectors; ++v) {
      const Vec<T> result = common.divide(sums[v]);
      if (v + 1 < kVectors || count == kLanes)
        store_from_compute(to + v * kLanes, result);
      else
        store_some_from_compute(to + v * kLanes, result, count);
    }
  }

  template <int kVectors>
  FASTCONV_INLINE void pixel(const S* base, Span rows, Span columns, S* to, double divisor,
                             int64_t count) const {
    if (divides_terms())
      pixel<kVectors, true>(base, rows, columns, to, divisor, count);
    else
      pixel<kVectors, false>(base, rows, columns, to, divisor, count);
  }

  // Channels [c, c_end) of row i of image n.
  void row(int64_t n, int64_t i, int64_t c, int64_t c_end) const {
    const Span rows = span_of(g, g.rows, i);
    const double row_count =
        g.divisor == 0 && !g.backward ? static_cast<double>(count_at(g.rows, i)) : 0;
    for (int64_t j = 0; j < written_extent(g, g.columns); ++j) {
      const Span columns = span_of(g, g.columns, j);
      const double divisor =
          row_count == 0 ? g.divisor : row_count * static_cast<double>(count_at(g.columns, j));
      const S* from = read + n * g.read.s[0];
      S* to = written + n * g.written.s[0] + i * g.written.s[2] + j * g.written.s[3];
      int64_t at = c;
      for (; at + kGroup * kLanes <= c_end; at += kGroup * kLanes)
        pixel<kGroup>(from + at, rows, columns, to + at, divisor, kLanes);
      for (; at + kLanes <= c_end; at += kLanes)
        pixel<1>(from + at, rows, columns, to + at, divisor, kLanes);
      if (at < c_end) pixel<1>(from + at, rows, columns, to + at, divisor, c_end - at);
    }
  }

  void run() const {
    const int64_t block = kGroup * kLanes, blocks = (g.C + block - 1) / block;
    const int64_t lines = g.N * written_extent(g, g.rows);
    const double read_work =
        static_cast<double>(read_extent(g, g.rows) * read_extent(g, g.columns));
    const double written_work =
        static_cast<double>(written_extent(g, g.rows) * written_extent(g, g.columns));
    const double work = (read_work + written_work) * static_cast<double>(smaller(block, g.C)) /
                        static_cast<double>(written_extent(g, g.rows));
    parallel_for(lines * blocks, static_cast<int64_t>(0x1p15 / work) + 1,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t c = task % blocks * block, line = task / blocks;
                     row(line / written_extent(g, g.rows), line % written_extent(g, g.rows), c,
                         smaller(c + block, g.C));
                   }
                 });
  }
};

}  // namespace

void average_channels(const Average& average, const void* read, void* written) {
  with_storage_type(average.dtype, [&](auto zero) {
    using S = decltype(zero);
    ChannelAverages<S>{average, static_cast<const S*>(read), static_cast<S*>(written)}.run();
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
