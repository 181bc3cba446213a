// The sums of a depthwise convolution with lanes of channels: some neighbouring pixels of a target row
// in registers, register after register of channels.
//
//   sums[q][lane] = bias[lane] + sum_{r,s} rows[r][(q * step + s * dilation) * pitch + lane]
//                                          * weight[r][s][lane]
//
// A source vector that was loaded meets every pixel that it is part of. What lies outside of the
// source is left out, not multiplied. Every sum runs over r, then s, however pixels are grouped.
// Cost: one multiplication-addition per tap and vector.
#pragma once
#include "conv2d_depthwise_window.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Reads E, writes S; both compute in the same type.
template <class E, class S>
struct ChannelSumsTask {
  using T = Compute<S>;

  // The source: element x of row r, first channel. x counts from the first tap of pixel 0 on.
  const E* const* rows;  // [window_rows]; null: outside
  int64_t window_rows, window_columns;
  int64_t pitch;           // elements between two x
  int64_t step, dilation;  // in x
  int64_t x_begin, x_end;  // that lie inside

  const T* weight;  // [register][window_rows][window_columns][kLanes]
  const T* bias;    // [register][kLanes]; null: none

  // The target: pixel 0, first channel.
  S* to;
  int64_t to_step;  // between two pixels
  int64_t pixels;
  int64_t registers;        // of channels
  int64_t last_shift;       // channels that the last register has in common with the one before
  int64_t last_lanes;       // that are stored of it
  const Finish<S>* finish;  // null: nothing
  int64_t channel;          // the first one's number, for `finish`
  bool stream;              // the target is too large for the caches: whole lines, around them
};

// Pixels at most: their sums, a row of taps and a source vector fill the registers.
constexpr int kTilePixels = kVectorRegisters == 32 ? 8 : 6;
// All pixels of a row.
#define FASTCONV_DEPTHWISE(E) void channel_sums(ChannelSumsTask<E, E>& task);
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cpu::FASTCONV_ISA
