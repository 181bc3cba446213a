// One row of scores, from products to weights: scale, cap, slopes, mask, dropout and exp.
//
// Exponents are those of 2: a score times log2(e), so that exp needs no multiplication of its own.
#pragma once
#include "../attention.h"
#include "gemm.h"
#include "vector_math.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// 2^x of x <= 0, or a little more; 0 far below the smallest normal number; NaN stays. x = n + r, n whole,
// |r| <= 1/2: a polynomial in r, whose exponent n is added to. The coefficients of float are a fit of
// the relative error, 2e-9 (kDegree 6) or 3e-6 (4, of which a half's rounding hides 99 %); those of
// double are of the series, whose next term is below 1e-18.
template <int kDegree>
struct Exp2OfFloat;
template <>
struct Exp2OfFloat<6> {
  static constexpr float kValues[] = {1.0f,           0.693147206f,   0.240226469f,   0.0555032878f,
                                      0.00961848896f, 0.00133999312f, 0.000153458104f};
};
template <>
struct Exp2OfFloat<4> {
  static constexpr float kValues[] = {0.999999261f, 0.693121815f, 0.240247449f, 0.0559178603f,
                                      0.0095701f};
};

template <int kDegree = 6>
FASTCONV_INLINE Vec<float> exp2(Vec<float> x) {
  typedef int32_t Words __attribute__((vector_size(kVectorBytes)));
  constexpr float kRound = 0x1.8p23f, kLeast = -126.0f;
  if constexpr (kHasPowersOfTwo) {
    const Vec<float> rest = beyond_whole(x);
    return times_power(polynomial(Exp2OfFloat<kDegree>::kValues, rest), x - rest);
  }
  const Vec<float> bounded = at_least(x, kLeast);
  const Vec<float> shifted = bounded + Vec<float>::broadcast(kRound);
  const Vec<float> rest = bounded - (shifted - Vec<float>::broadcast(kRound));
  const Vec<float> fraction = polynomial(Exp2OfFloat<kDegree>::kValues, rest);
  const Vec<float> result{
      (Vec<float>::Raw)((Words)fraction.raw + (Words)((WordRaw)shifted.raw << 23))};
  return {x.raw < Vec<float>::broadcast(kLeast).raw ? Vec<float>::zero().raw : result.raw};
}

template <int kDegree = 6>
FASTCONV_INLINE Vec<double> exp2(Vec<double> x) {
  typedef int64_t Words __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  constexpr double kRound = 0x1.8p52, kLeast = -1022.0;
  constexpr double kValues[] = {1.0,
                                0.69314718055994529,
                                0.24022650695910069,
                                0.055504108664821576,
                                0.0096181291076284769,
                                0.0013333558146428441,
                                0.00015403530393381606,
                                1.5252733804059838e-05,
                                1.3215486790144305e-06,
                                1.0178086009239696e-07,
                                7.0549116208011209e-09,
                                4.4455382718708101e-10,
                                2.5678435993488196e-11,
                                1.3691488853904124e-12};
  const Vec<double> bounded = at_least(x, kLeast);
  const Vec<double> shifted = bounded + Vec<double>::broadcast(kRound);
  const Vec<double> rest = bounded - (shifted - Vec<double>::broadcast(kRound));
  const Vec<double> fraction = polynomial(kValues, rest);
  const Vec<double> result{
      (Vec<double>::Raw)((Words)fraction.raw + (Words)((Bits)shifted.raw << 52))};
  return {x.raw < Vec<double>::broadcast(kLeast).raw ? Vec<double>::zero().raw : result.raw};
}

// tanh of small numbers by its series, of others by exp(-2 |x|).
FASTCONV_INLINE Vec<float> tanh(Vec<float> x) {
  constexpr float kSeries[] = {1.0f, -0.333333333f, 0.133333333f, -0.0539682540f, 0.0218694885f};
  const Vec<float> zero = Vec<float>::zero(), one = Vec<float>::broadcast(1);
  const Vec<float> size{x.raw < zero.raw ? -x.raw : x.raw};
  const Vec<float> power = exp2(size * Vec<float>::broadcast(-2 * static_cast<float>(kLog2E)));
  const Vec<float> far = (one - power) / (one + power);
  const Vec<float> signed_far{x.raw < zero.raw ? -far.raw : far.raw};
  const Vec<float> near = x * polynomial(kSeries, x * x);
  return {size.raw < Vec<float>::broadcast(0.25f).raw ? near.raw : signed_far.raw};
}
FASTCONV_INLINE Vec<double> tanh(Vec<double> x) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) x.raw[i] = __builtin_tanh(x.raw[i]);
  return x;
}

