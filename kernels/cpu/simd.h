// Vectors of the instruction set at hand: the only file that knows vector types.
//
// Vec<T> is one register of T, built on the compilers' vector extension, so that one source serves
// every instruction set. Kernels read and write storage types (float, double, Float16, BFloat16)
// and compute in float or double: Compute<S>.
#pragma once
#include <cstdint>
#include <type_traits>

#include "../dtype.h"
#include "isa.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// FASTCONV_SIMULATE_ISA (CMakeLists.txt) gives the size on the command line: then a register is
// several of the machine's, and nothing but that differs from the real instruction set.
#if defined(FASTCONV_VECTOR_BYTES)
#elif defined(__AVX512F__)
#define FASTCONV_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FASTCONV_VECTOR_BYTES 32
#else
#define FASTCONV_VECTOR_BYTES 16
#endif

namespace fastconv::cpu::FASTCONV_ISA {

// A function that must not exist out of line: also in builds without optimisation it would be a
// call per vector.
#define FASTCONV_INLINE inline __attribute__((always_inline))

constexpr int64_t kVectorBytes = FASTCONV_VECTOR_BYTES;
#if FASTCONV_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// As they lie in memory. Kernels copy it like a number; only dot_bf16 knows what it is.
struct BFloat16Pair {
  BFloat16 first, second;
};

template <class S>
struct ComputeOf {
  using Type = S;
};
template <>
struct ComputeOf<Float16> {
  using Type = float;
};
template <>
struct ComputeOf<BFloat16> {
  using Type = float;
};
template <class S>
using Compute = typename ComputeOf<S>::Type;

template <class A, class B>
constexpr bool kSame = std::is_same_v<A, B>;

// one register

template <class T>
struct Vec {
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  typedef T Raw __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(1), may_alias));

  Raw raw;

  FASTCONV_INLINE static Vec zero() { return {Raw{}}; }
  FASTCONV_INLINE static Vec broadcast(T value) { return {value - Raw{}}; }
  FASTCONV_INLINE static Vec load(const T* p) { return {*reinterpret_cast<const Unaligned*>(p)}; }
  FASTCONV_INLINE void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = raw; }

  FASTCONV_INLINE friend Vec operator+(Vec a, Vec b) { return {a.raw + b.raw}; }
  FASTCONV_INLINE friend Vec operator-(Vec a, Vec b) { return {a.raw - b.raw}; }
  FASTCONV_INLINE friend Vec operator*(Vec a, Vec b) { return {a.raw * b.raw}; }
};

template <>
struct Vec<BFloat16Pair> {
  static constexpr int kLanes = kVectorBytes / sizeof(BFloat16Pair);
  typedef uint32_t Raw __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Unaligned __attribute__((vector_size(kVectorBytes), aligned(1), may_alias));

  Raw raw;  // the first of a pair in the low half

  FASTCONV_INLINE static Vec zero() { return {Raw{}}; }
  FASTCONV_INLINE static Vec broadcast(BFloat16Pair value) {
    uint32_t pair;
    __builtin_memcpy(&pair, &value, sizeof pair);
    return {pair - Raw{}};
  }
  FASTCONV_INLINE static Vec load(const BFloat16Pair* p) {
    return {*reinterpret_cast<const Unaligned*>(p)};
  }
  FASTCONV_INLINE void store(BFloat16Pair* p) const { *reinterpret_cast<Unaligned*>(p) = raw; }
};

template <int... lane>
struct LaneList {};
template <int kCount, int... lane>
struct CountLanes : CountLanes<kCount - 1, kCount - 1, lane...> {};
template <int... lane>
struct CountLanes<0, lane...> {
  using List = LaneList<lane...>;
};

template <class T, int kDistance, int... lane>
FASTCONV_INLINE void exchange_halves(Vec<T>& a, Vec<T>& b, LaneList<lane...>) {
  constexpr int kLanes = Vec<T>::kLanes;
#if defined(__clang__)
#define FASTCONV_SHUFFLE(...) __builtin_shufflevector(a.raw, b.raw, __VA_ARGS__)
#else
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
#define FASTCONV_SHUFFLE(...) __builtin_shuffle(a.raw, b.raw, typename Vec<Index>::Raw{__VA_ARGS__})
#endif
  const auto low = FASTCONV_SHUFFLE(((lane & kDistance) ? lane - kDistance + kLanes : lane)...);
  const auto high = FASTCONV_SHUFFLE(((lane & kDistance) ? lane + kLanes : lane + kDistance)...);
#undef FASTCONV_SHUFFLE
  a.raw = low;
  b.raw = high;
}

