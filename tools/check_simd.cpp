// Every function of kernels/cpu/simd.h and vector_math.h that is not plain arithmetic, against its definition,
// compiled for one instruction set like a kernel: a part of compare_isas.
#include <cmath>
#include <cstdint>

#include "kernels/cpu/vector_math.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Memory between two pages that must not be touched, and what was found wrong.
struct Memory {
  unsigned char *begin, *end;
  const char* fault = nullptr;
};

template <class S>
S small_number(int64_t value) {
  return from_compute<S>(static_cast<Compute<S>>(value));
}

// Lanes [first, last) of v are 1, 2, ..., the others zero.
template <class C>
bool counts_from_one(Vec<C> v, int64_t first, int64_t last) {
  for (int64_t i = 0; i < Vec<C>::kLanes; ++i)
    if (v.raw[i] != (i < first || i >= last ? 0 : static_cast<C>(i - first + 1))) return false;
  return true;
}

// Partial loads and stores of every length, next to either page.
template <class S>
void check_tails(Memory& memory) {
  using C = Compute<S>;
  constexpr int64_t kLanes = Vec<C>::kLanes;
  Vec<C> counting = Vec<C>::zero();
  for (int64_t i = 0; i < kLanes; ++i) counting.raw[i] = static_cast<C>(i + 1);
  for (int64_t count = 0; count <= kLanes; ++count)
    for (int side = 0; side < 2; ++side) {
      S* p = reinterpret_cast<S*>(side ? memory.end - count * sizeof(S) : memory.begin);
      for (int64_t i = 0; i < count; ++i) p[i] = small_number<S>(i + 1);
      if (!counts_from_one<C>(load_some_as_compute(p, count), 0, count))
        memory.fault = "load_some_as_compute";
      for (int64_t first = 0; first + count <= kLanes; ++first)
        if (!counts_from_one<C>(load_between_as_compute(p, first, first + count), first,
                                first + count))
          memory.fault = "load_between_as_compute";

      // One element beyond the end must keep its value, where there is one.
      S* kept = side ? p - 1 : p + count;
      *kept = small_number<S>(77);
      for (int64_t i = 0; i < count; ++i) p[i] = small_number<S>(0);
      store_some_from_compute<S>(p, counting, count);
      if (to_compute(*kept) != 77) memory.fault = "store_some_from_compute: wrote too much";
      for (int64_t i = 0; i < count; ++i)
        if (to_compute(p[i]) != static_cast<C>(i + 1)) memory.fault = "store_some_from_compute";
    }
}

template <class T>
void check_transpose(Memory& memory) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> v[kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) v[i].raw[j] = static_cast<T>(i * kLanes + j);
  transpose(v);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j)
      if (v[i].raw[j] != static_cast<T>(j * kLanes + i)) memory.fault = "transpose";
}

uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// A type of 1 sign bit, an exponent that begins at 2^(1 - bias), and a mantissa: the value of bits.
double value_of(uint32_t bits, int mantissa, int bias, uint32_t infinity) {
  const uint32_t magnitude = bits & 0x7fff, exponent = magnitude >> mantissa;
  const uint32_t fraction = magnitude & ((1u << mantissa) - 1);
  double value = magnitude > infinity    ? NAN
                 : magnitude == infinity ? INFINITY
                 : exponent == 0
                     ? std::ldexp(fraction, 1 - bias - mantissa)
                     : std::ldexp(fraction + (1u << mantissa), int(exponent) - bias - mantissa);
  return bits & 0x8000 ? -value : value;
}

// The bits of the value nearest to x, of two the even one: they are ordered as their values are.
uint32_t nearest(float x, int mantissa, int bias, uint32_t infinity) {
  const double magnitude = std::fabs(static_cast<double>(x));
  uint32_t low = 0, high = infinity;  // values: low <= magnitude <= high
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (value_of(middle, mantissa, bias, infinity) <= magnitude ? low : high) = middle;
  }
  // Infinity rounds as the number that would follow the largest.
  const double below = value_of(low, mantissa, bias, infinity);
  const double above = value_of(high, mantissa, bias, infinity + 1);
  const double middle = high == infinity
                            ? below + (below - value_of(low - 1, mantissa, bias, infinity)) / 2
                            : (below + above) / 2;
  const bool up = magnitude > middle || (magnitude == middle && (high & 1) == 0);
  return (up ? high : low) | (std::signbit(x) ? 0x8000 : 0);
}

