// compare_isas for pooling.
#include "compare_isas.h"
#include "kernels/adaptive_avg_pool2d.h"
#include "kernels/adaptive_max_pool2d.h"
#include "kernels/avg_pool2d.h"
#include "kernels/max_pool2d.h"
#include "kernels/max_unpool2d.h"

namespace fastconv::isas {
namespace {

// A window of any size that a pooling has a way of its own for.
Window2d random_pool_window() {
  Window2d w = random_window();
  const int64_t kind = random_below(6);
  if (kind == 0) w.R = random_in(5, 14), w.S = random_below(2) ? w.R : random_in(1, 18);
  if (kind == 1) w.R = w.S = random_in(2, 3), w.stride_h = w.stride_w = 2;
  if (kind == 2) w.stride_w = random_in(1, 5);
  w.pad_h = random_below(w.R / 2 + 1);
  w.pad_w = random_below(3) ? random_below(w.S / 2 + 1) : w.S / 2;
  if (w.R == w.S && random_below(2)) w.pad_h = w.pad_w;
  return w;
}

// With a last window that reaches over the end, at times.
int64_t pooled_extent(int64_t extent, int64_t taps, int64_t stride, int64_t pad, int64_t dilation,
                      bool up) {
  int64_t outputs = output_extent(extent + (up ? stride - 1 : 0), taps, stride, pad, dilation);
  if (up && (outputs - 1) * stride >= extent + pad) --outputs;
  return outputs;
}

// An input, its window and the output, N C H W P Q.
struct Pooling {
  Window2d w;
  Sizes n;
  int64_t P, Q;

