// See conv2d_depthwise_channel_sums.h: the halves, in a file of their own for the compiler's sake.
#include "conv2d_depthwise_channel_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {

void channel_sums(ChannelSumsTask<Float16, Float16>& task) { run_channel_sums(task); }
void channel_sums(ChannelSumsTask<BFloat16, BFloat16>& task) { run_channel_sums(task); }

}  // namespace fastconv::cpu::FASTCONV_ISA
