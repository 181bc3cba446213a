// attention, forward, of few queries: one pass over keys and values, as they lie in memory.
//
// A unit of work is a chunk of the keys of one head, for all rows (queries of the heads that share
// it). Per chunk:
//   for each kLanes keys, each row       kLanes dot products at once, lanes along the features; their
//                                        sums of lanes in one register
//   for each row                         weights = exp2(scores - best)
//   for each few keys, up to 4 rows      sums += weights * values, lanes along the features
// Chunks leave their sums, weights and best exponents, which are put together in order: how keys are
// chunked depends on the shape alone. Rows share what of keys and values is in L1.
// Cost: keys and values are read once; that is what takes the time.
#include "attention_decode.h"

#include "attention_pack.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kMostRows = 8;
constexpr int64_t kLeastChunk = 256;
constexpr int64_t kUnits = 32;  // at least, where there are as many chunks

// Lane i is the sum of the lanes of v[i].
template <class T, int kDistance = Vec<T>::kLanes / 2>
FASTCONV_INLINE Vec<T> sums_of_lanes(Vec<T> (&v)[Vec<T>::kLanes]) {
  constexpr int kLanes = Vec<T>::kLanes;
  if constexpr (kDistance == 0) {
    return v[0];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kDistance; ++i) {
      exchange_halves<T, kDistance>(v[i], v[i + kDistance], typename CountLanes<kLanes>::List());
      v[i] = v[i] + v[i + kDistance];
    }
    return sums_of_lanes<T, kDistance / 2>(v);
  }
}

template <class S>
struct Decode {
  using T = Compute<S>;
  using P = Packed<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes, kElements = Vec<P>::kLanes;
  static constexpr int kDegree = sizeof(S) == 2 ? 4 : 6;

  const AttentionShape& s;
  const AttentionInputs& in;
  Scores<S> scores;
  S* output;
  T* lse;
  int64_t rows, chunk, chunks, width, part_size;

  Decode(const AttentionShape& shape, const AttentionInputs& inputs, void* out, void* logs)
      : s(shape),
        in(inputs),
        scores(shape, inputs),
        output(static_cast<S*>(out)),
        lse(static_cast<T*>(logs)),
        rows(shape.H / shape.G * shape.L),
        width(divide_up(shape.E, kLanes) * kLanes) {
    const int64_t wanted = divide_up(kUnits, larger(s.B * s.G, int64_t{1}));
    const int64_t each = divide_up(divide_up(larger(s.S, int64_t{1}), wanted), kLanes) * kLanes;
    chunk = larger(each, kLeastChunk);
    chunks = larger(divide_up(s.S, chunk), int64_t{1});
    part_size = rows * (width + 2 * kLanes);
  }

  // What a chunk leaves: sums [rows][width], then the rows' best exponents and weights.
  struct Part {
    T *sums, *best, *weight;
  };
  Part part_at(T* parts, int64_t unit) const {
    T* const part = parts + unit * part_size;
    return {part, part + rows * width, part + rows * (width + kLanes)};
  }

