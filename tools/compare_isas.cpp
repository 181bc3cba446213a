// Every kernel of every instruction set of this machine against the scalar one, on random shapes;
// before that, the functions that they are made of against their definitions.
//
//   compare_isas [cases] [seed]      prints the first difference of a case, exits 1 if there is one
//
// Elements are small integers, so every sum is exact in float32 in whatever order and results must
// agree to the last bit, also after rounding to float16 or bfloat16. Tensors end at, or begin
// behind, a page that must not be touched. Needs no framework and links statically: it also runs
// as the only process of an emulated machine.
#include <sys/mman.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/adaptive_avg_pool2d.h"
#include "kernels/avg_pool2d.h"
#include "kernels/conv2d.h"
#include "kernels/cpu/isa.h"
#include "kernels/max_pool2d.h"
#include "kernels/parallel.h"

namespace fastconv::cpu {
void check_simd(unsigned char* begin, unsigned char* end, const char** fault);  // check_simd.cpp
}

namespace {

using namespace fastconv;

constexpr int64_t kPage = 4096;
constexpr unsigned char kUnwritten = 0xA5;

char g_case[512];  // what a crash reports

uint64_t g_random = 1;
int64_t random_below(int64_t count) {
  g_random = g_random * 6364136223846793005u + 1442695040888963407u;
  return static_cast<int64_t>((g_random >> 33) % static_cast<uint64_t>(count));
}
int64_t random_in(int64_t low, int64_t high) { return low + random_below(high - low + 1); }

// Bytes between two pages that must not be touched, next to the one behind or the one before.
class Guarded {
 public:
  Guarded(int64_t bytes, bool at_end) : bytes_(bytes) {
    inner_ = (bytes + kPage - 1) / kPage * kPage;
    base_ = static_cast<unsigned char*>(
        mmap(nullptr, inner_ + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + kPage, inner_, PROT_READ | PROT_WRITE)) {
      std::perror("compare_isas: mmap");
      std::exit(2);
    }
    std::memset(base_ + kPage, kUnwritten, inner_);
    data_ = base_ + kPage + (at_end ? inner_ - bytes : 0);
  }
  ~Guarded() { munmap(base_, inner_ + 2 * kPage); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  unsigned char* data() const { return data_; }
  bool slack_is_untouched() const {
    for (const unsigned char* p = base_ + kPage; p < base_ + kPage + inner_; ++p)
      if ((p < data_ || p >= data_ + bytes_) && *p != kUnwritten) return false;
    return true;
  }

 private:
  int64_t bytes_, inner_;
  unsigned char *base_, *data_;
};

struct Layout {
  int64_t extent[4];
  Strides4 strides;
  int64_t span;  // elements from the first to the last, inclusive
};

// Contiguous or channels_last; an input may also be every second element of such a tensor.
Layout random_layout(int64_t a, int64_t b, int64_t c, int64_t d, bool may_have_gaps) {
  Layout layout{{a, b, c, d}, {}, 1};
  const int contiguous[4] = {3, 2, 1, 0}, channels_last[4] = {1, 3, 2, 0};
  const int* order = random_below(2) ? contiguous : channels_last;
  int64_t stride = may_have_gaps && random_below(6) == 0 ? 2 : 1;
  for (int i = 0; i < 4; ++i) {
    layout.strides.s[order[i]] = stride;
    layout.span += (layout.extent[order[i]] - 1) * stride;
    stride *= layout.extent[order[i]];
  }
  return layout;
}

uint64_t element_bits(DType dtype, int value) {
  const float single = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  switch (dtype) {
    case DType::kFloat32:
      return bits;
    case DType::kBFloat16:
      return bits >> 16;
    case DType::kFloat16:  // exact: another exponent, a shorter mantissa
      return value ? ((bits >> 16) & 0x8000) | (((bits & 0x7fffffff) >> 13) - (112 << 10)) : 0;
    case DType::kFloat64: {
      const double wide = value;
      uint64_t wide_bits;
      std::memcpy(&wide_bits, &wide, 8);
      return wide_bits;
    }
    default:
      return static_cast<uint64_t>(value);
  }
}

void fill(const Guarded& memory, DType dtype, int64_t count, int largest) {
  const int64_t size = size_of(dtype);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = element_bits(dtype, static_cast<int>(random_in(-largest, largest)));
    std::memcpy(memory.data() + i * size, &bits, size);
  }
}

// NaN, infinity, the largest and the smallest subnormal of either sign, here and there.
void add_special_values(const Guarded& memory, DType dtype, int64_t count) {
  if (!is_floating(dtype)) return;
  const int mantissa = dtype == DType::kFloat32    ? 23
                       : dtype == DType::kFloat64  ? 52
                       : dtype == DType::kBFloat16 ? 7
                                                   : 10;
  const int64_t size = size_of(dtype);
  const uint64_t sign = uint64_t{1} << (8 * size - 1), one = uint64_t{1} << mantissa;
  const uint64_t infinity = (sign - 1) / one * one;
  const uint64_t specials[4] = {infinity | (one >> 1), infinity, one - 1, 1};
  for (int64_t i = random_below(9); i < count; i += random_in(1, 19)) {
    const uint64_t bits = specials[random_below(4)] | (random_below(2) ? sign : 0);
    std::memcpy(memory.data() + i * size, &bits, size);
  }
}

// Zeros of either sign are equal, and so are NaNs.
bool same_element(DType dtype, const unsigned char* a, const unsigned char* b) {
  const int64_t size = size_of(dtype);
  uint64_t x = 0, y = 0;
  std::memcpy(&x, a, size);
  std::memcpy(&y, b, size);
  if (x == y) return true;
  if (!is_floating(dtype)) return false;
  const uint64_t magnitude = (uint64_t{1} << (8 * size - 1)) - 1;
  const int mantissa = dtype == DType::kFloat32    ? 23
                       : dtype == DType::kFloat64  ? 52
                       : dtype == DType::kBFloat16 ? 7
                                                   : 10;
  const uint64_t infinity = magnitude >> mantissa << mantissa;
  x &= magnitude;
  y &= magnitude;
  return (x == 0 && y == 0) || (x > infinity && y > infinity);
}

// Runs the kernel on the scalar and on every other instruction set; returns how many differ.
template <class Run>
int compare(const char* what, DType dtype, const Layout& result, const Run& run) {
  int failures = 0;
  const int64_t bytes = result.span * size_of(dtype);
  const Guarded expected(bytes, true);
  cpu::set_isa("scalar");
  run(expected.data());
  for (int isa = 1; isa < static_cast<int>(cpu::Isa::count); ++isa) {
    if (!cpu::is_available(static_cast<cpu::Isa>(isa))) continue;
    const char* name = cpu::name_of(static_cast<cpu::Isa>(isa));
    cpu::set_isa(name);
    for (const bool at_end : {true, false}) {
      std::snprintf(g_case + std::strlen(g_case) + 1, 64, "%s on %s", what, name);
      const Guarded got(bytes, at_end);
      run(got.data());
      int64_t first = -1, count = 0;
      for (int64_t i = 0; i < result.span; ++i)
        if (!same_element(dtype, expected.data() + i * size_of(dtype),
                          got.data() + i * size_of(dtype))) {
          if (first < 0) first = i;
          ++count;
        }
      if (count == 0 && got.slack_is_untouched()) continue;
      ++failures;
      std::printf("%s: %s on %s: %lld of %lld elements differ, the first at %lld%s\n", g_case, what,
                  name, static_cast<long long>(count), static_cast<long long>(result.span),
                  static_cast<long long>(first),
                  got.slack_is_untouched() ? "" : "; wrote outside of the tensor");
    }
  }
  return failures;
}

void describe(const char* op, DType dtype, const Window2d& w, const Layout& input,
              const Layout& weight, const Layout& output, int64_t groups) {
  const auto text = [](const Layout& layout) {
    std::string result = "[";
    for (int i = 0; i < 4; ++i)
      result += std::to_string(layout.extent[i]) + ":" + std::to_string(layout.strides.s[i]) + " ";
    result.back() = ']';
    return result;
  };
  std::snprintf(g_case, sizeof g_case - 64,
                "%s %s input %s weight %s output %s G=%lld R,S=%lld,%lld stride=%lld,%lld "
                "pad=%lld,%lld dilation=%lld,%lld",
                op, name_of(dtype), text(input).c_str(), text(weight).c_str(), text(output).c_str(),
                static_cast<long long>(groups), static_cast<long long>(w.R),
                static_cast<long long>(w.S), static_cast<long long>(w.stride_h),
                static_cast<long long>(w.stride_w), static_cast<long long>(w.pad_h),
                static_cast<long long>(w.pad_w), static_cast<long long>(w.dilation_h),
                static_cast<long long>(w.dilation_w));
}

Window2d random_window() {
  Window2d w;
  w.R = random_in(1, 4);
  w.S = random_below(2) ? w.R : random_in(1, 5);
  w.stride_h = w.stride_w = random_below(3) ? 1 : random_in(1, 3);
  w.pad_h = random_below(w.R / 2 + 1);
  w.pad_w = random_below(w.S / 2 + 1);
  w.dilation_h = w.dilation_w = random_below(4) ? 1 : 2;
  return w;
}

int64_t output_extent(int64_t extent, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  return (extent + 2 * pad - dilation * (taps - 1) - 1) / stride + 1;
}

// A batch, channels and a map large enough for the window; mostly small, at times several tiles.
struct Sizes {
  int64_t N, C, H, W;
  explicit Sizes(const Window2d& w) {
    const bool large = random_below(4) == 0;
    N = random_in(1, 2);
    C = random_in(1, large ? 40 : 9);
    H = w.dilation_h * (w.R - 1) + random_in(1, large ? 20 : 7);
    W = w.dilation_w * (w.S - 1) + random_in(1, large ? 40 : 20);
  }
};

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

int compare_max_pool2d(DType dtype) {
  const Window2d w = random_window();
  const Sizes n(w);
  const int64_t P = output_extent(n.H, w.R, w.stride_h, w.pad_h, w.dilation_h);
  const int64_t Q = output_extent(n.W, w.S, w.stride_w, w.pad_w, w.dilation_w);
  const Layout input = random_layout(n.N, n.C, n.H, n.W, true);
  const Layout output = random_layout(n.N, n.C, P, Q, false);
  describe("max_pool2d", dtype, w, input, output, output, 1);

  const int64_t size = size_of(dtype);
  const bool at_end = random_below(3) != 0;
  const Guarded x(input.span * size, at_end), y(output.span * size, at_end),
      indices(output.span * 8, at_end);
  fill(x, dtype, input.span, 8);
  fill(y, dtype, output.span, 8);
  add_special_values(x, dtype, input.span);

  MaxPool2dShape shape{dtype, DType::kInt64, n.N,           n.C,            n.H,           n.W,
                       P,     Q,             w,   input.strides, output.strides, output.strides};
  int failures = compare("forward", dtype, output, [&](void* result) {
    cpu::max_pool2d_forward(shape, x.data(), result, nullptr);
  });
  failures += compare("forward with indices", dtype, output, [&](void* result) {
    cpu::max_pool2d_forward(shape, x.data(), result, indices.data());
  });
  failures += compare("indices", DType::kInt64, output, [&](void* result) {
    const Guarded values(output.span * size, at_end);
    cpu::max_pool2d_forward(shape, x.data(), values.data(), result);
  });
  if (!is_floating(dtype)) return failures;
  const Layout grad = random_layout(n.N, n.C, n.H, n.W, false);
  MaxPool2dShape backward = shape;
  backward.input = grad.strides;
  failures += compare("backward", dtype, grad, [&](void* result) {
    cpu::max_pool2d_backward(backward, y.data(), indices.data(), result);
  });
  backward.window = Window2d{};
  failures += compare("backward of any window", dtype, grad, [&](void* result) {
    cpu::max_pool2d_backward(backward, y.data(), indices.data(), result);
  });
  if (w.R * w.S > 255) return failures;
  shape.where = backward.where = DType::kUInt8;
  backward.window = w;
  const Guarded taps(output.span, at_end);
  failures += compare("forward with taps", dtype, output, [&](void* result) {
    cpu::max_pool2d_forward(shape, x.data(), result, taps.data());
  });
  failures += compare("taps", DType::kUInt8, output, [&](void* result) {
    const Guarded values(output.span * size, at_end);
    cpu::max_pool2d_forward(shape, x.data(), values.data(), result);
  });
  return failures + compare("backward from taps", dtype, grad, [&](void* result) {
           cpu::max_pool2d_backward(backward, y.data(), taps.data(), result);
         });
}

// Sums of small integers are exact, and so is their quotient's rounding. The gradient's terms are
// quotients: they are integers here, for every divisor is 1.
int compare_avg_pool2d(DType dtype) {
  const Window2d any = random_window();
  const Window2d w{any.R, any.S, any.stride_h, any.stride_w, any.pad_h, any.pad_w, 1, 1};
  const Sizes n(w);
  const int64_t P = output_extent(n.H, w.R, w.stride_h, w.pad_h, 1);
  const int64_t Q = output_extent(n.W, w.S, w.stride_w, w.pad_w, 1);
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
    failures += compare_conv2d(floating) + compare_max_pool2d(any) + compare_avg_pool2d(floating);
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
