// max_pool2d, forward.
//
//   output[n,c,p,q] = max_{r,s} input[n,c,h,w]
#include "max_pool2d_forward.h"

namespace fastconv::cpu::FASTCONV_ISA {

void max_pool2d_forward(const MaxPool2dShape& shape, const void* input, void* output, void* where) {
  if (!is_floating(shape.dtype)) return max_pool2d_integers(shape, input, output, where);
  with_storage_type(shape.dtype,
                    [&](auto zero) { forward<decltype(zero)>(shape, input, output, where); });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(max_pool2d_forward,
                  (const MaxPool2dShape& shape, const void* input, void* output, void* where),
                  (shape, input, output, where))
