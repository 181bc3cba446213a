// Runs and grids of numbers from memory to memory: the innermost loops of packers and stores.
//
// A source of T is a pointer, or something like it: `source + x` moves by x numbers, load_as_compute
// gives a register of T whose lanes begin kNextLane<Source> numbers apart, element_at the first one.
//
//   const S*          T = Compute<S>    a number, widened
//   PairsApart        T = BFloat16Pair  number i and the one `apart` further on
//   PairsAdjacent     T = BFloat16Pair  number i and the next; so do the pairs of a register follow
//                                       each other
#pragma once
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class T>
FASTCONV_INLINE constexpr T divide_up(T a, T b) {
  return (a + b - 1) / b;
}

struct PairsApart {
  const BFloat16* first;
  int64_t apart;
  uint32_t kept = 0xffffffff;  // of a pair's bits

  // A single number, whose pair is filled up with zero; nothing else is read.
  FASTCONV_INLINE static PairsApart lone(const BFloat16* number) { return {number, 0, 0xffff}; }

  FASTCONV_INLINE PairsApart operator+(int64_t x) const { return {first + x, apart, kept}; }
  FASTCONV_INLINE Vec<BFloat16Pair> pairs(HalfRaw low, HalfRaw high) const {
    return {make_pairs(low, high).raw & kept};
  }
};

struct PairsAdjacent {
  const BFloat16* first;
  FASTCONV_INLINE PairsAdjacent operator+(int64_t x) const { return {first + x}; }
  FASTCONV_INLINE const BFloat16Pair* memory() const {
    return reinterpret_cast<const BFloat16Pair*>(first);
  }
};

// Numbers that follow each other in memory, as elements of T.
template <class T, class S>
FASTCONV_INLINE auto elements_of(const S* numbers) {
  if constexpr (kNumbers<T> == 1)
    return numbers;
  else
    return PairsAdjacent{numbers};
}

template <class Source>
constexpr int64_t kNextLane = kSame<Source, PairsAdjacent> ? 2 : 1;

FASTCONV_INLINE Vec<BFloat16Pair> load_as_compute(PairsApart p) {
  return p.pairs(load_halves(p.first), load_halves(p.first + p.apart));
}
FASTCONV_INLINE Vec<BFloat16Pair> load_some_as_compute(PairsApart p, int64_t count) {
  return p.pairs(load_halves_between(p.first, 0, count),
                 load_halves_between(p.first + p.apart, 0, count));
}
FASTCONV_INLINE Vec<BFloat16Pair> load_between_as_compute(PairsApart p, int64_t begin,
                                                          int64_t end) {
  return p.pairs(load_halves_between(p.first, begin, end),
                 load_halves_between(p.first + p.apart, begin, end));
}
FASTCONV_INLINE BFloat16Pair element_at(PairsApart p) {
  const uint16_t second = p.first[p.apart].bits;
  return {*p.first, {static_cast<uint16_t>(second & p.kept >> 16)}};
}

FASTCONV_INLINE Vec<BFloat16Pair> load_as_compute(PairsAdjacent p) {
  return Vec<BFloat16Pair>::load(p.memory());
}
FASTCONV_INLINE Vec<BFloat16Pair> load_some_as_compute(PairsAdjacent p, int64_t count) {
  return load_some(p.memory(), count);
}
FASTCONV_INLINE BFloat16Pair element_at(PairsAdjacent p) { return *p.memory(); }

FASTCONV_INLINE const void* address_of(PairsApart p) { return p.first; }
FASTCONV_INLINE const void* address_of(PairsAdjacent p) { return p.first; }
FASTCONV_INLINE const void* address_of(const void* p) { return p; }

template <class S>
FASTCONV_INLINE Compute<S> element_at(const S* p) {
  return to_compute(*p);
}

// Elements [begin, end) of T that `count` numbers make, `stride` apart: calls body(source, first, some)
// for sources of `some` elements from begin + first on, kNumbers<T> * stride apart. kAcross: lanes lie
// along another axis.
template <class T, bool kAcross, class S, class Body>
FASTCONV_INLINE void for_elements(const S* numbers, int64_t stride, int64_t count, int64_t begin,
                                  int64_t end, const Body& body) {
  if constexpr (kNumbers<T> == 1) {
    body(numbers + begin * stride, 0, end - begin);
  } else {
    const int64_t whole = smaller(end, count / 2) - begin;
    const S* const from = numbers + 2 * begin * stride;
    if constexpr (!kAcross)
      if (whole > 0 && stride == 1) body(PairsAdjacent{from}, 0, whole);
    if (whole > 0 && (kAcross || stride != 1)) body(PairsApart{from, stride}, 0, whole);
    if (whole < end - begin) body(PairsApart::lone(from + 2 * whole * stride), whole, 1);
  }
}

