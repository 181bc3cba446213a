// attention, forward.
//
//   output[l][e] = sum_s exp(score[l][s] - lse[l]) * value[s][e],  score[l][s] = query[l] . key[s]
//
// Keys and values are packed once per head. Then, for a block of queries:
//   for each block of kKeyBlock keys                   packed, they stay in L2
//     for each tile of up to kTileRows queries
//       scores = query tile * key panels               into L1; panels that no query of it sees: none
//       weights = exp2(scores - best)                  row by row, in L1; `best` is the largest so far
//       sums = sums * exp2(old best - best) + weights * value panels
//   output = sums / sum of weights
//
// Heads are units of work where there are enough of them for the threads: a thread packs a head and
// works through its queries. Else heads are packed by all threads together, and units are blocks of
// queries. Few queries: attention_decode.cpp.
// Cost: 2 * (D + E) flops per score, and 20 vector instructions for exp and the like.
#include "../attention.h"

#include "attention_decode.h"
#include "attention_pack.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kKeyBlock = 256;
constexpr int64_t kQueryBlock = 192;
// Packed heads that all threads share, in bytes: a part of L3.
constexpr int64_t kSharedBytes = int64_t{8} << 20;

// A tile's sums of weighted values: what lies there is multiplied by the row's factor first.
template <class T>
struct RescaleEnd {
  T* c;
  int64_t stride, columns;  // whole panels
  const T* factors;
  T* narrowed = nullptr;  // for multiply_tile's prefetch
};
template <class T, int kRows, int kVectors>
FASTCONV_INLINE void finish_tile(Vec<T> (&sums)[kRows][kVectors], const RescaleEnd<T>& end) {
  using V = Vec<T>;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const V factor = V::broadcast(end.factors[i]);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* const c = end.c + i * end.stride + j * V::kLanes;
      (V::load(c) * factor + sums[i][j]).store(c);
    }
  }
}

template <class S>
struct Forward {
  using T = Compute<S>;
  using P = Packed<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes, kWidth = kTileColumns<P>;
  static constexpr int kDegree = sizeof(S) == 2 ? 4 : 6;

  const AttentionShape& s;
  const AttentionInputs& in;
  Scores<S> scores;
  S* output;
  T* lse;
  int64_t key_depth, value_width;

  struct Head {
    const P* keys;
    const P* values;
  };

  // A tile of queries at work.
  struct Tile {
    int64_t b, h, l, rows;  // queries [l, l + rows)
    const P* queries;
    T* sums;       // [rows][value_width]
    T* best;       // [rows]: the largest exponent
    T* weight;     // [rows]: the sum of weights
    T* factors;    // [rows]
    T* exponents;  // [kTileRows][kKeyBlock]
    T* buffer;     // [kKeyBlock]
    P* weights;    // [kTileRows][kKeyBlock]; `exponents` itself but for pairs
  };

  Forward(const AttentionShape& shape, const AttentionInputs& inputs, S* out, T* logs)
      : s(shape),
        in(inputs),
        scores(shape, inputs),
        output(out),
        lse(logs),
        key_depth(packed_depth<P>(shape.D)),
        value_width(divide_up(shape.E, kWidth) * kWidth) {}

  int64_t key_size() const { return packed_size<P>(s.S, s.D); }
  int64_t value_size() const { return packed_size<P>(s.E, s.S); }

  void pack(int64_t b, int64_t g, int64_t begin, int64_t end, P* keys, P* values) const {
    pack_columns<S>(keys, matrix_of<S>(in.key, s.key, b, g), s.D, begin, end);
    pack_rows<S>(values, matrix_of<S>(in.value, s.value, b, g), s.S, s.E, begin, end);
  }

