// attention, gradient by a mask that is added to the scores.
//
//   grad_mask[b,h,l,s] = by_score[b,h,l,s], summed over every axis that the mask lacks
//
// For as many heads as fit: operands are packed, then each unit recomputes the gradients of the scores
// that its part of the mask was added to: a block of queries and keys, of all heads, queries or keys
// where the mask has but one. A unit adds them in the order of b, h, l: to memory that is its own.
// Cost: 2 * (D + E) flops per score.
#include "../attention.h"

#include "attention_gradient.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class S>
struct MaskGrad : Gradient<S> {
  using Base = Gradient<S>;
  using Base::group, Base::s;
  using typename Base::Block;
  using typename Base::P;
  using typename Base::Places;
  using typename Base::T;
  using typename Base::V;

  const int64_t* n;  // the mask's extents
  T* sums;           // of the mask's extents
  const T *deltas, *bases;
  Places at;

  MaskGrad(const AttentionGradShape& shape, const AttentionGradInputs& inputs,
           const int64_t* mask_sizes, T* mask_sums, const T* delta, const T* base)
      : Base(shape, inputs),
        n(mask_sizes),
        sums(mask_sums),
        deltas(delta),
        bases(base),
        at(Base::places()) {}

  // Row i of a block to the mask's sums.
  FASTCONV_INLINE void add_row(const Block& k, int64_t i) const {
    const int64_t b = k.b % n[0], h = k.h % n[1], l = (k.query + i) % n[2];
    const int64_t keys = k.key_end - k.key;
    const T* const row = k.by_product + i * kGradKeys;
    T* const to = sums + ((b * n[1] + h) * n[2] + l) * n[3];
    if (n[3] == 1) {
      V sum = V::zero();
      for (int64_t j = 0; j < kGradKeys; j += V::kLanes) sum = sum + V::load(row + j);
      to[0] += sum_of_lanes(sum);
      return;
    }
    for (int64_t j = 0; j < keys; j += V::kLanes) {
      const int64_t some = smaller(keys - j, int64_t{V::kLanes});
      store_some(to + k.key + j, load_some(to + k.key + j, some) + V::load(row + j), some);
    }
  }

  // Block (query, key) of head (b, h), which is packed in `memory`.
  void block(Block k, int64_t b, int64_t h, const P* memory) const {
    const int64_t j = h % group;
    k.b = b, k.h = h;
    k.queries = memory + at.queries + j * at.query_size;
    k.grads = memory + at.grads + j * at.grad_size;
    k.key_columns = memory + at.key_columns, k.value_columns = memory + at.value_columns;
    k.deltas = deltas + (b * s.H + h) * s.L, k.bases = bases + (b * s.H + h) * s.L;
    Base::weigh(k, true);
    for (int64_t i = 0; i < k.query_end - k.query; ++i) add_row(k, i);
  }

  // What of a mask the heads [first, first + count) of key touch.
  void heads(int64_t first, int64_t count, const P* packed) const {
    const int64_t query_blocks = divide_up(s.L, kGradQueries);
    const int64_t key_blocks = divide_up(s.S, kGradKeys);
    const int64_t row_units = n[2] == 1 ? 1 : query_blocks,
                  column_units = n[3] == 1 ? 1 : key_blocks;
    share_out(n[0] * n[1] * row_units * column_units, [&](int64_t unit) {
      constexpr int64_t kArea = kGradQueries * kGradKeys;
      Scratch<T> areas(2 * kArea + 2 * kGradKeys);
      Block k{};
      k.kept = areas.data(), k.by_product = k.kept + kArea, k.buffers = k.by_product + kArea;
      const int64_t column = unit % column_units, row = unit / column_units % row_units;
      const int64_t mask_head = unit / column_units / row_units;
      for (int64_t i = 0; i < count * group; ++i) {
        const int64_t b = (first + i / group) / s.G;
        const int64_t h = (first + i / group) % s.G * group + i % group;
        if (b % n[0] * n[1] + h % n[1] != mask_head) continue;
        for (int64_t q = row; q < query_blocks; q += row_units) {
          for (int64_t c = column; c < key_blocks; c += column_units) {
            k.query = q * kGradQueries, k.query_end = smaller(k.query + kGradQueries, s.L);
            k.key = c * kGradKeys, k.key_end = smaller(k.key + kGradKeys, s.S);
            block(k, b, h, packed + i / group * at.end);
          }
        }
      }
    });
  }

  void run() const {
    const int64_t all = s.B * s.G, bytes = at.end * static_cast<int64_t>(sizeof(P)) + 1;
    const int64_t together = smaller(larger(kPackedBytes / bytes, int64_t{1}), all);
    const int64_t kinds = Base::operand_count();
    Scratch<P> packed(together, at.end);
    for (int64_t first = 0; first < all; first += together) {
      const int64_t count = smaller(together, all - first);
      share_out(count * kinds, [&](int64_t unit) {
        const int64_t head = first + unit / kinds;
        Base::pack(at, packed.data() + unit / kinds * at.end, head / s.G, head % s.G, unit % kinds);
      });
      heads(first, count, packed.data());
    }
  }
};

// From sums to the mask's own type.
template <class T>
void store_mask(DType dtype, const T* sums, int64_t count, void* mask) {
  with_storage_type(dtype, [&](auto zero) {
    using M = decltype(zero);
    M* const to = static_cast<M*>(mask);
    if constexpr (kSame<Compute<M>, T>)
      store_run(to, 1, sums, count, T{0});
    else
      for (int64_t i = 0; i < count; ++i) to[i] = from_compute<M>(static_cast<Compute<M>>(sums[i]));
  });
}

}  // namespace

void attention_mask_grad(const AttentionGradShape& shape, const AttentionGradInputs& inputs,
                         const int64_t* mask_sizes, void* grad_mask) {
  with_storage_type(shape.forward.dtype, [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    const AttentionShape& s = shape.forward;
    const int64_t rows = s.B * s.H * s.L;
    Scratch<T> constants(2, rows);
    T *const deltas = constants.data(), *const bases = deltas + rows;
    const Gradient<S> gradient(shape, inputs);
    gradient.fill_constants(deltas, bases);
    const int64_t count = mask_sizes[0] * mask_sizes[1] * mask_sizes[2] * mask_sizes[3];
    const bool in_place = s.mask_dtype == s.dtype && kSame<S, T>;
    Scratch<T> memory(in_place ? 0 : count);
    T* const sums = in_place ? static_cast<T*>(grad_mask) : memory.data();
    clear_run(sums, count);
    MaskGrad<S>(shape, inputs, mask_sizes, sums, deltas, bases).run();
    if (!in_place) store_mask(s.mask_dtype, sums, count, grad_mask);
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(attention_mask_grad,
                  (const AttentionGradShape& shape, const AttentionGradInputs& inputs,
                   const int64_t* mask_sizes, void* grad_mask),
                  (shape, inputs, mask_sizes, grad_mask))
