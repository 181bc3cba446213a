// See conv2d_depthwise_weight_sums.h.
#include "conv2d_depthwise_weight_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {

void add_weight_sums(const WeightSumsTask<float>& task, int64_t i, int64_t i_end) {
  run_weight_sums(task, i, i_end);
}
void add_weight_sums(const WeightSumsTask<double>& task, int64_t i, int64_t i_end) {
  run_weight_sums(task, i, i_end);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
