// The mean of whole planes that lie in memory as one run each (NCHW), and its gradient: lanes are
// neighbours of a run.
//
//   written[n,c] = sum_i read[n,c,i] / divisor          written[n,c,i] = read[n,c] / divisor
//
// One task = kLanes planes, whose sums of lanes are transposed and added up together; where planes
// are few and long, parts of one are summed up side by side, then together.
// Cost: one load, or store, per register of a plane.
#include "../parallel.h"
#include "../scratch.h"
#include "average.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kFewPlanes = 16;
constexpr int64_t kPartElements = 8192;    // of a part, at least
constexpr int64_t kChunkElements = 16384;  // that are summed up for themselves: short sums err less

template <class S>
struct PlaneAverages {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  static constexpr int kSums = 4;

  const Average& g;
  const S* read;
  S* written;

  const S* read_at(int64_t nc) const {
    return read + nc / g.C * g.read.s[0] + nc % g.C * g.read.s[1];
  }
  S* written_at(int64_t nc) const {
    return written + nc / g.C * g.written.s[0] + nc % g.C * g.written.s[1];
  }

  // The sum of p[i], [begin, end), spread over the lanes.
  FASTCONV_INLINE static Vec<T> sum_of_chunk(const S* p, int64_t count) {
    Vec<T> sums[kSums];
    for (auto& sum : sums) sum = Vec<T>::zero();
    int64_t i = 0;
    for (; i + kSums * kLanes <= count; i += kSums * kLanes)
      for (int k = 0; k < kSums; ++k) sums[k] = sums[k] + load_as_compute(p + i + k * kLanes);
    for (int k = 0; k + 1 < kSums && i + kLanes <= count; ++k, i += kLanes)
      sums[k] = sums[k] + load_as_compute(p + i);
    if (i < count) sums[kSums - 1] = sums[kSums - 1] + load_some_as_compute(p + i, count - i);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  static Vec<T> sum_of(const S* p, int64_t begin, int64_t end) {
    Vec<T> sum = Vec<T>::zero();
    for (; begin < end; begin += kChunkElements)
      sum = sum + sum_of_chunk(p + begin, smaller(kChunkElements, end - begin));
    return sum;
  }

  // Lane k is the sum of the lanes of v[k].
  FASTCONV_INLINE static Vec<T> add_lanes(Vec<T> (&v)[kLanes]) {
    transpose(v);
#pragma GCC unroll 4
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
#pragma GCC unroll 8
      for (int64_t k = 0; k < width; ++k) v[k] = v[k] + v[k + width];
    return v[0];
  }

  void means_of(int64_t nc, int64_t count, int64_t length) const {
    const Divisor<T> divisor(g.divisor);
    Vec<T> sums[kLanes];
    for (int64_t k = 0; k < kLanes; ++k)
      sums[k] = k < count ? sum_of(read_at(nc + k), 0, length) : Vec<T>::zero();
    const Vec<T> means = divisor.divide(add_lanes(sums));
    for (int64_t k = 0; k < count; ++k) *written_at(nc + k) = from_compute<S>(means.raw[k]);
  }

  void means() const {
    const int64_t planes = g.N * g.C, length = g.rows.inputs * g.columns.inputs;
    const double work = static_cast<double>(length);
    const int64_t parts =
        planes < kFewPlanes ? smaller(kFewPlanes / planes, length / kPartElements) : 1;
    if (parts <= 1) {
      parallel_for((planes + kLanes - 1) / kLanes,
                   static_cast<int64_t>(0x1p15 / (work * static_cast<double>(kLanes))) + 1,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t nc = begin * kLanes; nc < smaller(end * kLanes, planes);
                          nc += kLanes)
                       means_of(nc, smaller(kLanes, planes - nc), length);
                   });
      return;
    }
    Scratch<T> sums(planes * parts, kLanes);
    parallel_for(planes * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task % parts, each = length / parts;
        sum_of(read_at(task / parts), part * each, part + 1 < parts ? (part + 1) * each : length)
            .store(sums.data() + task * kLanes);
      }
    });
    const Divisor<T> divisor(g.divisor);
    for (int64_t nc = 0; nc < planes; ++nc) {
      Vec<T> of_parts[kLanes];
      for (auto& each : of_parts) each = Vec<T>::zero();
      for (int64_t part = 0; part < parts; ++part)
        of_parts[0] = of_parts[0] + Vec<T>::load(sums.data() + (nc * parts + part) * kLanes);
      *written_at(nc) = from_compute<S>(divisor.divide(add_lanes(of_parts)).raw[0]);
    }
  }

  void shares() const {
    const int64_t planes = g.N * g.C, length = g.rows.inputs * g.columns.inputs;
    const int64_t piece = smaller(length, kChunkElements), pieces = (length + piece - 1) / piece;
    const Divisor<T> divisor(g.divisor);
    parallel_for(planes * pieces, (int64_t{1} << 15) / piece + 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t nc = task / pieces, first = task % pieces * piece;
        const Vec<T> share =
            divisor.divide(Vec<T>::broadcast(to_compute(*read_at(nc))));
        S* to = written_at(nc) + first;
        const int64_t count = smaller(piece, length - first);
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) store_from_compute(to + i, share);
        if (i < count) store_some_from_compute(to + i, share, count - i);
      }
    });
  }
};

}  // namespace

bool average_planes(const Average& g, const void* read, void* written) {
  const PoolAxis &rows = g.rows, &columns = g.columns;
  if (rows.outputs != 1 || columns.outputs != 1 || g.divisor == 0) return false;
  const Span all_rows = window_at(rows, 0), all_columns = window_at(columns, 0);
  const Strides4& planes = g.backward ? g.written : g.read;
  if (all_rows.begin != 0 || all_rows.end != rows.inputs || all_columns.begin != 0 ||
      all_columns.end != columns.inputs || (columns.inputs > 1 && planes.s[3] != 1) ||
      (rows.inputs > 1 && planes.s[2] != columns.inputs))
    return false;
  with_storage_type(g.dtype, [&](auto zero) {
    using S = decltype(zero);
    const PlaneAverages<S> averages{g, static_cast<const S*>(read), static_cast<S*>(written)};
    g.backward ? averages.shares() : averages.means();
  });
  return true;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
