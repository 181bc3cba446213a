// How depthwise convolution with lanes of channels (conv2d_depthwise_channels.cpp) is cut into tasks:
// by the machine as it likes, for no sum is.
#pragma once
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_window.h"

namespace fastconv::cpu::FASTCONV_ISA {

struct ChannelCut {
  // What the windows of all parts read, in source rows from that of target row 0 on.
  int64_t first_row, reach;
  int64_t window_rows, taps;  // of the largest window; of all windows

  bool in_place;              // else by way of a patch
  int64_t channels, all;      // target channels; registers of them
  int64_t registers, chunks;  // of a task; tasks of a pixel
  int64_t all_rows;           // of the part that has most
  int64_t rows, strips;       // target rows of a task, in each part
  int64_t source_rows;        // that a task reads
  bool stream;                // whole lines of the target may be stored around the caches

  template <class S>
  ChannelCut(const DepthwisePart<S>* parts, int64_t count, const DepthwiseImage<S>& image) {
    constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
    const Product<S>& p = parts[0].product;
    const PixelSource<S>& source = p.source;
    measure_windows(parts, count);
    channels = p.G * p.K, all = divide_up(channels, kLanes);
    in_place = image.target.stride_k == 1 && source.stride_c == 1 && p.K == 1 && channels >= kLanes;
    // Memory likes runs: all channels of a pixel. A patch of planes takes one register: it stays small.
    const bool planes = image.target.stride_k != 1 || source.stride_c != 1;
    registers = in_place ? all : planes ? 1 : smaller(all, int64_t{8});
    cut_rows(source, image);
    chunks = divide_up(all, registers), registers = divide_up(all, chunks);
    // The last register may overlap the one before: both belong to one task.
    while (registers > 1 && registers < all && all % registers == 1) ++registers;
    chunks = divide_up(all, registers);
    strips = divide_up(all_rows, rows), rows = divide_up(all_rows, strips);
    strips = divide_up(all_rows, rows);
    source_rows = smaller((rows - 1) * source.step_h + reach, source.H);

    stream = in_place && may_stream(parts, count, image);
  }

 private:
  template <class S>
  void measure_windows(const DepthwisePart<S>* parts, int64_t count) {
    int64_t until = 0;
    for (int64_t i = 0; i < count; ++i) {
      const PixelSource<S>& source = parts[i].product.source;
      const DepthwiseWindow window(source);
      const int64_t end = window.h + (window.R - 1) * window.dilation_h + 1;
      first_row = i == 0 ? window.h : smaller(first_row, window.h);
      until = i == 0 ? end : larger(until, end);
      window_rows = i == 0 ? window.R : larger(window_rows, window.R);
      taps = (i == 0 ? 0 : taps) + window.taps();
      all_rows = i == 0 ? source.grid.I : larger(all_rows, source.grid.I);
    }
    reach = until - first_row;
  }

  template <class S>
  void cut_rows(const PixelSource<S>& source, const DepthwiseImage<S>& image) {
    constexpr int64_t kStripBytes = int64_t{256} << 10;  // of all channels: stays in L2
    constexpr int64_t kPatchBytes = int64_t{160}
                                    << 10;  // of a register, with its sums: stays in L2
    constexpr int64_t kBytes = Vec<Compute<S>>::kLanes * int64_t{sizeof(Compute<S>)};
    const int64_t least = divide_up(reach, source.step_h);  // a strip begins with rows read twice
    if (in_place) {
      rows = kStripBytes / (source.W * source.step_h * channels * int64_t{sizeof(S)});
      rows = larger(rows, int64_t{1});
    } else {
      const int64_t row = kBytes * (source.W * source.step_h + image.target.grid.J * image.step_h);
      rows = larger((kPatchBytes - kBytes * source.W * reach) / row, least);
    }
    rows = smaller(rows, all_rows);
    const int64_t threads = num_threads(), images = source.grid.N * divide_up(all, registers);
    const int64_t tasks = images * divide_up(all_rows, rows);
    if (tasks >= 8 * threads || tasks % threads == 0) return;
    if (all_rows >= 2 * threads * least)
      rows = smaller(rows, divide_up(all_rows, threads));
    else if (in_place && all >= 4 * threads)
      registers = divide_up(all, threads);
    else
      rows = smaller(rows, larger(divide_up(all_rows, threads), int64_t{1}));
  }

  template <class S>
  bool may_stream(const DepthwisePart<S>* parts, int64_t count,
                  const DepthwiseImage<S>& image) const {
    // Results beyond this are not met in cache again.
    constexpr int64_t kStreamBytes = int64_t{8} << 20, kLine = 64 / int64_t{sizeof(S)};
    const Target<S>& target = image.target;
    if (!kSame<S, Compute<S>> || !kCanStoreAroundCache ||
        target.grid.count() * channels * int64_t{sizeof(S)} < kStreamBytes)
      return false;
    for (int64_t i = 0; i < count; ++i)
      if (reinterpret_cast<uintptr_t>(parts[i].product.target.data) % 64 != 0) return false;
    return target.stride_j % kLine == 0 && target.stride_i % kLine == 0 &&
           target.stride_n % kLine == 0 && channels % kLine == 0;
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
