// attention of few queries: see attention_decode.cpp.
#pragma once
#include "../attention.h"
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Whether so few queries share each key that packing it would cost more than it saves.
bool is_decoding(const AttentionShape& shape);
void attention_decode(const AttentionShape& shape, const AttentionInputs& inputs, void* output,
                      void* lse);

}  // namespace fastconv::cpu::FASTCONV_ISA