// Lanes 0, 2, 4, ... of a and b, one behind the other.
template <class T, int... lane>
FASTCONV_INLINE Vec<T> even_lanes(Vec<T> a, Vec<T> b, LaneList<lane...>) {
#if defined(__clang__)
  return {__builtin_shufflevector(a.raw, b.raw, (2 * lane)...)};
#else
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  return {__builtin_shuffle(a.raw, b.raw, typename Vec<Index>::Raw{(2 * lane)...})};
#endif
}
template <class T>
FASTCONV_INLINE Vec<T> even_lanes(Vec<T> a, Vec<T> b) {
  return even_lanes(a, b, typename CountLanes<Vec<T>::kLanes>::List());
}

// The number of a lane, as wide as the lane.
template <class T>
using LaneIndex = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Lane i is lane index[i] of v; every index is in [0, kLanes).
template <class T>
FASTCONV_INLINE Vec<T> permute(Vec<T> v, Vec<LaneIndex<T>> index) {
#if defined(__clang__)
  Vec<T> result;
  for (int i = 0; i < Vec<T>::kLanes; ++i) result.raw[i] = v.raw[index.raw[i]];
  return result;
#else
  return {__builtin_shuffle(v.raw, index.raw)};
#endif
}

// Transposes kLanes registers in place: lane j of register i becomes lane i of register j.
// Butterfly: in the step of distance d, the halves of registers i and i + d that lie d lanes apart
// change places.
template <class T, int kDistance = Vec<T>::kLanes / 2>
FASTCONV_INLINE void transpose(Vec<T> (&v)[Vec<T>::kLanes]) {
  constexpr int kLanes = Vec<T>::kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & kDistance))
      exchange_halves<T, kDistance>(v[i], v[i + kDistance], typename CountLanes<kLanes>::List());
  if constexpr (kDistance > 1) transpose<T, kDistance / 2>(v);
}

#if defined(__AVX2__) && FASTCONV_VECTOR_BYTES == 32
// All bits of the first `count` lanes of T.
template <class T>
FASTCONV_INLINE __m256i first_lanes(int64_t count) {
  if constexpr (sizeof(T) == 4)
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  else
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif

// The first `count` lanes of memory, the others zero; nothing behind them is touched. 0 <= count <=
// kLanes.
template <class T>
FASTCONV_INLINE Vec<T> load_some(const T* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return {(typename Vec<T>::Raw)_mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1), p)};
  if constexpr (sizeof(T) == 8)
    return {(typename Vec<T>::Raw)_mm512_maskz_loadu_epi64((__mmask8)((1u << count) - 1), p)};
#elif defined(__AVX2__) && FASTCONV_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return {(typename Vec<T>::Raw)_mm256_maskload_epi32(reinterpret_cast<const int*>(p),
                                                        first_lanes<T>(count))};
  if constexpr (sizeof(T) == 8)
    return {(typename Vec<T>::Raw)_mm256_maskload_epi64(reinterpret_cast<const long long*>(p),
                                                        first_lanes<T>(count))};
#endif
  Vec<T> v = Vec<T>::zero();
  __builtin_memcpy(&v, p, static_cast<unsigned long>(count) * sizeof(T));
  return v;
}

template <class T>
FASTCONV_INLINE void store_some(T* p, Vec<T> v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return _mm512_mask_storeu_epi32(p, (__mmask16)((1u << count) - 1), (__m512i)v.raw);
  if constexpr (sizeof(T) == 8)
    return _mm512_mask_storeu_epi64(p, (__mmask8)((1u << count) - 1), (__m512i)v.raw);
#elif defined(__AVX2__) && FASTCONV_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return _mm256_maskstore_epi32(reinterpret_cast<int*>(p), first_lanes<T>(count), (__m256i)v.raw);
  if constexpr (sizeof(T) == 8)
    return _mm256_maskstore_epi64(reinterpret_cast<long long*>(p), first_lanes<T>(count),
                                  (__m256i)v.raw);
#endif
  __builtin_memcpy(p, &v, static_cast<unsigned long>(count) * sizeof(T));
}

