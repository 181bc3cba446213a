// Every kernel of every instruction set of this machine against the scalar one, on random shapes;
// before that, the functions that they are made of against their definitions.
//
//   compare_isas [cases] [seed]      prints the first difference of a case, exits 1 if there is one
//
// Elements are small integers, so every sum is exact in float32 in whatever order and results must
// agree to the last bit, also after rounding to float16 or bfloat16. Tensors end at, or begin
// behind, a page that must not be touched. Needs no framework and links statically: it also runs
// as the only process of an emulated machine.
#include <csignal>

#include "compare_isas.h"
#include "kernels/conv2d.h"
#include "kernels/parallel.h"

namespace fastconv::cpu {
void check_simd(unsigned char* begin, unsigned char* end, const char** fault);  // check_simd.cpp
}

namespace {

using namespace fastconv;
using namespace fastconv::isas;

int compare_conv2d(DType dtype) {
  const Window2d w = random_window();
  Sizes n(w);
  const int64_t kinds = random_below(4);  // a quarter depthwise, a quarter grouped
  const int64_t G = kinds == 0 ? n.C : kinds == 1 ? random_in(2, 9) : 1;
  if (kinds == 1) n.C = (n.C + G - 1) / G * G;
  const int64_t K = G == n.C                   ? G * random_in(1, 2)
                    : G > 1 && random_below(2) ? n.C
                                               : G * random_in(1, 40 / G);
  const int64_t P = output_extent(n.H, w.R, w.stride_h, w.pad_h, w.dilation_h);
  const int64_t Q = output_extent(n.W, w.S, w.stride_w, w.pad_w, w.dilation_w);
  const Layout input = random_layout(n.N, n.C, n.H, n.W, true);
  const Layout weight = random_layout(K, n.C / G, w.R, w.S, true);
  const Layout output = random_layout(n.N, K, P, Q, true);
  describe("conv2d", dtype, w, input, weight, output, G);

  const int64_t size = size_of(dtype);
  const bool at_end = random_below(3) != 0;
  const Guarded x(input.span * size, at_end), k(weight.span * size, at_end),
      y(output.span * size, at_end), b((K + n.C) * size, at_end);
  fill(x, dtype, input.span, 8);
  fill(k, dtype, weight.span, 8);
  fill(y, dtype, output.span, 8);
  fill(b, dtype, K + n.C, 8);

  const Conv2dShape shape{
      dtype, n.N, n.C, n.H, n.W, K, P, Q, G, w, input.strides, weight.strides, output.strides, 1};
  // What is written has no gaps.
  const Layout dense_output = random_layout(n.N, K, P, Q, false);
  const Layout dense_input = random_layout(n.N, n.C, n.H, n.W, false);
  const Layout dense_weight = random_layout(K, n.C / G, w.R, w.S, false);
  Conv2dShape forward = shape, input_grad = shape, weight_grad = shape;
  forward.output = dense_output.strides;
  input_grad.input = dense_input.strides;
  weight_grad.weight = dense_weight.strides;
  const void* bias = random_below(2) ? b.data() : nullptr;
  const void* start = bias ? b.data() + K * size : nullptr;  // of conv_transpose2d
  int failures = compare("forward", dtype, dense_output, [&](void* result) {
    cpu::conv2d_forward(forward, x.data(), k.data(), bias, nullptr, nullptr, result);
  });
  const Guarded residual(dense_output.span * size, at_end), scale(K * size, at_end);
  fill(residual, dtype, dense_output.span, 8);
  fill(scale, dtype, K, 3);
  const Activation exact[] = {Activation::kNone, Activation::kRelu, Activation::kRelu6};
  const Epilogue epilogue{random_below(2) ? scale.data() : nullptr, 1,
                          random_below(2) ? residual.data() : nullptr, exact[random_below(3)]};
  failures += compare("forward with epilogue", dtype, dense_output, [&](void* result) {
    cpu::conv2d_forward(forward, x.data(), k.data(), bias, nullptr, &epilogue, result);
  });
  failures += compare("input_grad", dtype, dense_input, [&](void* result) {
    cpu::conv2d_input_grad(input_grad, y.data(), k.data(), start, result);
  });
  failures += compare("weight_grad", dtype, dense_weight, [&](void* result) {
    cpu::conv2d_weight_grad(weight_grad, y.data(), x.data(), result);
  });
  return failures;
}

int check_every_simd() {
  int failures = 0;
  for (int isa = 0; isa < static_cast<int>(cpu::Isa::count); ++isa) {
    if (!cpu::is_available(static_cast<cpu::Isa>(isa))) continue;
    cpu::set_isa(cpu::name_of(static_cast<cpu::Isa>(isa)));
    std::snprintf(g_case, sizeof g_case, "simd.h on %s", cpu::name_of(cpu::active_isa()));
    const Guarded memory(kPage, true);
    const char* fault = nullptr;
    cpu::check_simd(memory.data(), memory.data() + kPage, &fault);
    std::printf("%s: %s\n", g_case, fault ? fault : "agrees with its definitions");
    failures += fault != nullptr;
  }
  return failures;
}

void report_crash(int signal) {
  std::printf("signal %d in %s: %s\n", signal, g_case, g_case + std::strlen(g_case) + 1);
  std::fflush(stdout);
  std::_Exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoll(argv[1]) : 100;
  const int64_t seed = argc > 2 ? std::atoll(argv[2]) : 1;
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL}) std::signal(signal, report_crash);
  set_num_threads(1);
  int failures = check_every_simd();
  for (int64_t i = 0; i < cases; ++i) {
    g_random = static_cast<uint64_t>(seed + i) * 0x9E3779B97F4A7C15u;
    random_below(1);
    const DType any = static_cast<DType>(i % 9), floating = static_cast<DType>(i % 4);
    failures += compare_conv2d(floating) + compare_max_pool2d(any) + compare_avg_pool2d(floating) +
                compare_max_unpool2d(floating);
    if (i % 50 == 49) {
      std::printf("%lld cases, %d differences\n", static_cast<long long>(i + 1), failures);
      std::fflush(stdout);
    }
  }
  std::printf("%lld cases, %d differences: ", static_cast<long long>(cases), failures);
  for (int isa = 1; isa < static_cast<int>(cpu::Isa::count); ++isa)
    if (cpu::is_available(static_cast<cpu::Isa>(isa)))
      std::printf("%s ", cpu::name_of(static_cast<cpu::Isa>(isa)));
  std::printf("against scalar\n");
  return failures != 0;
}
