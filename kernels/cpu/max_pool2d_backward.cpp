// max_pool2d, backward: scatters plane by plane into memory that only its task touches: no atomics,
// and one order of additions.
#include "../max_pool2d.h"
#include "../parallel.h"
#include "../scratch.h"
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kPlaneBytes = int64_t{4}
                                << 20;  // sums of the half types: a task's planes, in float32

template <class S>
struct Backward {
  using T = Compute<S>;
  const MaxPool2dShape& s;
  const S* grad_output;
  const int64_t* indices;
  S* grad_input;

  // Adds `count` gradients, each to its plane's sum: that of index h * W + w of lane l lies at
  // (h * W + w) * pixel_stride + l * lane_stride.
  FASTCONV_INLINE void scatter(const S* from, int64_t from_stride, const int64_t* at,
                               int64_t at_stride, int64_t count, T* sums, int64_t pixel_stride,
                               int64_t lane_stride) const {
    const uint64_t plane = static_cast<uint64_t>(s.H * s.W);
    for (int64_t l = 0; l < count; ++l) {
      const int64_t index = at[l * at_stride];
      if (static_cast<uint64_t>(index) < plane)
        sums[index * pixel_stride + l * lane_stride] += to_compute(from[l * from_stride]);
    }
  }

  // Channels [c, c_end) of image n, into sums[h * W + w][c]; a pixel's channels lie next to each
  // other. Outputs in row-major order: of one channel a row at a time, else a pixel at a time.
  void scatter_planes(int64_t n, int64_t c, int64_t c_end, T* sums, int64_t pixel_stride) const {
    const int64_t channels = c_end - c;
    if (pixel_stride == channels)
      clear(sums, s.H * s.W * channels);
    else
      for (int64_t m = 0; m < s.H * s.W; ++m) clear(sums + m * pixel_stride, channels);
    for (int64_t p = 0; p < s.P; ++p) {
      const S* from = grad_output + n * s.output.s[0] + c * s.output.s[1] + p * s.output.s[2];
      const int64_t* at = indices + n * s.indices.s[0] + c * s.indices.s[1] + p * s.indices.s[2];
      if (channels > 1) {
        for (int64_t q = 0; q < s.Q; ++q)
          scatter(from + q * s.output.s[3], s.output.s[1], at + q * s.indices.s[3], s.indices.s[1],
                  channels, sums, pixel_stride, 1);
      } else if (s.output.s[3] == 1 && s.indices.s[3] == 1 && pixel_stride == 1) {
        scatter(from, 1, at, 1, s.Q, sums, 1, 0);
      } else {
        scatter(from, s.output.s[3], at, s.indices.s[3], s.Q, sums, pixel_stride, 0);
      }
    }
  }

  FASTCONV_INLINE static void clear(T* p, int64_t count) {
    __builtin_memset(p, 0, static_cast<unsigned long>(count) * sizeof(T));
  }

  void planes(int64_t n, int64_t c, int64_t c_end) const {
    S* to = grad_input + n * s.input.s[0] + c * s.input.s[1];
    const int64_t channels = c_end - c;
    const bool dense = s.input.s[2] == s.W * s.input.s[3] && (channels == 1 || s.input.s[1] == 1);
    if constexpr (kSame<S, T>)
      if (dense) return scatter_planes(n, c, c_end, to, s.input.s[3]);
    Scratch<T> sums(s.H * s.W * channels);
    scatter_planes(n, c, c_end, sums.data(), channels);
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t w = 0; w < s.W; ++w)
        for (int64_t i = 0; i < channels; ++i)
          to[h * s.input.s[2] + w * s.input.s[3] + i * s.input.s[1]] =
              from_compute<S>(sums.data()[(h * s.W + w) * channels + i]);
  }

  void run() const {
    // Neighbouring channels share cache lines in NHWC: a task takes as many as one line holds.
    int64_t block = 1;
    if (s.input.s[1] == 1)
      block =
          larger(smaller(int64_t{16}, kPlaneBytes / (s.H * s.W * int64_t{sizeof(T)})), int64_t{1});
    const int64_t blocks = (s.C + block - 1) / block;
    const int64_t work = block * (s.P * s.Q + s.H * s.W);
    parallel_for(s.N * blocks, (int64_t{1} << 14) / work + 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t c = task % blocks * block;
        planes(task / blocks, c, smaller(c + block, s.C));
      }
    });
  }
};

}  // namespace

void max_pool2d_backward(const MaxPool2dShape& shape, const void* grad_output,
                         const int64_t* indices, void* grad_input) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    Backward<S>{shape, static_cast<const S*>(grad_output), indices, static_cast<S*>(grad_input)}
        .run();
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(max_pool2d_backward,
                  (const MaxPool2dShape& shape, const void* grad_output, const int64_t* indices,
                   void* grad_input),
                  (shape, grad_output, indices, grad_input))