// x - round(x), 0 for an infinite x; and v * 2^n of a whole n, 0 far below the smallest number, also
// where n is -infinity. Only where the instruction set has them.
#if defined(__AVX512DQ__)
constexpr bool kHasPowersOfTwo = true;
FASTCONV_INLINE Vec<float> beyond_whole(Vec<float> x) {
  return {_mm512_reduce_ps(x.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FASTCONV_INLINE Vec<float> times_power(Vec<float> v, Vec<float> n) {
  return {_mm512_scalef_ps(v.raw, n.raw)};
}
#else
constexpr bool kHasPowersOfTwo = false;
FASTCONV_INLINE Vec<float> beyond_whole(Vec<float> x) { return x; }
FASTCONV_INLINE Vec<float> times_power(Vec<float> v, Vec<float>) { return v; }
#endif

// half precision
// Rounding is to nearest even; NaN stays NaN, quieted; subnormals are kept (the hardware's conversion
// to bfloat16 flushes them).

constexpr int kHalfLanes = kVectorBytes / 4;  // as many halves as floats fit one register
typedef uint16_t HalfRaw __attribute__((vector_size(kVectorBytes / 2), aligned(1), may_alias));
typedef uint32_t WordRaw __attribute__((vector_size(kVectorBytes)));

template <class S>
FASTCONV_INLINE HalfRaw load_halves(const S* p) {
  return *reinterpret_cast<const HalfRaw*>(p);
}

// Lanes [begin, end) are p[0], p[1], ...; the others zero. Nothing else of memory is touched.
template <class S>
FASTCONV_INLINE HalfRaw load_halves_between(const S* p, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  const uint32_t mask = ((1u << end) - 1) & ~((1u << begin) - 1);
  return (HalfRaw)_mm256_maskz_loadu_epi16((__mmask16)mask, p - begin);
#else
  S lanes[kHalfLanes] = {};
  __builtin_memcpy(lanes + begin, p, static_cast<unsigned long>(end - begin) * sizeof(S));
  return load_halves(lanes);
#endif
}

template <class S>
FASTCONV_INLINE void store_some_halves(S* p, HalfRaw halves, int64_t count) {
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << count) - 1), (__m256i)halves);
#else
  __builtin_memcpy(p, &halves, static_cast<unsigned long>(count) * sizeof(S));
#endif
}

FASTCONV_INLINE Vec<float> widen(HalfRaw halves, BFloat16) {
  return {(Vec<float>::Raw)(__builtin_convertvector(halves, WordRaw) << 16)};
}

FASTCONV_INLINE HalfRaw narrow(Vec<float> v, BFloat16) {
#if defined(__AVX512BF16__)
  constexpr int kSubnormal = 0x20;
  if (__builtin_expect(!_mm512_fpclass_ps_mask(v.raw, kSubnormal), 1))
    return (HalfRaw)_mm512_cvtneps_pbh(v.raw);
#endif
  const WordRaw bits = (WordRaw)v.raw;
  const WordRaw rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const WordRaw quiet = (bits >> 16) | 0x40;
  const WordRaw is_nan = (WordRaw)(v.raw != v.raw);
  return __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), HalfRaw);
}

#if defined(__AVX512F__)
FASTCONV_INLINE Vec<float> widen(HalfRaw halves, Float16) {
  return {_mm512_cvtph_ps((__m256i)halves)};
}
FASTCONV_INLINE HalfRaw narrow(Vec<float> v, Float16) {
  return (HalfRaw)_mm512_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__AVX2__) && FASTCONV_VECTOR_BYTES == 32