  // Exponents of row i become weights; returns what the sums so far must be multiplied by.
  FASTCONV_INLINE T weigh_row(const Tile& t, int64_t i, int64_t key, int64_t width) const {
    T* const row = t.exponents + i * kKeyBlock;
    const int64_t l = t.l + i;
    const V by = V::broadcast(scores.is_plain ? scores.factor : T{1});
    if (!scores.is_plain)
      scores.to_exponents(t.b, t.h, l, key, width, row, t.buffer, nullptr);
    else
      scores.hide(row, l, key, width);

    V largest = V::broadcast(minus_infinity<T>());
    for (int64_t j = 0; j < width; j += kLanes) largest = maximum(V::load(row + j) * by, largest);
    const T old = t.best[i], best = larger(old, maximum_of_lanes(largest));
    t.best[i] = best;
    const T base = best == minus_infinity<T>() ? T{0} : best;

    const V shift = V::broadcast(base);
    V total = V::zero();
    for (int64_t j = 0; j < width; j += kLanes) {
      const V weight = exp2<kDegree>(V::load(row + j) * by - shift);
      total = total + weight;
      weight.store(row + j);
    }
    const T factor = exp2<kDegree>(V::broadcast(old - base)).raw[0];
    t.weight[i] = t.weight[i] * factor + sum_of_lanes(total);
    if (scores.drops) scores.drop(t.b, t.h, l, key, width, row);
    if constexpr (!kSame<P, T>) narrow_row(row, t.weights + i * (kKeyBlock / 2), width);
    return factor;
  }

  FASTCONV_INLINE static void narrow_row(const T* row, P* weights, int64_t width) {
    BFloat16* const to = reinterpret_cast<BFloat16*>(weights);
    int64_t j = 0;
    for (; j + 2 * kLanes <= width; j += 2 * kLanes)
      store_narrowed(to + j, V::load(row + j), V::load(row + j + kLanes));
    if (j < width) store_some_narrowed(to + j, V::load(row + j), kLanes);
  }

  // Keys [begin, end) of the head: scores, weights, sums.
  void add_keys(const Tile& t, const Head& head, int64_t begin, int64_t end) const {
    const PlainRows<P> queries{t.queries, key_depth};
    for (int64_t key = begin; key < end; key += kWidth) {
      const int64_t columns = smaller(end - key, kWidth);
      multiply_panel<P>(t.rows, columns, key_depth, queries,
                        PackedPanel<P>{head.keys + key * key_depth},
                        TileEnd<T>{t.exponents + (key - begin), kKeyBlock, kWidth});
    }
    const int64_t width = divide_up(end - begin, kLanes) * kLanes;
    for (int64_t i = 0; i < t.rows; ++i) t.factors[i] = weigh_row(t, i, begin, width);

    constexpr int64_t kPitch = kKeyBlock / kNumbers<P>;
    const int64_t depth = packed_depth<P>(end - begin), all = packed_depth<P>(s.S);
    for (int64_t e = 0; e < s.E; e += kWidth) {
      const P* const panel = head.values + e * all + begin / kNumbers<P> * kWidth;
      multiply_panel<P>(t.rows, smaller(s.E - e, kWidth), depth, PlainRows<P>{t.weights, kPitch},
                        PackedPanel<P>{panel},
                        RescaleEnd<T>{t.sums + e, value_width, kWidth, t.factors});
    }
  }

  void finish_row(int64_t b, int64_t h, int64_t l, T best, T weight, T* sums) const {
    const T by = weight == 0 ? T{0} : scores.keep_factor / weight;
    for (int64_t e = 0; e < value_width; e += kLanes)
      (V::load(sums + e) * V::broadcast(by)).store(sums + e);
    const Strides4& o = s.output;
    store_run(output + b * o.s[0] + h * o.s[1] + l * o.s[2], o.s[3], sums, s.E, T{0});
    lse[(b * s.H + h) * s.L + l] = static_cast<T>(static_cast<double>(best) * kLn2 +
                                                  __builtin_log(static_cast<double>(weight)));
  }