  // Scores of keys [key, key + count) and one query, whose elements lie one behind the other.
  FASTCONV_INLINE V dot_products(const P* query, const Matrix<S>& keys, int64_t key,
                                 int64_t count) const {
    V sums[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) sums[i] = V::zero();
    const int64_t depth = packed_depth<P>(s.D), whole = s.D / kNumbers<P>;
    const auto add = [&](int64_t d, int64_t some) {
      const Vec<P> q = load_some(query + d, some);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const S* const row = keys.row(key + smaller(int64_t{i}, count - 1)) + d * kNumbers<P>;
        const auto elements = elements_of<P>(row);
        sums[i] = add_product(sums[i], q, load_some_as_compute(elements, some));
      }
    };
    int64_t d = 0;
    for (; d + kElements <= whole; d += kElements) {
      const Vec<P> q = Vec<P>::load(query + d);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const S* const row = keys.row(key + smaller(int64_t{i}, count - 1)) + d * kNumbers<P>;
        sums[i] = add_product(sums[i], q, load_as_compute(elements_of<P>(row)));
      }
    }
    if (d < depth) add(d, depth - d);
    return sums_of_lanes<T>(sums);
  }

  FASTCONV_INLINE static void fetch(const Matrix<S>& m, int64_t begin, int64_t end,
                                    int64_t features) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t f = 0; f < features; f += 64 / static_cast<int64_t>(sizeof(S)))
        __builtin_prefetch(m.row(row) + f);
  }

  // sums[r][..] += weights[r][key .. key + count) * values, for kRows rows and kVectors registers of
  // each from feature e on.
  template <int kRows, int kVectors>
  FASTCONV_INLINE void add_values(const T* weights, int64_t pitch, const Matrix<S>& values,
                                  int64_t begin, int64_t end, int64_t e, T* sums) const {
    V totals[kRows][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) totals[r][j] = V::load(sums + r * width + j * kLanes + e);
    const int64_t last = smaller(s.E - e - (kVectors - 1) * kLanes, kLanes);
    for (int64_t key = begin; key < end; ++key) {
      const S* const row = values.row(key) + e;
      V value[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j)
        value[j] = j + 1 < kVectors || last == kLanes
                       ? load_as_compute(row + j * kLanes)
                       : load_some_as_compute(row + j * kLanes, last);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const V weight = V::broadcast(weights[r * pitch + key - begin]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) totals[r][j] = totals[r][j] + weight * value[j];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) totals[r][j].store(sums + r * width + j * kLanes + e);
  }

  template <int kRows>
  FASTCONV_INLINE void add_value_rows(const T* weights, int64_t pitch, const Matrix<S>& values,
                                      int64_t begin, int64_t end, T* sums) const {
    int64_t e = 0;
    for (; e + 4 * kLanes <= width; e += 4 * kLanes)
      add_values<kRows, 4>(weights, pitch, values, begin, end, e, sums);
    for (; e < width; e += kLanes)
      add_values<kRows, 1>(weights, pitch, values, begin, end, e, sums);
  }

  // Exponents of one row of a chunk become weights.
  FASTCONV_INLINE void weigh(int64_t b, int64_t h, int64_t l, int64_t key, int64_t keys, T* row,
                             T* buffer, T& best, T& weight) const {
    const V by = V::broadcast(scores.is_plain ? scores.factor : T{1});
    if (scores.is_plain)
      scores.hide(row, l, key, keys);
    else
      scores.to_exponents(b, h, l, key, keys, row, buffer, nullptr);
    V largest = V::broadcast(minus_infinity<T>()), total = V::zero();
    for (int64_t j = 0; j < keys; j += kLanes) largest = maximum(V::load(row + j) * by, largest);
    best = maximum_of_lanes(largest);
    const V shift = V::broadcast(best == minus_infinity<T>() ? T{0} : best);
    for (int64_t j = 0; j < keys; j += kLanes) {
      const V each = exp2<kDegree>(V::load(row + j) * by - shift);
      total = total + each;
      each.store(row + j);
    }
    weight = sum_of_lanes(total);
    if (scores.drops) scores.drop(b, h, l, key, keys, row);
  }

  void unit(int64_t index, T* parts) const {
    const int64_t head = index / chunks, b = head / s.G, g = head % s.G, group = s.H / s.G;
    const int64_t begin = smaller(index % chunks * chunk, s.S), end = smaller(begin + chunk, s.S);
    const Part part = part_at(parts, index);
    const Matrix<S> keys = matrix_of<S>(in.key, s.key, b, g);
    const Matrix<S> values = matrix_of<S>(in.value, s.value, b, g);
    const int64_t depth = divide_up(packed_depth<P>(s.D), kElements) * kElements;
    Scratch<P> queries(rows * depth);
    Scratch<T> weights(rows * chunk + chunk);
    for (int64_t r = 0; r < rows; ++r) {
      const Matrix<S> m = matrix_of<S>(in.query, s.query, b, g * group + r / s.L);
      pack_row(queries.data() + r * depth, m.row(r % s.L), m.feature_stride, s.D);
    }
    for (int64_t key = begin; key < end; key += kLanes) {
      const int64_t count = smaller(kLanes, end - key);
      fetch(keys, key + count, smaller(key + 2 * kLanes, end), s.D);
      for (int64_t r = 0; r < rows; ++r)
        dot_products(queries.data() + r * depth, keys, key, count)
            .store(weights.data() + r * chunk + key - begin);
    }
    const int64_t padded = divide_up(end - begin, kLanes) * kLanes;
    for (int64_t r = 0; r < rows; ++r)
      weigh(b, g * group + r / s.L, r % s.L, begin, padded, weights.data() + r * chunk,
            weights.data() + rows * chunk, part.best[r], part.weight[r]);

    clear_run(part.sums, rows * width);
    for (int64_t key = begin; key < end; key += kLanes) {
      const int64_t until = smaller(key + kLanes, end);
      fetch(values, until, smaller(until + kLanes, end), s.E);
      const T* const from = weights.data() + key - begin;
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4)
        add_value_rows<4>(from + r * chunk, chunk, values, key, until, part.sums + r * width);
      for (; r < rows; ++r)
        add_value_rows<1>(from + r * chunk, chunk, values, key, until, part.sums + r * width);
    }
  }

  // Row r of a head: the chunks put together.
  void finish(int64_t head, int64_t r, T* parts) const {
    const Part first = part_at(parts, head * chunks);
    T best = first.best[r], weight = 0;
    for (int64_t c = 1; c < chunks; ++c)
      best = larger(best, part_at(parts, head * chunks + c).best[r]);
    const T base = best == minus_infinity<T>() ? T{0} : best;
    T* const sums = first.sums + r * width;
    for (int64_t c = 0; c < chunks; ++c) {
      const Part part = part_at(parts, head * chunks + c);
      const T factor = exp2<6>(V::broadcast(part.best[r] - base)).raw[0];
      weight += part.weight[r] * factor;
      const T* const more = part.sums + r * width;
      for (int64_t e = 0; e < width; e += kLanes) {
        const V scaled = V::load(more + e) * V::broadcast(factor);
        (c == 0 ? scaled : V::load(sums + e) + scaled).store(sums + e);
      }
    }
    const V by = V::broadcast(weight == 0 ? T{0} : scores.keep_factor / weight);
    for (int64_t e = 0; e < width; e += kLanes) (V::load(sums + e) * by).store(sums + e);
    const int64_t b = head / s.G, h = head % s.G * (s.H / s.G) + r / s.L, l = r % s.L;
    const Strides4& o = s.output;
    store_run(output + b * o.s[0] + h * o.s[1] + l * o.s[2], o.s[3], sums, s.E, T{0});
    lse[(b * s.H + h) * s.L + l] = static_cast<T>(static_cast<double>(best) * kLn2 +
                                                  __builtin_log(static_cast<double>(weight)));
  }

  void run() const {
    const int64_t heads = s.B * s.G;
    Scratch<T> parts(heads * chunks, part_size);
    share_out(heads * chunks, [&](int64_t index) { unit(index, parts.data()); });
    const int64_t cost = chunks * width + 1;
    parallel_for(heads * rows, 16384 / cost + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) finish(row / rows, row % rows, parts.data());
    });
  }
};

}  // namespace

bool is_decoding(const AttentionShape& s) {
  return s.H / s.G * s.L <= kMostRows && s.key.s[3] == 1 && s.value.s[3] == 1 && s.D > 0 &&
         s.D % 2 == 0;
}

void attention_decode(const AttentionShape& shape, const AttentionInputs& inputs, void* output,
                      void* lse) {
  with_storage_type(shape.dtype,
                    [&](auto zero) { Decode<decltype(zero)>(shape, inputs, output, lse).run(); });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
