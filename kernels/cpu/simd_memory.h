// How registers come from memory and go to it, where the compiler would choose another way.
#pragma once
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Stores a register without reading the line of cache before and without keeping it: for results
// that are too large to be met there again. p is aligned to the register.
template <class T>
FASTCONV_INLINE void store_around_cache(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v.raw);
#else
  v.store(p);
#endif
}
// Stands between such stores and whatever tells another thread of them.
FASTCONV_INLINE void finish_stores_around_cache() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}
// Registers as wide as a line; narrower ones would write half of it at a time, which is slow.
#if defined(__AVX512F__)
constexpr bool kCanStoreAroundCache = true;
#else
constexpr bool kCanStoreAroundCache = false;
#endif

// Makes the compiler keep what it loaded: it would rather load again for every multiplication that a
// load folds into.
template <class T>
FASTCONV_INLINE void keep_in_register(Vec<T>& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v.raw));
#elif defined(__AVX2__) && FASTCONV_VECTOR_BYTES == 32
  asm("" : "+x"(v.raw));
#else
  static_cast<void>(v);
#endif
}

}  // namespace fastconv::cpu::FASTCONV_ISA
