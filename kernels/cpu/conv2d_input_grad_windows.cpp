// The gradient by an input, window by window: see conv2d_input_grad_windows.h.
#include "conv2d_input_grad_windows.h"

#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Measured against the phases of conv2d.cpp (Zen 4, 2 cores, 2026-11): up to this many windows, from
// such weights on, the gain is 1.1 to 1.8. Windows of one element gain less: phases pack them faster.
constexpr int64_t kMostWindows = 200, kMostSingles = 64;
constexpr int64_t kLeastWeight = int64_t{1} << 17, kLeastSingles = int64_t{1} << 19;  // elements
constexpr int64_t kLeastDepth = 64;
constexpr int64_t kTaskBytes = int64_t{kVectorRegisters == 32 ? 640 : 320} << 10;  // stay in L2
constexpr int64_t kLeastTasks = 16;

// b[k][x]: a run of the weight's elements of each k, packed by the thread that uses it.
template <class T>
struct RunPanels {
  const T* weight;
  int64_t weight_k, run;
  T* packed;  // [panel][kDepthBlock][kTileColumns]
  int64_t depth = 0;

  void prepare(int64_t begin, int64_t end) {
    constexpr int64_t kColumns = kTileColumns<T>;
    depth = end - begin;
    const int64_t whole = run / kColumns, rest = run % kColumns;
    for (int64_t d = 0; d < depth; ++d) {
      const T* from = weight + (begin + d) * weight_k;
      T* to = packed + d * kColumns;
      for (int64_t panel = 0; panel < whole; ++panel, from += kColumns, to += depth * kColumns)
#pragma GCC unroll 4
        for (int j = 0; j < kTileVectors; ++j)
          Vec<T>::load(from + j * Vec<T>::kLanes).store(to + j * Vec<T>::kLanes);
      if (rest == 0) continue;
      copy_run(to, from, 1, rest);
      clear_run(to + rest, kColumns - rest);
    }
  }
  FASTCONV_INLINE PackedPanel<T> panel(int64_t j) const {
    return {packed + j * kTileColumns<T> * depth};
  }
};

template <class T>
struct StoreProducts {
  T* products;
  int64_t stride;
  const T* bias;  // of the columns, or null
  EndOf<T> end(int64_t m, int64_t, int64_t x, int64_t columns) const {
    return {products + m * stride + x, stride, columns, nullptr, bias ? bias + x : nullptr};
  }
  void operator()(int64_t, int64_t, int64_t, int64_t, const T*, int64_t) const {}
};

// The taps of an axis that lie inside, when the window begins at `first`.
struct InsideTaps {
  int64_t begin, end;
  InsideTaps(int64_t first, int64_t taps, int64_t dilation, int64_t extent)
      : begin(first < 0 ? smaller(divide_up(-first, dilation), taps) : 0),
        end(first >= extent ? 0 : smaller(divide_up(extent - first, dilation), taps)) {}
  int64_t count() const { return end - begin; }
};

template <class T>
FASTCONV_INLINE void add_run(T* to, const T* from, int64_t count) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes)
    (V::load(to + i) + V::load(from + i)).store(to + i);
  if (i < count)
    store_some(to + i, load_some(to + i, count - i) + load_some(from + i, count - i), count - i);
}

template <class T>
class InputGradWindows {
  using V = Vec<T>;

 public:
  InputGradWindows(const Conv2dShape& s, const T* grad_output, const T* weight, const T* bias,
                   T* grad_input)
      : s_(s),
        tap_{0, 0, 0, s.Q, 0},
        grad_(output_source(s, grad_output, {s.N, s.P, s.Q})),
        weight_(weight),
        bias_(bias),
        result_(grad_input),
        taps_(s.window.R * s.window.S),
        C_(s.C / s.G),
        one_each_(taps_ == 1 && s.P == s.H && s.Q == s.W && s.window.pad_h == 0 &&
                  s.window.pad_w == 0) {
    grad_.taps = &tap_, grad_.tap_count = 1;
    // As many channels as L2 holds with all windows' products, their partial sums and the weight's
    // piece, in whole panels.
    const int64_t per_element = int64_t{sizeof(T)} * (2 * grad_.grid.count() + kDepthBlock<T>);
    const int64_t even = divide_up(C_, divide_up(kLeastTasks, s.G));
    const int64_t fit = larger(smaller(kTaskBytes / (per_element * taps_), even), int64_t{1});
    block_ = smaller(divide_up(fit, int64_t{kTileColumns<T>}) * kTileColumns<T>, C_);
    blocks_ = divide_up(C_, block_);
  }

