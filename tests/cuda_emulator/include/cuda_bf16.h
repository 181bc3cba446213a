// Stands in for CUDA's own header: bfloat16 by its bits, converted with rounding to nearest even.
#pragma once
#include <cstdint>

float emulated_bfloat16_to_float(uint16_t bits);
uint16_t emulated_float_to_bfloat16(float value);

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(emulated_float_to_bfloat16(value)) {}
};
inline float __bfloat162float(__nv_bfloat16 value) {
  return emulated_bfloat16_to_float(value.bits);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