template <class T>
FASTCONV_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return {a.raw > b.raw ? a.raw : b.raw};
}

template <class T>
FASTCONV_INLINE T sum_of_lanes(Vec<T> v) {
  for (int distance = Vec<T>::kLanes / 2; distance > 0; distance /= 2)
    for (int i = 0; i < distance; ++i) v.raw[i] += v.raw[i + distance];
  return v.raw[0];
}
template <class T>
FASTCONV_INLINE T maximum_of_lanes(Vec<T> v) {
  for (int distance = Vec<T>::kLanes / 2; distance > 0; distance /= 2)
    for (int i = 0; i < distance; ++i)
      v.raw[i] = v.raw[i] > v.raw[i + distance] ? v.raw[i] : v.raw[i + distance];
  return v.raw[0];
}

// 0, 1, 2, ...
template <class T>
FASTCONV_INLINE Vec<T> lane_numbers() {
  Vec<T> v;
  for (int i = 0; i < Vec<T>::kLanes; ++i) v.raw[i] = static_cast<T>(i);
  return v;
}

// row[begin .. end) = value
template <class T>
FASTCONV_INLINE void fill_run(T* row, int64_t begin, int64_t end, T value) {
  const Vec<T> v = Vec<T>::broadcast(value);
  for (; begin + Vec<T>::kLanes <= end; begin += Vec<T>::kLanes) v.store(row + begin);
  if (begin < end) store_some(row + begin, v, end - begin);
}