template <class S>
void check_half(Memory& memory, int mantissa, int bias) {
  const uint32_t infinity = 0x7fff >> mantissa << mantissa;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const S half = {static_cast<uint16_t>(bits)};
    const double expected = value_of(bits, mantissa, bias, infinity);
    const float wide = load_some_as_compute(&half, 1).raw[0];
    if (std::isnan(expected) ? !std::isnan(wide) : static_cast<double>(wide) != expected)
      memory.fault = "widen";
    const uint32_t back = from_compute<S>(wide).bits;
    if (std::isnan(expected) ? (back & 0x7fff) <= infinity : back != bits) memory.fault = "narrow";
  }
  // Around every value that has a neighbour: the tie between them, and what is next to the tie.
  uint32_t random = 1;
  for (int i = 0; i < 100000; ++i) {
    random = random * 1664525 + 1013904223;
    const uint32_t dropped = 23 - mantissa;
    const uint32_t tie = (random >> dropped << dropped) | (1u << (dropped - 1));
    const float x = float_of(i % 4 == 3 ? random : tie + (i % 4) - 1);
    if (std::isnan(x)) continue;
    if (from_compute<S>(x).bits != nearest(x, mantissa, bias, infinity)) memory.fault = "narrow";
  }
}

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

void check_dot_bf16(Memory& memory) {
  constexpr int kLanes = Vec<float>::kLanes;
  uint64_t random = 1;
  const auto next = [&random] {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(random >> 32);
  };
  for (int round = 0; round < 20000; ++round) {
    // All bits at random; or numbers near enough to each other that every rounding counts.
    const uint32_t keep = round % 2 ? 0x87ff87ff : 0xffffffff, set = round % 2 ? 0x38003800 : 0;
    Vec<BFloat16Pair> a, b;
    Vec<float> sum;
    for (int i = 0; i < kLanes; ++i) {
      a.raw[i] = (next() & keep) | set;
      b.raw[i] = (next() & keep) | set;
      sum.raw[i] = float_of((next() & (keep | 0xffff)) | (set & 0xffff0000));
    }
    const Vec<float> got = dot_bf16(sum, a, b);
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t x = a.raw[i], y = b.raw[i];
      float expected = flushed(sum.raw[i]);
      expected = flushed(
          std::fma(flushed(float_of(x & 0xffff0000)), flushed(float_of(y & 0xffff0000)), expected));
      expected =
          flushed(std::fma(flushed(float_of(x << 16)), flushed(float_of(y << 16)), expected));
      if (std::isnan(expected) ? !std::isnan(got.raw[i]) : bits_of(got.raw[i]) != bits_of(expected))
        memory.fault = "dot_bf16";
    }
  }
}

// exp and erfc against the C library's of float64, over all sizes of numbers.
void check_vector_math(Memory& memory) {
  using V = Vec<float>;
  constexpr uint32_t kStep = 40503;
  for (uint64_t bits = 0; bits <= 0xffffffff; bits += kStep * uint64_t{V::kLanes}) {
    V x;
    for (int i = 0; i < V::kLanes; ++i)
      x.raw[i] = float_of(static_cast<uint32_t>(bits) + i * kStep);
    const V powers = exp(x);
    for (int i = 0; i < V::kLanes; ++i) {
      const double expected = std::exp(static_cast<double>(x.raw[i]));
      const double got = static_cast<double>(powers.raw[i]);
      if (std::isnan(expected) ? !std::isnan(got)
          : expected > 3.4028235677973366e38
              ? got != INFINITY
              : std::fabs(got - expected) > std::fmax(expected * 2e-7, 2.1e-45))
        memory.fault = "exp";
      if (!(x.raw[i] >= 0)) continue;
      const double tail = std::erfc(static_cast<double>(x.raw[i]));
      if (!(std::fabs(static_cast<double>(erfc_of_magnitude(x).raw[i]) - tail) <= 1.7e-7))
        memory.fault = "erfc_of_magnitude";
    }
  }
}

}  // namespace

// `fault` becomes the name of a function that does something else than it should, or stays.
void check_simd(unsigned char* begin, unsigned char* end, const char** fault) {
  Memory memory{begin, end};
  check_tails<float>(memory);
  check_tails<double>(memory);
  check_tails<Float16>(memory);
  check_tails<BFloat16>(memory);
  check_transpose<float>(memory);
  check_transpose<double>(memory);
  check_half<Float16>(memory, 10, 15);
  check_half<BFloat16>(memory, 7, 127);
  check_dot_bf16(memory);
  check_vector_math(memory);
  if (memory.fault) *fault = memory.fault;
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(check_simd, (unsigned char* begin, unsigned char* end, const char** fault),
                  (begin, end, fault))
