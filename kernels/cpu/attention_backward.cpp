// attention, gradients by query, key and value.
//
//   grad_value[s] = sum_l kept[l][s] * grad_output[l]
//   grad_key[s]   = sum_l by_product[l][s] * query[l]
//   grad_query[l] = sum_s by_product[l][s] * key[s]
//
// For as many heads as fit: all operands are packed; then, for each head of key and each part of its
// keys
//   for each block of kGradKeys keys                       sums of grad_key, grad_value stay in L2
//     for each head of query, each block of kGradQueries queries
//       weights and gradients of scores                    see attention_gradient.h: 2 products
//       grad_value += kept^T * grad_output, grad_key += by_product^T * query
//       grad_query of the part += by_product * key
// and at last the parts' sums of grad_query are added, in order. The number of parts depends on the
// shape alone, and so does every sum. Blocks that no query sees, and rows that see no key: none.
// Cost: 2 * (3 D + 2 E) flops per score.
#include "../attention.h"

#include "attention_gradient.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Heads times parts, at least: so many threads have something to do.
constexpr int64_t kUnits = 8;

// The transpose of numbers [depth][rows], or of pairs of them: an operand a.
template <class P>
struct TransposedRows {
  const P* data;
  int64_t pitch;
  int64_t row_stride = 1;
  FASTCONV_INLINE const P* at(int64_t d) const { return data + d * pitch; }
};

// Sums that are added to what lies there.
template <class T>
struct AddEnd {
  T* c;
  int64_t stride, columns;  // whole panels
  T* narrowed = nullptr;    // for multiply_tile's prefetch
};
template <class T, int kRows, int kVectors>
FASTCONV_INLINE void finish_tile(Vec<T> (&sums)[kRows][kVectors], const AddEnd<T>& end) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* const c = end.c + i * end.stride + j * Vec<T>::kLanes;
      (Vec<T>::load(c) + sums[i][j]).store(c);
    }
}

template <class S>
struct Backward : Gradient<S> {
  using Base = Gradient<S>;
  using Base::grad_depth, Base::group, Base::gs, Base::kWidth, Base::query_depth, Base::s,
      Base::scores;
  using typename Base::Block;
  using typename Base::P;
  using typename Base::Places;
  using typename Base::T;
  using typename Base::V;
  static constexpr bool kPairs = !kSame<P, T>;

  S *grad_query, *grad_key, *grad_value;
  int64_t query_width, value_width;  // whole panels
  int64_t parts, together;
  Places at;

  Backward(const AttentionGradShape& shape, const AttentionGradInputs& inputs, void* query,
           void* key, void* value)
      : Base(shape, inputs),
        grad_query(static_cast<S*>(query)),
        grad_key(static_cast<S*>(key)),
        grad_value(static_cast<S*>(value)),
        query_width(divide_up(s.D, kWidth) * kWidth),
        value_width(divide_up(s.E, kWidth) * kWidth),
        at(Base::places()) {
    const int64_t heads = s.B * s.G, blocks = divide_up(s.S, kGradKeys);
    parts = smaller(divide_up(kUnits, heads), blocks);
    const int64_t bytes = at.end * static_cast<int64_t>(sizeof(P)) + 1;
    together = smaller(larger(kPackedBytes / bytes, divide_up(kUnits, parts)), heads);
  }

  // Memory of one thread: sums of a block of keys, kept and by_product, and these as pairs.
  struct Work {
    T *key_sums, *value_sums, *kept, *by_product, *buffers;
    P *kept_columns, *by_columns, *by_rows;
  };

  // Pairs of two rows, or along one row, of numbers that lie kGradKeys apart.
  void make_pairs_of(const Work& w, int64_t rows) const {
    if constexpr (kPairs) {
      constexpr int64_t kLanes = V::kLanes;
      for (int64_t i = 0; i < rows; i += 2) {
        const auto pair_rows = [&](const T* from, P* to) {
          const T *first = from + i * kGradKeys, *second = first + kGradKeys;
          for (int64_t j = 0; j < kGradKeys; j += kLanes) {
            const V other = i + 1 < rows ? V::load(second + j) : V::zero();
            make_pairs(narrow_flushed(V::load(first + j)), narrow_flushed(other))
                .store(to + i / 2 * kGradKeys + j);
          }
        };
        pair_rows(w.kept, w.kept_columns);
        pair_rows(w.by_product, w.by_columns);
      }
      BFloat16* const to = reinterpret_cast<BFloat16*>(w.by_rows);
      for (int64_t j = 0; j < rows * kGradKeys; j += 2 * kLanes)
        store_narrowed(to + j, V::load(w.by_product + j), V::load(w.by_product + j + kLanes));
    }
  }