FASTCONV_INLINE Vec<float> widen(HalfRaw halves, Float16) {
  return {_mm256_cvtph_ps((__m128i)halves)};
}
FASTCONV_INLINE HalfRaw narrow(Vec<float> v, Float16) {
  return (HalfRaw)_mm256_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
// Without a conversion in hardware: exponents are moved by a multiplication with a power of two,
// which also makes subnormals right; infinity and NaN are patched.
FASTCONV_INLINE Vec<float> widen(HalfRaw halves, Float16) {
  typedef float FloatRaw __attribute__((vector_size(kVectorBytes)));
  const WordRaw word = __builtin_convertvector(halves, WordRaw);
  const WordRaw sign = (word & 0x8000) << 16, magnitude = (word & 0x7fff) << 13;
  const WordRaw scaled = (WordRaw)((FloatRaw)magnitude * 0x1p112f);
  const WordRaw special = (WordRaw)((word & 0x7c00) == 0x7c00);
  return {(FloatRaw)(sign | (scaled & ~special) | ((magnitude | 0x7f800000) & special))};
}

FASTCONV_INLINE HalfRaw narrow(Vec<float> v, Float16) {
  typedef float FloatRaw __attribute__((vector_size(kVectorBytes)));
  const WordRaw bits = (WordRaw)v.raw;
  const WordRaw sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  // Normal halves: rebias the exponent, round the 13 bits that fall away.
  const WordRaw normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal halves: the addition aligns the last bit to 2^-24 and the FPU rounds.
  const WordRaw subnormal = (WordRaw)((FloatRaw)magnitude + 0.5f) - 0x3f000000;
  const WordRaw small = (WordRaw)(magnitude < (113u << 23));
  const WordRaw large =
      (WordRaw)(magnitude >= 0x477ff000);  // rounds to 65536 or more, or is infinite
  const WordRaw is_nan = (WordRaw)(magnitude > 0x7f800000);
  WordRaw half = (normal & ~small) | (subnormal & small);
  half = (half & ~large) | (0x7c00 & large);
  half = (half & ~is_nan) | ((0x7e00 | ((magnitude >> 13) & 0x3ff)) & is_nan);
  return __builtin_convertvector(half | sign, HalfRaw);
}
#endif

// dot products of bfloat16

// dot_bf16 is one instruction; elsewhere it exists for correctness, and widening is faster.
#if defined(__AVX512BF16__) || defined(FASTCONV_SIMULATE_BF16)
constexpr bool kHasDotBFloat16 = true;
#else
constexpr bool kHasDotBFloat16 = false;
#endif

FASTCONV_INLINE Vec<float> flush_subnormals(Vec<float> v) {
  const WordRaw bits = (WordRaw)v.raw;
  const WordRaw is_subnormal = (WordRaw)((bits & 0x7fffffff) < 0x00800000);
  return {(Vec<float>::Raw)(bits & (~is_subnormal | 0x80000000))};
}

// sum += a.second * b.second, rounded to nearest even, then sum += a.first * b.first, rounded again:
// VDPBF16PS of the Intel 64 SDM, volume 2. Subnormals, of the sum and of every step's result too,
// count as zero, whatever MXCSR says.
#if defined(__AVX512BF16__)
FASTCONV_INLINE Vec<float> dot_bf16(Vec<float> sum, Vec<BFloat16Pair> a, Vec<BFloat16Pair> b) {
  return {_mm512_dpbf16_ps(sum.raw, (__m512bh)a.raw, (__m512bh)b.raw)};
}
#else
FASTCONV_INLINE Vec<float> dot_bf16(Vec<float> sum, Vec<BFloat16Pair> a, Vec<BFloat16Pair> b) {
  sum = flush_subnormals(sum);
  for (int shift = 0; shift <= 16; shift += 16) {  // the upper element first
    const Vec<float> x = flush_subnormals({(Vec<float>::Raw)((a.raw << shift) & 0xffff0000)});
    const Vec<float> y = flush_subnormals({(Vec<float>::Raw)((b.raw << shift) & 0xffff0000)});
    for (int i = 0; i < Vec<float>::kLanes; ++i)
      sum.raw[i] = __builtin_fmaf(x.raw[i], y.raw[i], sum.raw[i]);
    sum = flush_subnormals(sum);
  }
  return sum;
}
#endif

// The bits of `pair` that are set in `kept`, in every lane.
FASTCONV_INLINE Vec<BFloat16Pair> broadcast_bits(BFloat16Pair pair, Vec<BFloat16Pair> kept) {
#if defined(__AVX512BF16__)
  asm("" : "+v"(kept.raw));  // else gcc masks before it broadcasts, by way of a general register
#endif
  return {Vec<BFloat16Pair>::broadcast(pair).raw & kept.raw};
}

// narrow, but subnormals become zero: they are no results of dot_bf16 either.
FASTCONV_INLINE HalfRaw narrow_flushed(Vec<float> v) {
#if defined(__AVX512BF16__)
  return (HalfRaw)_mm512_cvtneps_pbh(v.raw);
#else
  return narrow(flush_subnormals(v), BFloat16{});
#endif
}

// The same of two registers, one behind the other.
FASTCONV_INLINE void store_narrowed(BFloat16* p, Vec<float> a, Vec<float> b) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b.raw, a.raw));
#else
  *reinterpret_cast<HalfRaw*>(p) = narrow_flushed(a);
  *reinterpret_cast<HalfRaw*>(p + kHalfLanes) = narrow_flushed(b);
#endif
}

// Of its first `count` lanes.
FASTCONV_INLINE void store_some_narrowed(BFloat16* p, Vec<float> v, int64_t count) {
  store_some_halves(p, narrow_flushed(v), count);
}

// Lane i is the pair (first[i], second[i]).
FASTCONV_INLINE Vec<BFloat16Pair> make_pairs(HalfRaw first, HalfRaw second) {
  return {__builtin_convertvector(first, WordRaw) |
          (__builtin_convertvector(second, WordRaw) << 16)};
}

