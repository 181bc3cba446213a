// See conv2d_depthwise_channel_sums.h.
#include "conv2d_depthwise_channel_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {

void channel_sums(ChannelSumsTask<float, float>& task) { run_channel_sums(task); }
void channel_sums(ChannelSumsTask<double, double>& task) { run_channel_sums(task); }

}  // namespace fastconv::cpu::FASTCONV_ISA