  // sums[keys][features] += columns^T * panels, over queries [l, l_end).
  void add_to_keys(const Block& k, const P* columns, const P* panels, int64_t features,
                   T* sums) const {
    const int64_t keys = k.key_end - k.key, width = divide_up(features, kWidth) * kWidth;
    const int64_t tiles = divide_up(keys, int64_t{kTileRows});
    const int64_t all = packed_depth<P>(s.L);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t i = part_begin(keys, tiles, tile), next = part_begin(keys, tiles, tile + 1);
      // Only queries that see one of these keys; pairs begin at an even query.
      const int64_t from = larger(k.query, k.key + i - s.last) / 2 * 2;
      const int64_t until = smaller(k.query_end, k.key + next - s.first);
      if (from >= until) continue;
      const int64_t skipped = (from - k.query) / kNumbers<P>;
      for (int64_t e = 0; e < features; e += kWidth)
        multiply_panel<P>(next - i, smaller(features - e, kWidth), packed_depth<P>(until - from),
                          TransposedRows<P>{columns + skipped * kGradKeys + i, kGradKeys},
                          PackedPanel<P>{panels + e * all + from / kNumbers<P> * kWidth},
                          AddEnd<T>{sums + i * width + e, width, kWidth});
    }
  }

  // sums[queries][D] += rows * panels.
  void add_to_queries(const Block& k, const P* rows, const P* panels, T* sums) const {
    constexpr int64_t kPitch = kGradKeys / kNumbers<P>;
    const int64_t count = k.query_end - k.query, tiles = divide_up(count, int64_t{kTileRows});
    const int64_t all = packed_depth<P>(s.S);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t i = part_begin(count, tiles, tile), next = part_begin(count, tiles, tile + 1);
      const int64_t from = larger(k.key, scores.keys_begin(k.query + i) / kWidth * kWidth);
      const int64_t until = smaller(k.key_end, scores.keys_end(k.query + next));
      if (from >= until) continue;
      const int64_t skipped = (from - k.key) / kNumbers<P>;
      for (int64_t d = 0; d < s.D; d += kWidth)
        multiply_panel<P>(next - i, smaller(s.D - d, kWidth), packed_depth<P>(until - from),
                          PlainRows<P>{rows + i * kPitch + skipped, kPitch},
                          PackedPanel<P>{panels + d * all + from / kNumbers<P> * kWidth},
                          AddEnd<T>{sums + (k.query + i) * query_width + d, query_width, kWidth});
    }
  }

  // Everything that keys [k.key, k.key_end) give and get; `sums`: grad_query of the group's heads.
  void key_block(Block k, int64_t g, const P* memory, const T* deltas, const T* bases,
                 const Work& w, T* sums) const {
    clear_run(w.key_sums, kGradKeys * query_width);
    clear_run(w.value_sums, kGradKeys * value_width);
    const int64_t first = larger(int64_t{0}, k.key - s.last);
    const int64_t last = smaller(s.L, k.key_end - s.first);
    for (int64_t j = 0; j < group; ++j) {
      k.h = g * group + j;
      k.queries = memory + at.queries + j * at.query_size;
      k.grads = memory + at.grads + j * at.grad_size;
      k.deltas = deltas + (k.b * s.H + k.h) * s.L, k.bases = bases + (k.b * s.H + k.h) * s.L;
      const P* const query_panels = memory + at.query_panels + j * at.query_panel_size;
      const P* const grad_panels = memory + at.grad_panels + j * at.grad_panel_size;
      for (int64_t l = first / kGradQueries * kGradQueries; l < last; l += kGradQueries) {
        k.query = l, k.query_end = smaller(l + kGradQueries, s.L);
        Base::weigh(k, false);
        make_pairs_of(w, k.query_end - k.query);
        add_to_keys(k, w.kept_columns, grad_panels, s.E, w.value_sums);
        add_to_keys(k, w.by_columns, query_panels, s.D, w.key_sums);
        add_to_queries(k, w.by_rows, memory + at.key_panels, sums + j * s.L * query_width);
      }
    }
    store(k, g, w);
  }

  void store(const Block& k, int64_t g, const Work& w) const {
    const Strides4 &ks = gs.grad_key, &vs = gs.grad_value;
    S* const key = grad_key + k.b * ks.s[0] + g * ks.s[1];
    S* const value = grad_value + k.b * vs.s[0] + g * vs.s[1];
    for (int64_t i = 0; i < k.key_end - k.key; ++i) {
      store_run(key + (k.key + i) * ks.s[2], ks.s[3], w.key_sums + i * query_width, s.D, T{0});
      store_run(value + (k.key + i) * vs.s[2], vs.s[3], w.value_sums + i * value_width, s.E, T{0});
    }
  }

  // One part of one head's keys. A number of blocks of keys that is no multiple of that of parts makes
  // some parts longer.
  void part(int64_t b, int64_t g, int64_t part, const P* memory, const T* deltas, const T* bases,
            T* sums) const {
    constexpr int64_t kArea = kGradQueries * kGradKeys;
    Scratch<T> results(kGradKeys * (query_width + value_width));
    Scratch<T> areas(2 * kArea + 2 * kGradKeys);
    Scratch<P> pairs(kPairs ? 3 * kArea / 2 : 0);
    Work w{results.data(),
           results.data() + kGradKeys * query_width,
           areas.data(),
           areas.data() + kArea,
           areas.data() + 2 * kArea,
           nullptr,
           nullptr,
           nullptr};
    if constexpr (kPairs) {
      w.kept_columns = pairs.data(), w.by_columns = pairs.data() + kArea / 2;
      w.by_rows = pairs.data() + kArea;
    } else {
      w.kept_columns = w.kept, w.by_columns = w.by_rows = w.by_product;
    }
    clear_run(sums, group * s.L * query_width);
    const int64_t blocks = divide_up(s.S, kGradKeys);
    for (int64_t block = part_begin(blocks, parts, part);
         block < part_begin(blocks, parts, part + 1); ++block) {
      Block k{};
      k.b = b, k.key = block * kGradKeys, k.key_end = smaller(k.key + kGradKeys, s.S);
      k.key_columns = memory + at.key_columns, k.value_columns = memory + at.value_columns;
      k.kept = w.kept, k.by_product = w.by_product, k.buffers = w.buffers;
      key_block(k, g, memory, deltas, bases, w, sums);
    }
  }

  // grad_query of some queries of a head: the parts' sums, which lie `apart`.
  void add_parts(int64_t b, int64_t h, int64_t begin, int64_t end, T* sums, int64_t apart) const {
    const Strides4& q = gs.grad_query;
    for (int64_t l = begin; l < end; ++l) {
      T* const row = sums + l * query_width;
      for (int64_t p = 1; p < parts; ++p)
        for (int64_t d = 0; d < query_width; d += V::kLanes)
          (V::load(row + d) + V::load(row + p * apart + d)).store(row + d);
      store_run(grad_query + b * q.s[0] + h * q.s[1] + l * q.s[2], q.s[3], row, s.D, T{0});
    }
  }

  void run() const {
    const int64_t rows = s.B * s.H * s.L, heads = s.B * s.G, area = group * s.L * query_width;
    Scratch<T> constants(2, rows);
    T *const deltas = constants.data(), *const bases = deltas + rows;
    Base::fill_constants(deltas, bases);
    Scratch<P> packed(together, at.end);
    Scratch<T> sums(together, parts, area);
    for (int64_t first = 0; first < heads; first += together) {
      const int64_t count = smaller(together, heads - first), kinds = Base::operand_count();
      share_out(count * kinds, [&](int64_t unit) {
        const int64_t head = first + unit / kinds;
        Base::pack(at, packed.data() + unit / kinds * at.end, head / s.G, head % s.G, unit % kinds);
      });
      share_out(count * parts, [&](int64_t unit) {
        const int64_t i = unit / parts, head = first + i;
        part(head / s.G, head % s.G, unit % parts, packed.data() + i * at.end, deltas, bases,
             sums.data() + unit * area);
      });
      const int64_t blocks = divide_up(s.L, kGradQueries);
      share_out(count * group * blocks, [&](int64_t unit) {
        const int64_t block = unit % blocks, j = unit / blocks % group, i = unit / blocks / group;
        const int64_t head = first + i, begin = block * kGradQueries;
        add_parts(head / s.G, head % s.G * group + j, begin, smaller(begin + kGradQueries, s.L),
                  sums.data() + i * parts * area + j * s.L * query_width, area);
      });
    }
  }
};

}  // namespace

void attention_backward(const AttentionGradShape& shape, const AttentionGradInputs& inputs,
                        void* grad_query, void* grad_key, void* grad_value) {
  with_storage_type(shape.forward.dtype, [&](auto zero) {
    Backward<decltype(zero)>(shape, inputs, grad_query, grad_key, grad_value).run();
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(attention_backward,
                  (const AttentionGradShape& shape, const AttentionGradInputs& inputs,
                   void* grad_query, void* grad_key, void* grad_value),
                  (shape, inputs, grad_query, grad_key, grad_value))