// target[i] = T at source[i * stride]; exactly `count` elements are read and written.
template <class T, class Source>
FASTCONV_INLINE void copy_run(T* target, Source source, int64_t stride, int64_t count) {
  constexpr int64_t kLanes = Vec<T>::kLanes, kNext = kNextLane<Source>;
  int64_t i = 0;
  if (kNext != 1 && stride != kNext) {
    for (; i < count; ++i) target[i] = element_at(source + i * stride);
    return;
  }
  if (kNext == 1 && stride != 1) {
    // All loads end at the next block's first element.
    const auto even = [&](int64_t x) {
      return even_lanes(load_as_compute(source + x), load_as_compute(source + x + kLanes));
    };
    for (; stride == 2 && i + kLanes < count; i += kLanes) even(2 * i).store(target + i);
    for (; stride == 4 && i + kLanes < count; i += kLanes)
      even_lanes(even(4 * i), even(4 * i + 2 * kLanes)).store(target + i);
    if (stride == 2 && i < count) {
      const int64_t rest = 2 * (count - i) - 1, first = smaller(rest, kLanes);
      const auto some = even_lanes(load_some_as_compute(source + 2 * i, first),
                                   load_some_as_compute(source + 2 * i + first, rest - first));
      return store_some(target + i, some, count - i);
    }
    for (; i < count; ++i) target[i] = element_at(source + i * stride);
    return;
  }
  for (; i + kLanes <= count; i += kLanes) load_as_compute(source + i * kNext).store(target + i);
  if (i < count)
    store_some(target + i, load_some_as_compute(source + i * kNext, count - i), count - i);
}

// target[i * target_stride + j] = T at source[i * row_stride + j * column_stride]. Where the rows of
// the source are contiguous and its columns are not, square blocks are transposed in registers.
template <class T, class Source>
void copy_grid(T* target, int64_t target_stride, Source source, int64_t row_stride,
               int64_t column_stride, int64_t rows, int64_t columns) {
  using V = Vec<T>;
  constexpr int64_t kNext = kNextLane<Source>;
  int64_t i = 0;
  if (column_stride != kNext && row_stride == kNext && columns >= V::kLanes) {
    constexpr int64_t kFewRows = 3;  // are not worth a block
    for (; i + kFewRows < rows; i += V::kLanes) {
      const int64_t count = smaller(rows - i, int64_t{V::kLanes});
      int64_t j = 0;
      for (; j + V::kLanes <= columns; j += V::kLanes) {
        V block[V::kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < V::kLanes; ++r) {
          const Source from = source + i * kNext + (j + r) * column_stride;
          block[r] = count == V::kLanes ? load_as_compute(from) : load_some_as_compute(from, count);
          // Lines of a column are few: no stream.
          __builtin_prefetch(address_of(from + 4 * V::kLanes * kNext));
        }
        transpose(block);
#pragma GCC unroll 16
        for (int r = 0; r < V::kLanes; ++r)
          if (r < count) block[r].store(target + (i + r) * target_stride + j);
      }
      for (int64_t r = i; r < i + count; ++r)
        copy_run(target + r * target_stride + j, source + r * kNext + j * column_stride,
                 column_stride, columns - j);
    }
  }
  for (; i < rows; ++i)
    copy_run(target + i * target_stride, source + i * row_stride, column_stride, columns);
}

template <class T>
FASTCONV_INLINE void clear_run(T* target, int64_t count) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Vec<T>::zero().store(target + i);
  if (i < count) store_some(target + i, Vec<T>::zero(), count - i);
}

// The same of any numbers of a run, into memory of type T, which may be the storage type itself.
template <class T, class S>
FASTCONV_INLINE void copy_numbers(T* target, const S* source, int64_t count) {
  if constexpr (kSame<T, S>)
    __builtin_memcpy(target, source, static_cast<unsigned long>(count) * sizeof(T));
  else
    copy_run(target, source, 1, count);
}
template <class T>
FASTCONV_INLINE void clear_numbers(T* target, int64_t count) {
  __builtin_memset(target, 0, static_cast<unsigned long>(count) * sizeof(T));
}

// target[i * stride] = source[i] + addend, narrowed to the storage type.
template <class S>
FASTCONV_INLINE void store_run(S* target, int64_t stride, const Compute<S>* source, int64_t count,
                               Compute<S> addend) {
  using V = Vec<Compute<S>>;
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) target[i * stride] = from_compute<S>(source[i] + addend);
    return;
  }
  const V add = V::broadcast(addend);
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes)
    store_from_compute(target + i, V::load(source + i) + add);
  if (i < count)
    store_some_from_compute(target + i, load_some(source + i, count - i) + add, count - i);
}

// target[i * stride] = source[i] + addend[i]; addend may be null.
template <class S>
FASTCONV_INLINE void store_run(S* target, int64_t stride, const Compute<S>* source, int64_t count,
                               const Compute<S>* addend) {
  using V = Vec<Compute<S>>;
  if (!addend) return store_run(target, stride, source, count, Compute<S>{0});
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) target[i * stride] = from_compute<S>(source[i] + addend[i]);
    return;
  }
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes)
    store_from_compute(target + i, V::load(source + i) + V::load(addend + i));
  if (i < count)
    store_some_from_compute(
        target + i, load_some(source + i, count - i) + load_some(addend + i, count - i), count - i);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
