// Stands in for CUDA's own header: float16 by its bits, converted with rounding to nearest even.
#pragma once
#include <cstdint>

float emulated_half_to_float(uint16_t bits);
uint16_t emulated_float_to_half(float value);

struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(emulated_float_to_half(value)) {}
};
inline float __half2float(__half value) { return emulated_half_to_float(value.bits); }
inline __half __float2half_rn(float value) { return __half(value); }
