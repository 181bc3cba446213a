// Stands in for kernels/cuda/device_wgmma.cuh. Sums tell when they are touched.
#pragma once
#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

enum class Major { kTerms = 0, kRows = 1 };

template <int kColumns>
class WarpgroupSums {
 public:
  WarpgroupSums() {  // what nobody set shows in the result
    for (float& value : values) value = __builtin_nanf("");
  }
  WarpgroupSums(const WarpgroupSums&) = delete;
  EMULATED_INLINE float& operator[](int i) {
    emulator::touch_sums(state);
    return values[i];
  }

  float values[kColumns / 2];
  emulator::SumsState state;
};

template <int... kColumns>
void fence_products(WarpgroupSums<kColumns>&...) {
  emulator::fence_products();
}
inline void commit_products() { emulator::commit_products(); }
template <int kMost, int... kColumns>
void wait_products(WarpgroupSums<kColumns>&...) {
  emulator::wait_products(kMost);
}

inline float (*emulated_widening(__half))(uint16_t) { return emulated_half_to_float; }
inline float (*emulated_widening(__nv_bfloat16))(uint16_t) { return emulated_bfloat16_to_float; }

template <class T, Major kA = Major::kTerms, Major kB = Major::kTerms, int kColumns>
EMULATED_INLINE void multiply_add_warpgroup(WarpgroupSums<kColumns>& sums, uint64_t a, uint64_t b,
                                            bool accumulate) {
  emulator::GroupProduct product{sums.values,
                                 &sums.state,
                                 kColumns,
                                 false,
                                 {},
                                 a,
                                 b,
                                 kA == Major::kRows,
                                 kB == Major::kRows,
                                 accumulate,
                                 emulated_widening(T())};
  emulator::multiply_add_group(product);
}

template <class T, Major kB = Major::kTerms, int kColumns>
EMULATED_INLINE void multiply_add_warpgroup(WarpgroupSums<kColumns>& sums, const uint32_t (&a)[4],
                                            uint64_t b, bool accumulate) {
  emulator::GroupProduct product{
      sums.values, &sums.state, kColumns,           true,       {a[0], a[1], a[2], a[3]}, 0,
      b,           false,       kB == Major::kRows, accumulate, emulated_widening(T())};
  emulator::multiply_add_group(product);
}

}  // namespace cuda
}  // namespace fastconv
