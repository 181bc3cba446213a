// What attention's gradients share: operands packed for some heads at a time, and the weights and
// gradients of scores of a block of queries and keys, recomputed from lse.
//
//   weight = exp2(exponent - lse * log2(e)),  kept = weight * keep / (1 - dropout_p)
//   by_score[l][s] = kept * (grad_output[l] . value[s]) - weight * delta[l]
//   delta[l] = grad_output[l] . output[l]
#pragma once
#include "attention_pack.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int64_t kGradQueries = 96, kGradKeys = 128;
// Heads that are packed together, in bytes: what a thread's scratch memory keeps.
constexpr int64_t kPackedBytes = int64_t{12} << 20;

template <class S>
struct Gradient {
  using T = Compute<S>;
  using P = Packed<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes, kWidth = kTileColumns<P>;
  static constexpr int kDegree = sizeof(S) == 2 ? 4 : 6;
  static_assert(kGradKeys % kWidth == 0 && kGradQueries % 2 == 0);

  const AttentionGradShape& gs;
  const AttentionGradInputs& gin;
  const AttentionShape& s;
  Scores<S> scores;
  int64_t group;                    // heads of query per head of key
  int64_t query_depth, grad_depth;  // elements of a row of query, of grad_output

  Gradient(const AttentionGradShape& shape, const AttentionGradInputs& inputs)
      : gs(shape),
        gin(inputs),
        s(shape.forward),
        scores(shape.forward, inputs.forward),
        group(s.H / s.G),
        query_depth(packed_depth<P>(s.D)),
        grad_depth(packed_depth<P>(s.E)) {}

  // Where the operands of one head of key lie in its part of the packed memory, and those of its
  // `group` heads of query: rows are operands a, columns and panels (of rows) operands b.
  struct Places {
    int64_t key_columns, key_panels, value_columns, queries, query_panels, grads, grad_panels, end;
    int64_t query_size, query_panel_size, grad_size, grad_panel_size;
  };
  Places places() const {
    Places p{};
    p.query_size = s.L * query_depth, p.grad_size = s.L * grad_depth;
    p.query_panel_size = packed_size<P>(s.D, s.L), p.grad_panel_size = packed_size<P>(s.E, s.L);
    p.key_panels = packed_size<P>(s.S, s.D);
    p.value_columns = p.key_panels + packed_size<P>(s.D, s.S);
    p.queries = p.value_columns + packed_size<P>(s.S, s.E);
    p.query_panels = p.queries + group * p.query_size;
    p.grads = p.query_panels + group * p.query_panel_size;
    p.grad_panels = p.grads + group * p.grad_size;
    p.end = p.grad_panels + group * p.grad_panel_size;
    return p;
  }

  // Packs one of the operands: what = 0, 1, 2 of the keys' head, 3 + 4 * j + 0 .. 3 of its j-th head
  // of query.
  int64_t operand_count() const { return 3 + 4 * group; }
  void pack(const Places& p, P* memory, int64_t b, int64_t g, int64_t what) const {
    const Matrix<S> key = matrix_of<S>(gin.forward.key, s.key, b, g);
    const Matrix<S> value = matrix_of<S>(gin.forward.value, s.value, b, g);
    if (what == 0) return pack_columns<S>(memory + p.key_columns, key, s.D, 0, s.S);
    if (what == 1) return pack_rows<S>(memory + p.key_panels, key, s.S, s.D, 0, s.S);
    if (what == 2) return pack_columns<S>(memory + p.value_columns, value, s.E, 0, s.S);
    const int64_t j = (what - 3) / 4, h = g * group + j;
    const Matrix<S> query = matrix_of<S>(gin.forward.query, s.query, b, h);
    const Matrix<S> grad = matrix_of<S>(gin.grad_output, gs.grad_output, b, h);
    switch ((what - 3) % 4) {
      case 0:
        for (int64_t l = 0; l < s.L; ++l)
          pack_row(memory + p.queries + j * p.query_size + l * query_depth, query.row(l),
                   query.feature_stride, s.D);
        return;
      case 1:
        for (int64_t l = 0; l < s.L; ++l)
          pack_row(memory + p.grads + j * p.grad_size + l * grad_depth, grad.row(l),
                   grad.feature_stride, s.E);
        return;
      case 2:
        return pack_rows<S>(memory + p.query_panels + j * p.query_panel_size, query, s.L, s.D, 0,
                            s.L);
      default:
        return pack_rows<S>(memory + p.grad_panels + j * p.grad_panel_size, grad, s.L, s.E, 0, s.L);
    }
  }

