// conv2d, the weight's gradient: which of the algorithms runs.
//
//   conv2d_depthwise.h             one channel per group
//   conv2d_grouped_weight_grad.h   few channels per group
//   conv2d_weight_grad_rows.h      few channels, NCHW: lanes are pixels
//   conv2d_weight_grad_blocks.h    all else: a matrix product whose depth is the pixels
#include "../conv2d.h"
#include "conv2d_depthwise_weight_grad.h"
#include "conv2d_grouped_weight_grad.h"
#include "conv2d_weight_grad_blocks.h"
#include "conv2d_weight_grad_rows.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class S>
void weight_grad_blocks(const Conv2dShape& s, const S* grad_output, const S* input,
                        const WeightView<S>& result) {
  using T = Compute<S>;
  const Window2d& window = s.window;
  const int64_t *x = s.input.s, *g = s.output.s;
  WeightGradExtents e = {s.N, s.G,       s.C / s.G,      s.K / s.G,      {},
                         {},  sizeof(T), Vec<T>::kLanes, kTileColumns<T>};
  // A window of one pixel over rows without gaps: an image is one row, which strips cut anywhere.
  const bool flat = window.R * window.S * window.stride_h * window.stride_w == 1 && s.P == s.H &&
                    s.Q == s.W && x[2] == s.W * x[3] && g[2] == s.W * g[3];
  e.h = {s.H, s.P, window.R, window.stride_h, window.dilation_h, window.pad_h};
  e.w = {s.W, s.Q, window.S, window.stride_w, window.dilation_w, window.pad_w};
  SlidingAxis rows = {s.P, s.P, 1, 1, 1, 0}, columns = {s.Q, s.Q, 1, 1, 1, 0};
  if (flat) {
    e.h = rows = {1, 1, 1, 1, 1, 0};
    e.w = columns = {s.P * s.Q, s.P * s.Q, 1, 1, 1, 0};
  }
  WeightGradBlocks<S>(e, {input, x[0], x[1], x[2], x[3], e.h, e.w},
                      {grad_output, g[0], g[1], g[2], g[3], rows, columns}, result)
      .run();
}

template <class S>
void weight_grad(const Conv2dShape& s, const S* grad_output, const S* input, S* grad_weight) {
  PixelSource<S> source = input_source(s, input);
  PixelSource<S> grad = output_source(s, grad_output, {s.N, s.P, s.Q});
  const int64_t *stride = s.weight.s, K = s.K / s.G, taps = s.window.R * s.window.S;
  const bool depthwise = source.C == 1 && s.G > 1;
  const bool channels_last = s.input.s[1] == 1 && s.input.s[3] != 1;

  // The window's taps, and behind them the single one that reads a pixel itself.
  Scratch<Tap> tap(taps + 1);
  set_window_taps(s, tap.data());
  for (int64_t t = 0; t < taps; ++t) set_columns_inside(tap.data()[t], source);
  tap.data()[taps] = {0, 0, 0, s.Q, 0};
  source.taps = tap.data(), source.tap_count = taps;
  grad.taps = tap.data() + taps, grad.tap_count = 1;
  if (depthwise) {
    depthwise_weight_grad(source, grad, s.G, K, grad_weight, stride[0]);
  } else if (grouped_weight_grad_pays(source, grad, s.G)) {
    grouped_weight_grad(source, grad, s.G, grad_weight, stride[0], stride[1]);
  } else if (!channels_last && rows_pay(source, K)) {
    weight_grad_rows(source, grad, s.G, K, grad_weight, stride[0], stride[1]);
  } else if (s.window.R == 1 || s.window.S == 1 || stride[2] == s.window.S * stride[3]) {
    const int64_t step = s.window.S == 1 ? stride[2] : stride[3];
    weight_grad_blocks<S>(s, grad_output, input, {grad_weight, stride[0], stride[1], step});
  } else {
    // Taps that are no arithmetic progression: by way of a contiguous copy.
    const int64_t C = source.C;
    Scratch<S> memory(s.K, C, taps);
    weight_grad_blocks<S>(s, grad_output, input, {memory.data(), C * taps, taps, 1});
    for (int64_t k = 0; k < s.K; ++k)
      for (int64_t c = 0; c < C; ++c)
        for (int64_t t = 0; t < taps; ++t)
          grad_weight[k * stride[0] + c * stride[1] + tap.data()[t].weight] =
              memory.data()[(k * C + c) * taps + t];
  }
}

}  // namespace

void conv2d_weight_grad(const Conv2dShape& shape, const void* grad_output, const void* input,
                        void* grad_weight) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    weight_grad(shape, static_cast<const S*>(grad_output), static_cast<const S*>(input),
                static_cast<S*>(grad_weight));
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(conv2d_weight_grad,
                  (const Conv2dShape& shape, const void* grad_output, const void* input,
                   void* grad_weight),
                  (shape, grad_output, input, grad_weight))
