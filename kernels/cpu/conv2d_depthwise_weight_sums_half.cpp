// See conv2d_depthwise_weight_sums.h: the halves, in a file of their own for the compiler's sake.
#include "conv2d_depthwise_weight_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {

void add_weight_sums(const WeightSumsTask<Float16>& task, int64_t i, int64_t i_end) {
  run_weight_sums(task, i, i_end);
}
void add_weight_sums(const WeightSumsTask<BFloat16>& task, int64_t i, int64_t i_end) {
  run_weight_sums(task, i, i_end);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
