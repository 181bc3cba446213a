// Sums of neighbours in a line: result[i] = sum_{t < taps} line[i + t * unit], of floats in L1.
//
// Long windows are put together from sums of 4, 16, 64 ... neighbours, each level from the one
// below. Nothing is ever subtracted: no digit is lost, and an infinity or NaN reaches those sums
// alone that hold it.
// Cost: taps loads per sum up to kDirectTaps, then at most 7 for each factor of 4.
#pragma once
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {

constexpr int64_t kDirectTaps = 8;
constexpr int kMostLevels = 32;

// The largest power of 4 below taps.
FASTCONV_INLINE int64_t top_level(int64_t taps) {
  int64_t size = 1;
  while (size * 4 < taps) size *= 4;
  return size;
}

// How many lines of the length of `line` window_sums works in.
FASTCONV_INLINE int64_t window_lines(int64_t taps) {
  if (taps <= 1) return 0;
  int64_t count = 1;
  if (taps > kDirectTaps)
    for (int64_t size = 1; size < top_level(taps); size *= 4) ++count;
  return count;
}

// to[i] = sum of lines[k][i]; lines are read, and `to` is written, up to whole registers.
template <int kCount, class T>
FASTCONV_INLINE void add_lines(const T* const* lines, int64_t n, T* to) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec<T> sum = Vec<T>::load(lines[0] + i);
#pragma GCC unroll 4
    for (int k = 1; k < kCount; ++k) sum = sum + Vec<T>::load(lines[k] + i);
    sum.store(to + i);
  }
}

template <class T>
FASTCONV_INLINE void add_lines(const T* const* lines, int count, int64_t n, T* to) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  if (count == 2) return add_lines<2>(lines, n, to);
  if (count == 3) return add_lines<3>(lines, n, to);
  if (count == 4) return add_lines<4>(lines, n, to);
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec<T> sum = Vec<T>::load(lines[0] + i);
    for (int k = 1; k < count; ++k) sum = sum + Vec<T>::load(lines[k] + i);
    sum.store(to + i);
  }
}

// Returns the sums: `line` itself for one tap, else a line of `work`, whose window_lines(taps) lines
// are `pitch` apart. All are taps * unit + kLanes longer than n. Neighbours are `unit` elements
// apart.
template <class T>
inline const T* window_sums(const T* line, int64_t n, int64_t taps, T* work, int64_t pitch,
                            int64_t unit = 1) {
  if (taps == 1) return line;
  const T* terms[4 * kMostLevels];
  int count = 0;
  if (taps <= kDirectTaps) {
    for (; count < taps; ++count) terms[count] = line + count * unit;
    add_lines(terms, count, n, work);
    return work;
  }
  // Each level from the one below; a level's own sums are needed as far as the window reaches
  const T* level = line;
  const int64_t top = top_level(taps);
  const T* levels[kMostLevels] = {line};
  int depth = 0;
  for (int64_t size = 1; size < top; size *= 4) {
    const int64_t step = size * unit;
    const T* parts[4] = {level, level + step, level + 2 * step, level + 3 * step};
    add_lines<4>(parts, n + (taps - 4 * size) * unit, work);
    levels[++depth] = level = work;
    work += pitch;
  }
  // The window: as many of the largest as it holds, then of the next
  int64_t offset = 0;
  for (int64_t size = top; depth >= 0; size /= 4, --depth)
    for (; taps - offset >= size; offset += size) terms[count++] = levels[depth] + offset * unit;
  add_lines(terms, count, n, work);
  return work;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