// what products are made of
// An element of an operand is a number, or a pair of them, neighbours along the axis that is summed
// over, both of which one instruction multiplies. Sum<T> is what products of T add up to.

template <class T>
constexpr int64_t kNumbers = kSame<T, BFloat16Pair> ? 2 : 1;
template <class T>
using Sum = std::conditional_t<kSame<T, BFloat16Pair>, float, T>;
// The storage type S as an operand of products.
template <class S>
using Packed = std::conditional_t<kSame<S, BFloat16> && kHasDotBFloat16, BFloat16Pair, Compute<S>>;

// Whether numbers in memory, kNumbers<Packed<S>> of them, are an element of the operand already.
template <class S>
constexpr bool kIsPacked = !kSame<Packed<S>, Compute<S>> || kSame<S, Compute<S>>;

template <class T>
FASTCONV_INLINE Vec<T> add_product(Vec<T> sum, Vec<T> a, Vec<T> b) {
  return sum + a * b;
}
FASTCONV_INLINE Vec<float> add_product(Vec<float> sum, Vec<BFloat16Pair> a, Vec<BFloat16Pair> b) {
  return dot_bf16(sum, a, b);
}

// storage to compute and back

template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_as_compute(const S* p) {
  if constexpr (kSame<S, Compute<S>>)
    return Vec<S>::load(p);
  else
    return widen(load_halves(p), S{});
}

template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_some_as_compute(const S* p, int64_t count) {
  if constexpr (kSame<S, Compute<S>>)
    return load_some(p, count);
  else
    return widen(load_halves_between(p, 0, count), S{});
}

// Lanes [begin, end) are p[0], p[1], ...; the others zero. Nothing else of memory is touched.
template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_between_as_compute(const S* p, int64_t begin, int64_t end) {
  if constexpr (!kSame<S, Compute<S>>) return widen(load_halves_between(p, begin, end), S{});
#if defined(__AVX512F__)
  const uint32_t mask = ((1u << end) - 1) & ~((1u << begin) - 1);
  if constexpr (sizeof(S) == 4)
    return {(typename Vec<S>::Raw)_mm512_maskz_loadu_epi32((__mmask16)mask, p - begin)};
  if constexpr (sizeof(S) == 8)
    return {(typename Vec<S>::Raw)_mm512_maskz_loadu_epi64((__mmask8)mask, p - begin)};
#else
  S lanes[Vec<Compute<S>>::kLanes] = {};
  __builtin_memcpy(lanes + begin, p, static_cast<unsigned long>(end - begin) * sizeof(S));
  return load_as_compute(lanes);
#endif
}

template <class S>
FASTCONV_INLINE void store_from_compute(S* p, Vec<Compute<S>> v) {
  if constexpr (kSame<S, Compute<S>>)
    v.store(p);
  else
    *reinterpret_cast<HalfRaw*>(p) = narrow(v, S{});
}

template <class S>
FASTCONV_INLINE void store_some_from_compute(S* p, Vec<Compute<S>> v, int64_t count) {
  if constexpr (kSame<S, Compute<S>>) {
    store_some(p, v, count);
  } else {
    store_some_halves(p, narrow(v, S{}), count);
  }
}

template <class S>
FASTCONV_INLINE Compute<S> to_compute(S value) {
  if constexpr (kSame<S, Compute<S>>) {
    return value;
  } else if constexpr (kSame<S, BFloat16>) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    __builtin_memcpy(&result, &bits, sizeof result);
    return result;
  } else {
    return load_some_as_compute(&value, 1).raw[0];
  }
}

template <class S>
FASTCONV_INLINE S from_compute(Compute<S> value) {
  if constexpr (kSame<S, Compute<S>>) {
    return value;
  } else {
    S result;
    store_some_from_compute(&result, Vec<float>::broadcast(value), 1);
    return result;
  }
}

// Calls body with a value of the storage type; nothing happens for a type that is not floating.
template <class Body>
FASTCONV_INLINE void with_storage_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kFloat64:
      return body(double{});
    case DType::kFloat16:
      return body(Float16{});
    case DType::kBFloat16:
      return body(BFloat16{});
    default:
      return;
  }
}

template <class A>
FASTCONV_INLINE constexpr A smaller(A a, A b) {
  return b < a ? b : a;
}
template <class A>
FASTCONV_INLINE constexpr A larger(A a, A b) {
  return a < b ? b : a;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
