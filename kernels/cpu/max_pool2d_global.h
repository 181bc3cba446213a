// The largest element of whole planes: windows that hold all of the input.
//
// A task is some planes. Lanes walk a plane four registers at a time and are compared at the end;
// where the largest was is looked for afterwards: the first element equal to it, or the last NaN.
#pragma once
#include "max_pool2d_places.h"
#include "max_pool2d_stream.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class L, class Where>
struct GlobalPlanes {
  using S = typename L::Storage;
  using Lanes = Vec<typename L::Lane>;
  static constexpr int64_t kLanes = Lanes::kLanes;

  const MaxPool2dShape& s;
  const S* input;
  S* output;
  Where* where;

  static bool serves(const MaxPool2dShape& s) {
    const Window2d& w = s.window;
    return s.P == 1 && s.Q == 1 && w.R == s.H && w.S == s.W && w.pad_h == 0 && w.pad_w == 0 &&
           w.dilation_h == 1 && w.dilation_w == 1 && s.input.s[3] == 1 && s.input.s[2] == s.W;
  }

  void run() const {
    const int64_t size = s.H * s.W;
    parallel_for(s.N * s.C, kTaskElements / size + 1, [&](int64_t begin, int64_t end) {
      for (int64_t nc = begin; nc < end; ++nc) {
        const int64_t n = nc / s.C, c = nc % s.C;
        const S* plane = input + n * s.input.s[0] + c * s.input.s[1];
        S& largest = output[n * s.output.s[0] + c * s.output.s[1]];
        largest = largest_of(plane, size);
        if constexpr (!std::is_void_v<Where>) {
          const int64_t place = find(plane, size, largest);
          largest = plane[place];
          where[n * s.indices.s[0] + c * s.indices.s[1]] = static_cast<Where>(place);
        }
      }
    });
  }

  static S largest_of(const S* plane, int64_t size) {
    constexpr int kBlocks = 4;
    Lanes best[kBlocks];
    for (int b = 0; b < kBlocks; ++b) best[b] = Lanes::broadcast(L::lowest());
    int64_t i = 0;
    for (; i + kBlocks * kLanes <= size; i += kBlocks * kLanes)
      for (int b = 0; b < kBlocks; ++b)
        best[b] = L::larger(best[b], L::load(plane + i + b * kLanes));
    for (; i + kLanes <= size; i += kLanes) best[0] = L::larger(best[0], L::load(plane + i));
    if (i < size) best[1] = L::larger(best[1], load_inside<L>(plane + i, 0, size - i));
    Lanes all = L::larger(L::larger(best[0], best[1]), L::larger(best[2], best[3]));
    return first_of<kLanes / 2>(all);
  }

  // The best of lanes i and i + kDistance, until one is left.
  template <int kDistance>
  FASTCONV_INLINE static S first_of(Lanes lanes) {
    if constexpr (kDistance == 0) {
      S value;
      store_first<L>(&value, lanes, 1);
      return value;
    } else {
      return first_of<kDistance / 2>(L::larger(lanes, moved_lanes<kDistance>(lanes, lanes)));
    }
  }

  static int64_t find(const S* plane, int64_t size, S largest) {
    if constexpr (std::is_integral_v<S>) {
      int64_t i = 0;
      while (plane[i] != largest) ++i;
      return i;
    } else {
      const auto wanted = to_compute(largest);
      if (wanted != wanted) {
        int64_t i = size - 1;
        while (to_compute(plane[i]) == to_compute(plane[i])) --i;
        return i;
      }
      return find_number(plane, size, wanted);
    }
  }

  // In blocks: whether a block holds the number takes no branch per element.
  template <class T>
  static int64_t find_number(const S* plane, int64_t size, T wanted) {
    constexpr int64_t kStep = Vec<T>::kLanes;
    int64_t i = 0;
    for (; i + kStep <= size; i += kStep) {
      const Vec<T> values = load_as_compute(plane + i);
      if (any_equal(values, wanted)) break;
    }
    while (i < size && !(to_compute(plane[i]) == wanted)) ++i;
    return i;
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