  void run() const {
    parallel_for(s_.G * blocks_, 1, [&](int64_t begin, int64_t end) {
      const int64_t windows = grad_.grid.count(), pitch = pitch_of(block_);
      Scratch<T> packed(pitch, smaller(kDepthBlock<T>, grad_.C)), products(windows, pitch);
      Scratch<T> unfolded(windows, kDepthBlock<T>);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t g = task / blocks_, c = task % blocks_ * block_;
        const Block block = {g, c, smaller(block_, C_ - c), result_ + (g * C_ + c) * s_.input.s[1],
                             bias_ ? bias_ + g * C_ + c : nullptr};
        multiply(block, packed.data(), unfolded.data(), products.data());
        if (one_each_) {
          copy_pixels(block, products.data());
        } else {
          start(block);
          add_windows(block, products.data());
        }
      }
    });
  }

 private:
  struct Block {
    int64_t g, c, channels;
    T* result;
    const T* bias;  // or null
  };

  int64_t pitch_of(int64_t channels) const {
    return divide_up(channels * taps_, int64_t{kTileColumns<T>}) * kTileColumns<T>;
  }

  void multiply(const Block& block, T* packed, T* unfolded, T* products) const {
    const int64_t windows = grad_.grid.count(), run = block.channels * taps_;
    PixelSource<T> source = grad_;
    source.data += block.g * grad_.C * grad_.stride_c;
    const int64_t* w = s_.weight.s;
    RunPanels<T> panels{weight_ + block.g * grad_.C * w[0] + block.c * w[1], w[0], run, packed};
    PixelRows<T> rows{source, 0, windows, unfolded};
    const StoreProducts<T> store{products, pitch_of(block.channels),
                                 one_each_ ? block.bias : nullptr};
    multiply_block<T>(windows, run, grad_.C, rows, panels, store);
  }

  void copy_pixels(const Block& block, const T* products) const {
    const int64_t *x = s_.input.s, pitch = pitch_of(block.channels);
    for (int64_t n = 0; n < s_.N; ++n)
      for (int64_t h = 0; h < s_.H; ++h, products += s_.W * pitch)
        copy_grid(block.result + n * x[0] + h * x[2], x[1], products, 1, pitch, block.channels,
                  s_.W);
  }

  void start(const Block& block) const {
    const int64_t* x = s_.input.s;
    for (int64_t n = 0; n < s_.N; ++n)
      for (int64_t c = 0; c < block.channels; ++c)
        for (int64_t h = 0; h < s_.H; ++h) {
          T* const row = block.result + n * x[0] + c * x[1] + h * x[2];
          const V value = V::broadcast(block.bias ? block.bias[c] : T{0});
          for (int64_t w = 0; w < s_.W; w += V::kLanes)
            store_some(row + w, value, smaller(s_.W - w, int64_t{V::kLanes}));
        }
  }

  void add_windows(const Block& block, const T* products) const {
    const Window2d& window = s_.window;
    const int64_t *x = s_.input.s, pitch = pitch_of(block.channels);
    for (int64_t n = 0; n < s_.N; ++n)
      for (int64_t p = 0; p < s_.P; ++p)
        for (int64_t q = 0; q < s_.Q; ++q, products += pitch) {
          const int64_t h = p * window.stride_h - window.pad_h;
          const int64_t w = q * window.stride_w - window.pad_w;
          const InsideTaps rows(h, window.R, window.dilation_h, s_.H);
          const InsideTaps columns(w, window.S, 1, s_.W);
          if (columns.count() <= 0) continue;
          for (int64_t c = 0; c < block.channels; ++c)
            for (int64_t r = rows.begin; r < rows.end; ++r)
              add_run(block.result + (n * x[0] + c * x[1] + (h + r * window.dilation_h) * x[2] + w +
                                      columns.begin),
                      products + ((c * window.R + r) * window.S + columns.begin), columns.count());
        }
  }

  const Conv2dShape& s_;
  const Tap tap_;
  PixelSource<T> grad_;
  const T* weight_;
  const T* bias_;  // or null
  T* result_;
  int64_t taps_, C_;  // C_: of a group
  bool one_each_;     // of every pixel, one window
  int64_t block_, blocks_;
};

}  // namespace

bool windows_pay(const Conv2dShape& s) {
  const int64_t *w = s.weight.s, R = s.window.R, S = s.window.S;
  const bool runs = (S == 1 || (w[3] == 1 && s.window.dilation_w == 1)) && (R == 1 || w[2] == S) &&
                    w[1] == R * S && s.input.s[3] == 1;
  const int64_t windows = s.N * s.P * s.Q, elements = s.K * (s.C / s.G) * R * S;
  const bool single = R * S == 1;
  return runs && windows > 0 && windows <= (single ? kMostSingles : kMostWindows) &&
         elements >= (single ? kLeastSingles : kLeastWeight) && s.K / s.G >= kLeastDepth;
}

void input_grad_windows(const Conv2dShape& shape, const float* grad_output, const float* weight,
                        const float* bias, float* grad_input) {
  InputGradWindows<float>(shape, grad_output, weight, bias, grad_input).run();
}
void input_grad_windows(const Conv2dShape& shape, const double* grad_output, const double* weight,
                        const double* bias, double* grad_input) {
  InputGradWindows<double>(shape, grad_output, weight, bias, grad_input).run();
}

}  // namespace fastconv::cpu::FASTCONV_ISA