FASTCONV_INLINE uint64_t mix64(uint64_t seed, uint64_t number) {
  uint64_t x = seed + (number + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

template <class T>
FASTCONV_INLINE constexpr T minus_infinity() {
  return -static_cast<T>(__builtin_inf());
}

// Numbers of any floating type.
FASTCONV_INLINE double number_at(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[i];
    case DType::kFloat64:
      return static_cast<const double*>(data)[i];
    case DType::kFloat16:
      return static_cast<double>(to_compute(static_cast<const Float16*>(data)[i]));
    default:
      return static_cast<double>(to_compute(static_cast<const BFloat16*>(data)[i]));
  }
}

// The scores of one call. Rows of T begin at some key; widths are multiples of Vec<T>::kLanes, lanes
// beyond the keys asked for get an exponent of -inf.
template <class S>
struct Scores {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

  const AttentionShape& s;
  const AttentionInputs& in;
  T factor;       // of products without cap: exponents are products times it
  bool is_plain;  // nothing but the factor, and that keeps the order and -inf
  bool drops;
  uint32_t threshold;
  T keep_factor;  // 1 / (1 - dropout_p), 0 where all are dropped

  Scores(const AttentionShape& shape, const AttentionInputs& inputs)
      : s(shape),
        in(inputs),
        factor(static_cast<T>(shape.scale * kLog2E)),
        is_plain(!inputs.mask && !inputs.slopes && shape.softcap == 0 && factor > 0),
        drops(shape.dropout_p > 0),
        threshold(shape.dropout_p < 1 ? static_cast<uint32_t>(shape.dropout_p * 0x1p32) : 0),
        keep_factor(shape.dropout_p < 1 ? static_cast<T>(1 / (1 - shape.dropout_p)) : T{0}) {}

  // Keys [begin, end) that queries [l, l_end) see, all in all.
  FASTCONV_INLINE int64_t keys_begin(int64_t l) const { return larger(int64_t{0}, l + s.first); }
  FASTCONV_INLINE int64_t keys_end(int64_t l_end) const {
    return smaller(s.S, l_end + s.last);  // of its last query: l_end - 1 + last + 1
  }

  // Lanes of a row [key, key + width) outside of what query l sees, as products or exponents.
  FASTCONV_INLINE void hide(T* row, int64_t l, int64_t key, int64_t width) const {
    const int64_t begin = smaller(larger(keys_begin(l) - key, int64_t{0}), width);
    const int64_t end = smaller(larger(keys_end(l + 1) - key, begin), width);
    if (begin > 0) fill_run(row, 0, begin, minus_infinity<T>());
    if (end < width) fill_run(row, end, width, minus_infinity<T>());
  }

  // Products become exponents, in place. `slope`, if not null, gets d score / d (scale * product).
  // `buffer` has room for `width` numbers. Only keys below s.S are read of the mask.
  void to_exponents(int64_t b, int64_t h, int64_t l, int64_t key, int64_t width, T* row, T* buffer,
                    T* slope) const {
    if (s.softcap > 0) {
      const V inner = V::broadcast(static_cast<T>(s.scale / s.softcap));
      const V outer = V::broadcast(static_cast<T>(s.softcap * kLog2E)), one = V::broadcast(1);
      for (int64_t i = 0; i < width; i += kLanes) {
        const V capped = tanh(V::load(row + i) * inner);
        (capped * outer).store(row + i);
        if (slope) (one - capped * capped).store(slope + i);
      }
    } else {
      const V by = V::broadcast(factor);
      for (int64_t i = 0; i < width; i += kLanes) (V::load(row + i) * by).store(row + i);
    }
    if (in.slopes) subtract_distance(b, h, l, key, width, row);
    if (in.mask) add_mask(b, h, l, key, width, row, buffer);
    hide(row, l, key, width);
  }

  void subtract_distance(int64_t b, int64_t h, int64_t l, int64_t key, int64_t width,
                         T* row) const {
    const double slope =
        number_at(s.slopes_dtype, in.slopes, b * s.slopes[0] + h * s.slopes[1]) * kLog2E;
    const V by = V::broadcast(static_cast<T>(slope)), lanes = lane_numbers<T>();
    for (int64_t i = 0; i < width; i += kLanes) {
      const V distance = lanes + V::broadcast(static_cast<T>(key + i - l - (s.S - s.L)));
      const V size{distance.raw < V::zero().raw ? -distance.raw : distance.raw};
      (V::load(row + i) - size * by).store(row + i);
    }
  }

  void add_mask(int64_t b, int64_t h, int64_t l, int64_t key, int64_t width, T* row,
                T* buffer) const {
    const int64_t count = smaller(width, s.S - key), stride = s.mask.s[3];
    const int64_t at = b * s.mask.s[0] + h * s.mask.s[1] + l * s.mask.s[2] + key * stride;
    if (s.mask_dtype == DType::kUInt8) {
      const uint8_t* mask = static_cast<const uint8_t*>(in.mask) + at;
      for (int64_t i = 0; i < count; ++i) row[i] = mask[i * stride] ? row[i] : minus_infinity<T>();
    } else if (stride == 1 && s.mask_dtype == s.dtype) {
      add_numbers(static_cast<const S*>(in.mask) + at, count, row);
    } else if (kSame<T, float> && stride == 1 && s.mask_dtype == DType::kFloat32) {
      add_numbers(static_cast<const T*>(in.mask) + at, count, row);
    } else {
      for (int64_t i = 0; i < count; ++i)
        buffer[i] = static_cast<T>(number_at(s.mask_dtype, in.mask, at + i * stride));
      add_numbers(buffer, count, row);
    }
  }

  template <class N>
  FASTCONV_INLINE void add_numbers(const N* mask, int64_t count, T* row) const {
    const V by = V::broadcast(static_cast<T>(kLog2E));
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      (V::load(row + i) + load_as_compute(mask + i) * by).store(row + i);
    if (i < count)
      (V::load(row + i) + load_some_as_compute(mask + i, count - i) * by).store(row + i);
  }

  // Weights of dropped keys become 0; the others are not multiplied.
  void drop(int64_t b, int64_t h, int64_t l, int64_t key, int64_t width, T* row) const {
    const uint64_t mixed = mix64(static_cast<uint64_t>(*in.dropout_seed),
                                 static_cast<uint64_t>((b * s.H + h) * s.L + l));
    const uint32_t low = static_cast<uint32_t>(mixed), high = static_cast<uint32_t>(mixed >> 32);
    for (int64_t i = 0; i < width; ++i) {
      uint32_t x = (static_cast<uint32_t>(key + i) * 0x9e3779b1u) ^ low;
      x = (x ^ (x >> 16)) * 0x85ebca6bu + high;
      x = (x ^ (x >> 13)) * 0xc2b2ae35u;
      row[i] = (x ^ (x >> 16)) >= threshold ? row[i] : T{0};
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
