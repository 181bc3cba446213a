// conv2d, forward and the input's gradient, as one implicit matrix product:
//
//   target[n,k,i,j] = bias[k]
//                   + sum_{c,t} source[n, c, i * step_h + h(t), j * step_w + w(t)] * weight[k,c,t]
//
// Forward: source = input, target = output, a tap per window element.
// Input's gradient, and conv_transpose2d, which is the same with a bias: source = grad_output,
// target = grad_input, c and k change places. The input
// rows a + i * stride_h of one phase a meet the same taps, those with (a + pad_h - r * dilation_h)
// divisible by stride_h; so each of the stride_h x stride_w phases is a dense product with step 1
// and its share of the taps, and no multiplication with zero is done.
//
// Two arrangements, by the layout of the target:
//   lanes are channels (NHWC)   a: pixels, packed per thread or read in place
//                               b: weight panels, packed once
//   lanes are pixels (NCHW)     a: weight rows, read in place where possible
//                               b: pixel panels, packed per thread
// One task = one block of pixels times one block of channels of one group. Some cases go ways of
// their own: depthwise convolution, which has no lanes to fill (conv2d_depthwise.h), groups of few
// channels, which fill no lanes (conv2d_grouped.h), windows that move by one over contiguous rows with
// few channels (conv2d_shifted.h), and the gradient by an input of few channels
// (conv2d_input_grad_few.h) or of few windows (conv2d_input_grad_windows.h).
// Cost: 2 * N*K*P*Q * C/G*R*S flops.
#include "../conv2d.h"

#include "../parallel.h"
#include "conv2d_algorithm.h"
#include "conv2d_dense.h"
#include "conv2d_depthwise.h"
#include "conv2d_input_grad_few.h"
#include "conv2d_input_grad_windows.h"
#include "conv2d_prepare.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Completes a product whose source lacks the taps.
template <class S>
void set_taps(Product<S>& p, Tap* taps, int64_t tap_count) {
  for (int64_t t = 0; t < tap_count; ++t) set_columns_inside(taps[t], p.source);
  p.source.taps = taps;
  p.source.tap_count = tap_count;
  // Rows that follow each other in memory become one, and so do images.
  p.target.grid = p.source.grid;
  if (p.target.stride_i == p.target.grid.J * p.target.stride_j) {
    p.target.grid.J *= p.target.grid.I;
    p.target.grid.I = 1;
    if (p.target.stride_n == p.target.grid.J * p.target.stride_j) {
      p.target.grid.J *= p.target.grid.N;
      p.target.grid.N = 1;
    }
  }
}

template <class S>
bool run_winograd_if_float(const Product<S>& p, const void* prepared) {
  if constexpr (kSame<Compute<S>, float>)
    return run_winograd(p, static_cast<const float*>(prepared));
  else
    return false;
}

// `prepared`: the weight as prepare_weight arranges it for this algorithm, or null.
template <class S>
void run_product(const Product<S>& p, Conv2dAlgorithm algorithm, const void* prepared) {
  if (algorithm == Conv2dAlgorithm::kWinograd) {
    if (run_winograd_if_float(p, prepared)) return;
    // Something was not finite: the sums themselves say what.
    algorithm = channels_are_lanes(p) ? Conv2dAlgorithm::kChannels : Conv2dAlgorithm::kPixels;
    prepared = nullptr;
  }
  const auto* weight = static_cast<const Packed<S>*>(prepared);
  if (algorithm == Conv2dAlgorithm::kDepthwise)
    run_depthwise(p);
  else if (algorithm == Conv2dAlgorithm::kGrouped)
    run_grouped(p, static_cast<const Compute<S>*>(prepared));
  else if (algorithm == Conv2dAlgorithm::kChannels)
    run_channel_lanes(p, weight);
  else if (algorithm == Conv2dAlgorithm::kShifted)
    run_shifted(p, weight);
  else
    run_pixel_lanes(p, weight);
}

// The forward pass as a product; `taps` lends R * S of them.
template <class S>
Product<S> forward_product(const Conv2dShape& s, const S* input, const S* weight,
                           const Compute<S>* bias, S* output, Tap* taps) {
  const Window2d& window = s.window;
  Product<S> p;
  p.source = input_source(s, input);
  p.target = {output, s.output.s[0], s.output.s[1], s.output.s[2], s.output.s[3], {}};
  p.weight = weight;
  p.weight_g = s.K / s.G * s.weight.s[0];
  p.weight_k = s.weight.s[0];
  p.weight_c = s.weight.s[1];
  p.bias = bias;
  p.G = s.G;
  p.K = s.K / s.G;

  // A 1x1 window that moves by one over rows without gaps: the image is one long row.
  const bool one_row = window.R == 1 && window.S == 1 && window.stride_h == 1 &&
                       window.stride_w == 1 && window.pad_h == 0 && window.pad_w == 0 &&
                       s.P == s.H && s.Q == s.W && s.input.s[2] == s.W * s.input.s[3] &&
                       s.output.s[2] == s.Q * s.output.s[3];
  if (one_row) {
    p.source.W *= p.source.H, p.source.H = 1;
    p.source.grid.J *= p.source.grid.I, p.source.grid.I = 1;
  }
  set_window_taps(s, taps);
  set_taps(p, taps, window.R * window.S);
  return p;
}