  // deltas[row] of rows [begin, end) of all heads, row = (b * H + h) * L + l. Each sums in the order in
  // which the micro-kernel does: a softmax of one key, whose output is that key's value, has gradients
  // that are zero, and not the difference of two sums. Several rows at a time, for one sum is slow.
  void fill_deltas(int64_t begin, int64_t end, T* deltas) const {
    constexpr int kRows = 8;
    for (int64_t row = begin; row < end; row += kRows) {
      const S *x[kRows], *y[kRows];
      T sums[kRows] = {};
      for (int i = 0; i < kRows; ++i) {
        const int64_t each = smaller(row + i, end - 1), l = each % s.L;
        const int64_t b = each / s.L / s.H, h = each / s.L % s.H;
        x[i] = matrix_of<S>(gin.grad_output, gs.grad_output, b, h).row(l);
        y[i] = matrix_of<S>(gin.output, s.output, b, h).row(l);
      }
      for (int64_t e = 0; e < s.E; ++e)
        for (int i = 0; i < kRows; ++i)
          sums[i] +=
              to_compute(x[i][e * gs.grad_output.s[3]]) * to_compute(y[i][e * s.output.s[3]]);
      for (int i = 0; i < kRows && row + i < end; ++i) deltas[row + i] = sums[i];
    }
  }

  // Of all rows, and their `base`.
  void fill_constants(T* deltas, T* bases) const {
    parallel_for(s.B * s.H * s.L, 256, [&](int64_t begin, int64_t end) {
      fill_deltas(begin, end, deltas);
      for (int64_t row = begin; row < end; ++row)
        bases[row] = base(row / s.L / s.H, row / s.L % s.H, row % s.L);
    });
  }

  // lse of query l as an exponent, 0 for one without a key.
  T base(int64_t b, int64_t h, int64_t l) const {
    const T lse = static_cast<const T*>(gin.lse)[b * gs.lse[0] + h * gs.lse[1] + l * gs.lse[2]];
    return lse == minus_infinity<T>() ? T{0} : lse * static_cast<T>(kLog2E);
  }

  // Queries [query, query_end) and keys [key, key_end) of a head, at most kGradQueries and kGradKeys.
  // After `weigh`, kept[i][j] and by_product[i][j], rows kGradKeys apart, are those of query + i and
  // key + j, zero where j reaches beyond; by_product is by_score with the slope and scale of a product,
  // or without where `plain` asks for by_score itself.
  struct Block {
    int64_t b, h, query, query_end, key, key_end;
    const P* queries;        // rows of all queries
    const P* grads;          // rows of all queries
    const P* key_columns;    // of all keys
    const P* value_columns;  // of all keys
    const T* deltas;         // of all queries
    const T* bases;          // of all queries
    T* kept;
    T* by_product;
    T* buffers;  // [2][kGradKeys]
  };