  explicit Pooling(const Window2d& window) : w(window), n(window) {
    if (random_below(8) == 0) {  // one window that holds everything
      n.H = w.R, n.W = w.S;
      w.pad_h = w.pad_w = 0, w.dilation_h = w.dilation_w = 1;
    }
    const bool up = random_below(3) == 0;
    P = pooled_extent(n.H, w.R, w.stride_h, w.pad_h, w.dilation_h, up);
    Q = pooled_extent(n.W, w.S, w.stride_w, w.pad_w, w.dilation_w, up);
  }
};

// Places that no forward pass gives: the result is open, but nothing outside of the tensors may be
// touched.
void run_stray(const MaxPool2dShape& shape, const void* grad_output, const Layout& output,
               const Layout& grad) {
  const Guarded places(output.span * size_of(shape.where), true);
  for (int64_t i = 0; i < output.span; ++i) {
    const int64_t any = random_below(3) ? random_in(-2, shape.H * shape.W + 1) : g_random;
    std::memcpy(places.data() + i * size_of(shape.where), &any, size_of(shape.where));
  }
  for (int isa = 0; isa < static_cast<int>(cpu::Isa::count); ++isa) {
    if (!cpu::is_available(static_cast<cpu::Isa>(isa))) continue;
    const char* name = cpu::name_of(static_cast<cpu::Isa>(isa));
    cpu::set_isa(name);
    std::snprintf(g_case + std::strlen(g_case) + 1, 64, "backward from stray places on %s", name);
    const Guarded result(grad.span * size_of(shape.dtype), random_below(2));
    cpu::max_pool2d_backward(shape, grad_output, places.data(), result.data());
  }
}

int max_pool2d_backward(MaxPool2dShape shape, const Layout& output, const void* places) {
  const Layout from = random_layout(shape.N, shape.C, shape.P, shape.Q, true);
  const Layout to = random_layout(shape.N, shape.C, shape.H, shape.W, false);
  const Guarded grad_output(from.span * size_of(shape.dtype), random_below(3) != 0);
  fill(grad_output, shape.dtype, from.span, 8);
  shape.output = from.strides, shape.input = to.strides;
  int failures = 0;
  const bool taps = shape.where == DType::kUInt8;
  const auto run = [&](void* result) {
    cpu::max_pool2d_backward(shape, grad_output.data(), places, result);
  };
  failures += compare(taps ? "backward from taps" : "backward", shape.dtype, to, run);
  run_stray(shape, grad_output.data(), output, to);
  if (taps) return failures;
  shape.window = Window2d{};
  run_stray(shape, grad_output.data(), output, to);
  return failures + compare("backward of any window", shape.dtype, to, run);
}

}  // namespace

int compare_max_pool2d(DType dtype) {
  const Pooling pooling(random_pool_window());
  const auto& [w, n, P, Q] = pooling;
  const Layout input = random_layout(n.N, n.C, n.H, n.W, true);
  const Layout output = random_layout(n.N, n.C, P, Q, false);
  describe("max_pool2d", dtype, w, input, output, output, 1);

  const int64_t size = size_of(dtype);
  const bool at_end = random_below(3) != 0;
  const Guarded x(input.span * size, at_end), places(output.span * 8, at_end),
      taps(output.span, at_end);
  fill(x, dtype, input.span, 8);
  add_special_values(x, dtype, input.span);

  MaxPool2dShape shape{dtype,         DType::kInt64,  n.N,           n.C, n.H, n.W, P, Q, w,
                       input.strides, output.strides, output.strides};
  int failures = compare("forward", dtype, output, [&](void* result) {
    cpu::max_pool2d_forward(shape, x.data(), result, nullptr);
  });
  for (const bool as_taps : {false, true}) {
    if (as_taps && (!is_floating(dtype) || w.R * w.S > 255)) continue;
    shape.where = as_taps ? DType::kUInt8 : DType::kInt64;
    unsigned char* where = as_taps ? taps.data() : places.data();
    failures +=
        compare(as_taps ? "forward with taps" : "forward with indices", dtype, output,
                [&](void* result) { cpu::max_pool2d_forward(shape, x.data(), result, where); });
    failures += compare(as_taps ? "taps" : "indices", shape.where, output, [&](void* result) {
      const Guarded values(output.span * size, at_end);
      cpu::max_pool2d_forward(shape, x.data(), values.data(), result);
    });
    if (is_floating(dtype)) failures += max_pool2d_backward(shape, output, where);
  }
  if (!is_floating(dtype)) return failures;
  const AdaptiveMaxPool2dShape adaptive{
      dtype, n.N, n.C, n.H, n.W, P, Q, input.strides, output.strides, output.strides};
  failures += compare("adaptive forward", dtype, output, [&](void* result) {
    cpu::adaptive_max_pool2d_forward(adaptive, x.data(), result, nullptr);
  });
  return failures + compare("adaptive indices", DType::kInt64, output, [&](void* result) {
           const Guarded values(output.span * size, at_end);
           cpu::adaptive_max_pool2d_forward(adaptive, x.data(), values.data(),
                                            reinterpret_cast<int64_t*>(result));
         });
}

int compare_max_unpool2d(DType dtype) {
  const int64_t N = random_in(1, 2), C = random_in(1, 40), P = random_in(1, 7),
                Q = random_in(1, 20);
  const int64_t H = random_in(1, 14), W = random_in(1, 40);
  const Layout small = random_layout(N, C, P, Q, true), at = random_layout(N, C, P, Q, true);
  const Layout dense = random_layout(N, C, P, Q, false);
  const Layout large = random_layout(N, C, H, W, false), wide = random_layout(N, C, H, W, true);
  describe("max_unpool2d", dtype, Window2d{}, small, at, large, 1);

  const int64_t size = size_of(dtype);
  const bool at_end = random_below(3) != 0, stray = random_below(4) == 0;
  const Guarded x(small.span * size, at_end), y(wide.span * size, at_end),
      indices(at.span * 8, at_end);
  fill(x, dtype, small.span, 8);
  fill(y, dtype, wide.span, 8);
  for (int64_t i = 0; i < at.span; ++i) {
    const int64_t index = stray ? random_in(-3, H * W + 2) : random_below(H * W);
    std::memcpy(indices.data() + i * 8, &index, 8);
  }
  const auto* places = reinterpret_cast<const int64_t*>(indices.data());
  MaxUnpool2dShape forward{dtype, N, C, H, W, P, Q, small.strides, at.strides, large.strides};
  MaxUnpool2dShape backward = forward;
  backward.input = dense.strides, backward.output = wide.strides;
  MaxUnpool2dMistake first;
  const auto told = [&](const MaxUnpool2dMistake& mistake) {
    if (std::strcmp(cpu::name_of(cpu::active_isa()), "scalar") == 0) first = mistake;
    if (mistake.found == first.found && mistake.index == first.index) return;
    std::printf("%s: another wrong index is told on %s\n", g_case, cpu::name_of(cpu::active_isa()));
    std::exit(1);
  };
  const auto run_forward = [&](void* result) {
    MaxUnpool2dMistake mistake;
    cpu::max_unpool2d_forward(forward, x.data(), places, result, &mistake);
    told(mistake);
  };
  const auto run_backward = [&](void* result) {
    MaxUnpool2dMistake mistake;
    cpu::max_unpool2d_backward(backward, y.data(), places, result, &mistake);
    told(mistake);
  };
  return compare("forward", dtype, large, run_forward) +
         compare("backward", dtype, dense, run_backward);
}

// Sums of small integers are exact, and so is their quotient's rounding. The gradient's terms are
// quotients: they are integers here, for every divisor is 1.
int compare_avg_pool2d(DType dtype) {
  const Window2d any = random_pool_window();
  const Pooling pooling({any.R, any.S, any.stride_h, any.stride_w, any.pad_h, any.pad_w, 1, 1});
  const auto& [w, n, P, Q] = pooling;
  const Layout input = random_layout(n.N, n.C, n.H, n.W, true);
  const Layout output = random_layout(n.N, n.C, P, Q, true);
  describe("avg_pool2d", dtype, w, input, output, output, 1);

  const int64_t size = size_of(dtype);
  const bool at_end = random_below(3) != 0;
  const Guarded x(input.span * size, at_end), y(output.span * size, at_end);
  fill(x, dtype, input.span, 8);
  fill(y, dtype, output.span, 8);

  const Layout dense_output = random_layout(n.N, n.C, P, Q, false);
  const Layout dense_input = random_layout(n.N, n.C, n.H, n.W, false);
  AvgPool2dShape forward{dtype,
                         n.N,
                         n.C,
                         n.H,
                         n.W,
                         P,
                         Q,
                         w,
                         random_below(2) != 0,
                         random_below(3) ? 0 : -3,
                         input.strides,
                         dense_output.strides};
  AvgPool2dShape backward = forward;
  backward.divisor_override = 1;
  backward.input = dense_input.strides, backward.output = output.strides;
  const AdaptiveAvgPool2dShape adaptive{
      dtype, n.N, n.C, n.H, n.W, P, Q, input.strides, dense_output.strides};
  return compare("forward", dtype, dense_output,
                 [&](void* result) { cpu::avg_pool2d_forward(forward, x.data(), result); }) +
         compare("backward", dtype, dense_input,
                 [&](void* result) { cpu::avg_pool2d_backward(backward, y.data(), result); }) +
         compare("adaptive forward", dtype, dense_output, [&](void* result) {
           cpu::adaptive_avg_pool2d_forward(adaptive, x.data(), result);
         });
}

}  // namespace fastconv::isas