template <class S>
void forward(const Conv2dShape& s, const S* input, const S* weight, const S* bias,
             const void* prepared, const Epilogue* epilogue, S* output) {
  Scratch<Compute<S>> widened_bias(bias ? s.K : 0);
  if (bias) copy_run(widened_bias.data(), bias, s.bias_stride, s.K);
  Scratch<Tap> taps(s.window.R, s.window.S);
  Product<S> p = forward_product(s, input, weight, widened_bias.data(), output, taps.data());
  const Epilogue last = epilogue ? *epilogue : Epilogue{};
  Scratch<Compute<S>> scale(last.scale ? s.K : 0);
  const Finish<S> finish(last, widened_bias.data(), s.K, scale.data(), output);
  if (epilogue) p.finish = &finish, p.bias = nullptr;
  const void* arranged = prepared_weight(s, p, prepared);
  run_product(p, choose_algorithm(p, arranged != nullptr).algorithm, arranged);
}

// The taps that input rows a + i * stride_h and columns b + j * stride_w meet; returns how many.
int64_t set_phase_taps(const Conv2dShape& s, int64_t a, int64_t b, Tap* taps) {
  const Window2d& window = s.window;
  int64_t count = 0;
  for (int64_t r = 0; r < window.R; ++r) {
    const int64_t h = a + window.pad_h - r * window.dilation_h;
    if (h % window.stride_h) continue;
    for (int64_t q = 0; q < window.S; ++q) {
      const int64_t w = b + window.pad_w - q * window.dilation_w;
      if (w % window.stride_w) continue;
      taps[count++] = {h / window.stride_h, w / window.stride_w, 0, 0,
                       r * s.weight.s[2] + q * s.weight.s[3]};
    }
  }
  return count;
}

// The product that gives the pixels of one phase of grad_input; the taps are still missing.
template <class S>
Product<S> phase_product(const Conv2dShape& s, int64_t a, int64_t b, const S* grad_output,
                         const S* weight, const Compute<S>* bias, S* grad_input) {
  const Window2d& window = s.window;
  Product<S> p;
  p.source = output_source(
      s, grad_output,
      {s.N, (s.H - a - 1) / window.stride_h + 1, (s.W - b - 1) / window.stride_w + 1});
  p.target = {grad_input + a * s.input.s[2] + b * s.input.s[3],
              s.input.s[0],
              s.input.s[1],
              s.input.s[2] * window.stride_h,
              s.input.s[3] * window.stride_w,
              {}};
  p.weight = weight;
  p.weight_g = s.K / s.G * s.weight.s[0];
  p.weight_k = s.weight.s[1];
  p.weight_c = s.weight.s[0];
  p.bias = bias;
  p.G = s.G;
  p.K = s.C / s.G;
  return p;
}

// target[i * stride] = value, narrowed to the storage type.
template <class S>
void fill_run(S* target, int64_t stride, int64_t count, Compute<S> value) {
  const S narrow = from_compute<S>(value);
  for (int64_t i = 0; i < count; ++i) target[i * stride] = narrow;
}

// grad_input = bias, where no window may reach; without a bias 0, which in every type is zero bits.
template <class S>
void start_input(const Conv2dShape& s, const Compute<S>* bias, S* grad_input) {
  const int64_t* stride = s.input.s;
  const bool channels = stride[1] == 1;  // are a run; else a row's pixels
  const bool one_run = !bias && channels && stride[3] == s.C;
  const int64_t runs = one_run ? 1 : channels ? s.W : s.C, apart = stride[channels ? 3 : 1];
  const int64_t length = one_run ? s.W * s.C : channels ? s.C : s.W;
  const int64_t step = channels ? 1 : stride[3];
  parallel_for(s.N * s.H, (int64_t{1} << 14) / (s.W * s.C) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t run = 0; run < runs; ++run) {
        S* to = grad_input + row / s.H * stride[0] + row % s.H * stride[2] + run * apart;
        if (bias && channels)
          store_run(to, 1, bias, length, Compute<S>{0});
        else if (bias)
          fill_run(to, step, length, bias[run]);
        else if (step == 1)
          __builtin_memset(to, 0, static_cast<unsigned long>(length) * sizeof(S));
        else
          fill_run(to, step, length, Compute<S>{0});
      }
  });
}

