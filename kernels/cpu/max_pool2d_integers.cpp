// max_pool2d, forward, of integers.
#include "max_pool2d_forward.h"

namespace fastconv::cpu::FASTCONV_ISA {

void max_pool2d_integers(const MaxPool2dShape& shape, const void* input, void* output,
                         void* where) {
  switch (shape.dtype) {
    case DType::kUInt8:
      return forward<uint8_t>(shape, input, output, where);
    case DType::kInt8:
      return forward<int8_t>(shape, input, output, where);
    case DType::kInt16:
      return forward<int16_t>(shape, input, output, where);
    case DType::kInt32:
      return forward<int32_t>(shape, input, output, where);
    case DType::kInt64:
      return forward<int64_t>(shape, input, output, where);
    default:
      return;
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