  // Queries [begin, end) of head h.
  void queries(int64_t b, int64_t h, int64_t begin, int64_t end, const Head& head) const {
    const int64_t rows = end - begin;
    Scratch<P> packed(rows * key_depth);
    Scratch<T> sums(rows * value_width), states(2 * rows);
    Scratch<T> exponents(kTileRows * kKeyBlock + kKeyBlock + kTileRows);
    Scratch<P> weights(kSame<P, T> ? 0 : kTileRows * kKeyBlock / kNumbers<P>);
    T *const best = states.data(), *const weight = best + rows;
    const Matrix<S> m = matrix_of<S>(in.query, s.query, b, h);
    for (int64_t i = 0; i < rows; ++i)
      pack_row(packed.data() + i * key_depth, m.row(begin + i), m.feature_stride, s.D);
    fill_run(best, 0, rows, minus_infinity<T>());
    clear_run(weight, rows);
    clear_run(sums.data(), rows * value_width);

    const int64_t tiles = divide_up(rows, int64_t{kTileRows});
    const int64_t first = scores.keys_begin(begin) / kKeyBlock * kKeyBlock;
    for (int64_t block = first; block < scores.keys_end(end); block += kKeyBlock) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t i = part_begin(rows, tiles, tile), next = part_begin(rows, tiles, tile + 1);
        const int64_t from = larger(block, scores.keys_begin(begin + i) / kWidth * kWidth);
        const int64_t to = smaller(block + kKeyBlock, scores.keys_end(begin + next));
        if (from >= to) continue;
        T* const memory = exponents.data();
        const Tile t{b,
                     h,
                     begin + i,
                     next - i,
                     packed.data() + i * key_depth,
                     sums.data() + i * value_width,
                     best + i,
                     weight + i,
                     memory + (kTileRows + 1) * kKeyBlock,
                     memory,
                     memory + kTileRows * kKeyBlock,
                     kSame<P, T> ? reinterpret_cast<P*>(memory) : weights.data()};
        add_keys(t, head, from, to);
      }
    }
    for (int64_t i = 0; i < rows; ++i)
      finish_row(b, h, begin + i, best[i], weight[i], sums.data() + i * value_width);
  }

  // Blocks of queries are as even as can be.
  int64_t blocks() const { return divide_up(s.L, kQueryBlock); }
  void query_block(int64_t b, int64_t h, int64_t block, const Head& head) const {
    queries(b, h, part_begin(s.L, blocks(), block), part_begin(s.L, blocks(), block + 1), head);
  }

  void run_heads() const {
    share_out(s.B * s.G, [&](int64_t unit) {
      const int64_t b = unit / s.G, g = unit % s.G;
      Scratch<P> keys(key_size()), values(value_size());
      pack(b, g, 0, s.S, keys.data(), values.data());
      const Head head{keys.data(), values.data()};
      for (int64_t h = g * (s.H / s.G); h < (g + 1) * (s.H / s.G); ++h)
        for (int64_t block = 0; block < blocks(); ++block) query_block(b, h, block, head);
    });
  }

  void run_blocks() const {
    const int64_t heads = s.B * s.G, group = s.H / s.G, size = key_size() + value_size();
    const int64_t bytes = larger(size * static_cast<int64_t>(sizeof(P)), int64_t{1});
    const int64_t together = smaller(heads, larger(kSharedBytes / bytes, int64_t{1}));
    Scratch<P> packed(together * size);
    const auto head_of = [&](int64_t i) {
      return Head{packed.data() + i * size, packed.data() + i * size + key_size()};
    };
    for (int64_t first = 0; first < heads; first += together) {
      const int64_t count = smaller(together, heads - first);
      const int64_t parts = divide_up(s.S, kKeyBlock), units = group * blocks();
      share_out(count * parts, [&](int64_t unit) {
        const int64_t head = first + unit / parts, begin = unit % parts * kKeyBlock;
        P* const keys = packed.data() + unit / parts * size;
        pack(head / s.G, head % s.G, begin, smaller(begin + kKeyBlock, s.S), keys,
             keys + key_size());
      });
      // The last queries see most where there is a causal edge: they go first.
      share_out(count * units, [&](int64_t unit) {
        const int64_t head = first + unit / units, rest = unit % units;
        const int64_t h = head % s.G * group + rest % group;
        query_block(head / s.G, h, blocks() - 1 - rest / group, head_of(unit / units));
      });
    }
  }

  void run() const {
    const int64_t heads = s.B * s.G, threads = num_threads();
    if (heads % threads == 0 || heads >= 8 * threads)
      run_heads();
    else
      run_blocks();
  }
};

}  // namespace

void attention_forward(const AttentionShape& shape, const AttentionInputs& inputs, void* output,
                       void* lse) {
  if (is_decoding(shape)) return attention_decode(shape, inputs, output, lse);
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    Forward<S>(shape, inputs, static_cast<S*>(output), static_cast<Compute<S>*>(lse)).run();
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(attention_forward,
                  (const AttentionShape& shape, const AttentionInputs& inputs, void* output,
                   void* lse),
                  (shape, inputs, output, lse))
