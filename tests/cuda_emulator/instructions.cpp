// PTX instructions carried out for a whole warp, by the layouts of the PTX manual (section
// "Warp-level Matrix Instructions"), and conversions of 16-bit floating types.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>

#include "device.h"
#include "memory.h"

namespace emulator {

void load_matrices(void* const (&lanes)[32], unsigned) {
  uint16_t tiles[4][8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* operands = static_cast<const MatrixLoad*>(lanes[lane]);
    check_shared_read(operands->row, 16, lane, collective_place());
    std::memcpy(tiles[lane / 8][lane % 8], operands->row, 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto* operands = static_cast<const MatrixLoad*>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int tile = 0; tile < 4; ++tile) {
      const auto element = [&](int column) -> uint32_t {
        return operands->transposed ? tiles[tile][column][group] : tiles[tile][group][column];
      };
      operands->values[tile] = element(2 * pair) | element(2 * pair + 1) << 16;
    }
  }
}

void multiply_add(void* const (&lanes)[32], unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* operands = static_cast<const MatrixProduct*>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto widened = [&](uint32_t both) {
        return operands->widen(static_cast<uint16_t>(both >> 16 * half));
      };
      for (int i = 0; i < 4; ++i)
        a[group + i % 2 * 8][i / 2 * 8 + 2 * pair + half] = widened(operands->a[i]);
      for (int i = 0; i < 2; ++i) b[i * 8 + 2 * pair + half][group] = widened(operands->b[i]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* sum = static_cast<const MatrixProduct*>(lanes[lane])->sum;
    const int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i / 2 * 8, column = 2 * pair + i % 2;
      for (int term = 0; term < 16; ++term) sum[i] += a[row][term] * b[term][column];
    }
  }
}

}  // namespace emulator

float emulated_half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float value;
  if (exponent == 31) {
    value = fraction != 0 ? NAN : INFINITY;
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    value = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  }
  return bits >> 15 ? -value : value;
}

uint16_t emulated_float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent = -24;                         // of zero, which frexp leaves at 0
  if (size > 0) std::frexp(size, &exponent);  // size = m * 2^exponent, m in [0.5, 1)
  const int last = exponent - 11 > -24 ? exponent - 11 : -24;  // the weight of the last bit
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(size, -last)));
  return static_cast<uint16_t>(sign | (((last + 24) << 10) + steps));
}

float emulated_bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

uint16_t emulated_float_to_bfloat16(float value) {
  if (std::isnan(value)) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
