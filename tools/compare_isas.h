// What compare_*.cpp share: random layouts and windows, memory between pages that must not be touched,
// and the comparison of an instruction set's result with the scalar one.
#pragma once
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/cpu/isa.h"
#include "kernels/dtype.h"
#include "kernels/window.h"

namespace fastconv::isas {

int compare_max_pool2d(DType dtype);  // compare_pools.cpp; each returns how many results differ
int compare_avg_pool2d(DType dtype);
int compare_max_unpool2d(DType dtype);

inline constexpr int64_t kPage = 4096;
inline constexpr unsigned char kUnwritten = 0xA5;

inline char g_case[512];  // what a crash reports

inline uint64_t g_random = 1;
inline int64_t random_below(int64_t count) {
  g_random = g_random * 6364136223846793005u + 1442695040888963407u;
  return static_cast<int64_t>((g_random >> 33) % static_cast<uint64_t>(count));
}
inline int64_t random_in(int64_t low, int64_t high) { return low + random_below(high - low + 1); }

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
inline Layout random_layout(int64_t a, int64_t b, int64_t c, int64_t d, bool may_have_gaps) {
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

inline uint64_t element_bits(DType dtype, int value) {
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

inline void fill(const Guarded& memory, DType dtype, int64_t count, int largest) {
  const int64_t size = size_of(dtype);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = element_bits(dtype, static_cast<int>(random_in(-largest, largest)));
    std::memcpy(memory.data() + i * size, &bits, size);
  }
}

// NaN, infinity, the largest and the smallest subnormal of either sign, here and there.
inline void add_special_values(const Guarded& memory, DType dtype, int64_t count) {
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
inline bool same_element(DType dtype, const unsigned char* a, const unsigned char* b) {
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

inline void describe(const char* op, DType dtype, const Window2d& w, const Layout& input,
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

inline Window2d random_window() {
  Window2d w;
  w.R = random_in(1, 4);
  w.S = random_below(2) ? w.R : random_in(1, 5);
  w.stride_h = w.stride_w = random_below(3) ? 1 : random_in(1, 3);
  w.pad_h = random_below(w.R / 2 + 1);
  w.pad_w = random_below(w.S / 2 + 1);
  w.dilation_h = w.dilation_w = random_below(4) ? 1 : 2;
  return w;
}

inline int64_t output_extent(int64_t extent, int64_t taps, int64_t stride, int64_t pad,
                             int64_t dilation) {
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

}  // namespace fastconv::isas