  void weigh(const Block& k, bool by_score) const {
    const int64_t rows = k.query_end - k.query, tiles = divide_up(rows, int64_t{kTileRows});
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t i = part_begin(rows, tiles, tile), next = part_begin(rows, tiles, tile + 1);
      const int64_t l = k.query + i;
      const int64_t begin = larger(k.key, scores.keys_begin(l) / kWidth * kWidth);
      const int64_t end = smaller(k.key_end, scores.keys_end(k.query + next));
      multiply(k, i, next - i, begin, end);
      for (int64_t row = i; row < next; ++row) weigh_row(k, row, begin, end, by_score);
    }
  }

 private:
  // Products of queries and of grads with keys and values [begin, end), into kept and by_product.
  FASTCONV_INLINE void multiply(const Block& k, int64_t i, int64_t rows, int64_t begin,
                                int64_t end) const {
    const PlainRows<P> queries{k.queries + (k.query + i) * query_depth, query_depth};
    const PlainRows<P> grads{k.grads + (k.query + i) * grad_depth, grad_depth};
    for (int64_t key = begin; key < end; key += kWidth) {
      const int64_t columns = smaller(end - key, kWidth), at = i * kGradKeys + key - k.key;
      multiply_panel<P>(rows, columns, query_depth, queries,
                        PackedPanel<P>{k.key_columns + key * query_depth},
                        TileEnd<T>{k.kept + at, kGradKeys, kWidth});
      multiply_panel<P>(rows, columns, grad_depth, grads,
                        PackedPanel<P>{k.value_columns + key * grad_depth},
                        TileEnd<T>{k.by_product + at, kGradKeys, kWidth});
    }
  }

  FASTCONV_INLINE void weigh_row(const Block& k, int64_t i, int64_t begin, int64_t end,
                                 bool by_score) const {
    const int64_t l = k.query + i;
    T *const all_kept = k.kept + i * kGradKeys, *const all_by = k.by_product + i * kGradKeys;
    const int64_t first = begin < end ? begin - k.key : 0;
    const int64_t width = begin < end ? divide_up(end - begin, kLanes) * kLanes : 0;
    clear_run(all_kept, first), clear_run(all_by, first);
    clear_run(all_kept + first + width, kGradKeys - first - width);
    clear_run(all_by + first + width, kGradKeys - first - width);
    if (width == 0) return;
    T *const row = all_kept + first, *const by = all_by + first;
    T* const slopes = s.softcap > 0 && !by_score ? k.buffers + kGradKeys : nullptr;
    if (scores.is_plain)
      scores.hide(row, l, begin, width);
    else
      scores.to_exponents(k.b, k.h, l, begin, width, row, k.buffers, slopes);

    const V factor = V::broadcast(scores.is_plain ? scores.factor : T{1});
    const V base = V::broadcast(k.bases[l]), delta = V::broadcast(k.deltas[l]);
    const V scale = V::broadcast(by_score ? T{1} : static_cast<T>(s.scale));
    if (scores.drops) return weigh_dropped(k, l, begin, width, row, by, slopes, factor, scale);
    for (int64_t j = 0; j < width; j += kLanes) {
      const V weight = exp2<kDegree>(V::load(row + j) * factor - base);
      V grad = weight * (V::load(by + j) - delta) * scale;
      // The product beside a hidden key may be anything.
      grad.raw = weight.raw == V::zero().raw ? V::zero().raw : grad.raw;
      if (slopes) grad = grad * V::load(slopes + j);
      weight.store(row + j);
      grad.store(by + j);
    }
  }

  void weigh_dropped(const Block& k, int64_t l, int64_t begin, int64_t width, T* row, T* by,
                     const T* slopes, V factor, V scale) const {
    const V base = V::broadcast(k.bases[l]), delta = V::broadcast(k.deltas[l]);
    const V keep = V::broadcast(scores.keep_factor);
    T* const weights = k.buffers;
    for (int64_t j = 0; j < width; j += kLanes) {
      const V weight = exp2<kDegree>(V::load(row + j) * factor - base);
      weight.store(weights + j);
      (weight * keep).store(row + j);
    }
    scores.drop(k.b, k.h, l, begin, width, row);
    for (int64_t j = 0; j < width; j += kLanes) {
      const V weight = V::load(weights + j);
      V grad = (V::load(row + j) * V::load(by + j) - weight * delta) * scale;
      grad.raw = weight.raw == V::zero().raw ? V::zero().raw : grad.raw;
      if (slopes) grad = grad * V::load(slopes + j);
      grad.store(by + j);
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