// Phases whose operand a is the weight have it packed together: each for itself would read all of it.
template <class S>
void run_phases(const Product<S>* phases, int64_t count) {
  const auto algorithm = [&](int64_t i) { return choose_algorithm(phases[i], false).algorithm; };
  bool channels = count > 1;
  for (int64_t i = 0; i < count && channels; ++i)
    channels = algorithm(i) == Conv2dAlgorithm::kChannels && !padding_pays(phases[i]);
  if (channels) return run_channel_phases(phases, count);
  int64_t size = 0;
  bool together = kSame<Packed<S>, Compute<S>> && count > 1;
  for (int64_t i = 0; i < count && together; ++i) {
    together =
        algorithm(i) == Conv2dAlgorithm::kPixels || algorithm(i) == Conv2dAlgorithm::kShifted;
    size += weight_rows_size(phases[i]);
  }
  if (!together) {
    for (int64_t i = 0; i < count; ++i) run_product(phases[i], algorithm(i), nullptr);
    return;
  }
  Scratch<Compute<S>> packed(size);
  pack_rows_together(phases, count, packed.data());
  const Compute<S>* weight = packed.data();
  for (int64_t i = 0; i < count; ++i) {
    run_product(phases[i], algorithm(i), weight);
    weight += weight_rows_size(phases[i]);
  }
}

template <class S>
void input_grad(const Conv2dShape& s, const S* grad_output, const S* weight, const S* bias,
                S* grad_input) {
  Scratch<Compute<S>> widened_bias(bias ? s.C : 0);
  if (bias) copy_run(widened_bias.data(), bias, s.bias_stride, s.C);
  const Compute<S>* const start = bias ? widened_bias.data() : nullptr;
  if constexpr (kSame<S, Compute<S>>) {
    using Few = InputGradFew<S>;
    if (forced_algorithm() == Conv2dAlgorithm::kCount && Few::is_possible(s))
      return Few(s, grad_output, start, grad_input).run(weight);
    if (forced_algorithm() == Conv2dAlgorithm::kCount && windows_pay(s))
      return input_grad_windows(s, grad_output, weight, start, grad_input);
  }
  const int64_t phases_h = smaller(s.window.stride_h, s.H);
  const int64_t phases_w = smaller(s.window.stride_w, s.W);
  Scratch<Tap> taps(s.window.R, s.window.S);
  Scratch<Product<S>> phases(phases_h, phases_w);
  Scratch<PhasePlace> places(phases_h, phases_w);
  Tap* next = taps.data();
  int64_t count = 0;
  for (int64_t phase = 0; phase < phases_h * phases_w; ++phase) {
    const int64_t a = phase / phases_w, b = phase % phases_w;
    const int64_t tap_count = set_phase_taps(s, a, b, next);
    if (tap_count == 0) continue;
    Product<S>& p = phases.data()[count];
    p = phase_product(s, a, b, grad_output, weight, start, grad_input);
    set_taps(p, next, tap_count);
    places.data()[count++] = {a, b};
    next += tap_count;
  }
  const bool gaps = count < phases_h * phases_w;  // between the windows
  if (gaps) start_input(s, start, grad_input);
  if (count > 1 &&
      choose_algorithm(phases.data()[0], false).algorithm == Conv2dAlgorithm::kDepthwise) {
    const int64_t* stride = s.input.s;
    const Target<S> image = {grad_input, stride[0], stride[1],
                             stride[2],  stride[3], {s.N, s.H, s.W}};
    return run_depthwise_phases(phases.data(), places.data(), count, image, s.window);
  }
  run_phases(phases.data(), count);
}

}  // namespace

void conv2d_forward(const Conv2dShape& shape, const void* input, const void* weight,
                    const void* bias, const void* prepared, const Epilogue* epilogue,
                    void* output) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    forward(shape, static_cast<const S*>(input), static_cast<const S*>(weight),
            static_cast<const S*>(bias), prepared, epilogue, static_cast<S*>(output));
  });
}

void conv2d_input_grad(const Conv2dShape& shape, const void* grad_output, const void* weight,
                       const void* bias, void* grad_input) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    input_grad(shape, static_cast<const S*>(grad_output), static_cast<const S*>(weight),
               static_cast<const S*>(bias), static_cast<S*>(grad_input));
  });
}

void conv2d_prepare(const Conv2dShape& shape, const void* weight, void* prepared, int64_t* bytes) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    Scratch<Tap> taps(shape.window.R, shape.window.S);
    const Product<S> p = forward_product<S>(shape, nullptr, static_cast<const S*>(weight), nullptr,
                                            nullptr, taps.data());
    *bytes = prepare_weight(shape, p, prepared);
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(conv2d_forward,
                  (const Conv2dShape& shape, const void* input, const void* weight,
                   const void* bias, const void* prepared, const Epilogue* epilogue, void* output),
                  (shape, input, weight, bias, prepared, epilogue, output))
FASTCONV_DISPATCH(conv2d_prepare,
                  (const Conv2dShape& shape, const void* weight, void* prepared, int64_t* bytes),
                  (shape, weight, prepared, bytes))
FASTCONV_DISPATCH(conv2d_input_grad,
                  (const Conv2dShape& shape, const void* grad_output, const void* weight,
                   const void* bias, void* grad_input),
                  (shape, grad_output, weight, bias, grad_input))
