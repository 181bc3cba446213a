// conv2d's gradient by an input of few channels, such as a network's first: with channels as lanes
// most of a register would be empty, and unfolding grad_output would cost more than the products.
// Here lanes are the elements of the window, and what they hold is added where the window lies:
//
//   products[q][r, s, c] = sum_k grad_output[n, k, p, q] * weight[k, c, r, s]
//   grad_input[n, c, p * stride_h - pad_h + r * dilation_h, q * stride_w - pad_w + s]
//     = sum_{p, q} products[q][r, s, c]
//
// One task = a band of input rows of one image, held as [row][column][c] with its padding, so that
// (s, c) of a row r are one run. Each row p of windows that reach it is a matrix product; grad_output
// is read in place. Sums are in the order of p, then as add_windows says: independent of bands.
// Cost: 2 * N*K*P*Q * R*S*C flops, and those of the windows that reach two bands once more.
#pragma once
#include "../parallel.h"
#include "conv2d_algorithm.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {  // of conv2d.cpp alone

constexpr int64_t kFewResults = 8, kLargestWindow = 512;  // elements
constexpr int64_t kBandBytes = int64_t{192} << 10;        // stays in L2, beside the products
constexpr int64_t kWindowBlock = 256;                     // of a row
constexpr int64_t kWantedBands = 16;
constexpr int64_t kReachesOfBand = 8;  // a band this many windows high is computed in vain to 1/8

template <class T>
class InputGradFew {
 public:
  InputGradFew(const Conv2dShape& s, const T* grad_output, const T* bias, T* grad_input)
      : s_(s),
        grad_(grad_output),
        bias_(bias),
        result_(grad_input),
        run_(s.window.S * s.C),
        depth_(s.K),
        panels_(divide_up(s.window.R * run_, int64_t{kTileColumns<T>})),
        blocks_(divide_up(s.Q, kWindowBlock)),
        row_(columns_of(s) * s.C) {
    const int64_t reach = (s.window.R - 1) * s.window.dilation_h + 1;
    const int64_t wanted = larger(divide_up(s.N * s.H, kWantedBands), kReachesOfBand * reach);
    const int64_t most = larger(kBandBytes / (row_ * int64_t{sizeof(T)}), int64_t{1});
    bands_ = divide_up(s.H, smaller(wanted, most));
  }

  static bool is_possible(const Conv2dShape& s) {
    const int64_t *g = s.output.s, R = s.window.R, S = s.window.S;
    return s.G == 1 && s.C <= kFewResults && R <= kLargestWindow && S <= kLargestWindow &&
           R * S > 1 && R * S * s.C <= kLargestWindow && s.window.dilation_w == 1 &&
           (g[1] == 1 || g[3] == 1) && columns_of(s) <= 2 * (s.W + S);
  }

  void run(const T* weight) const {
    Scratch<T> packed(panels_ * depth_ * kTileColumns<T>);
    pack(weight, packed.data());
    Scratch<T> bias(bias_ ? s_.W * s_.C : 0);
    for (int64_t i = 0; bias_ && i < s_.W * s_.C; ++i) bias.data()[i] = bias_[i % s_.C];
    parallel_for(s_.N * bands_, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> band(divide_up(s_.H, bands_) * row_);
      Scratch<T> products(divide_up(s_.Q, blocks_) * panels_ * kTileColumns<T>);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / bands_, h = part_begin(s_.H, bands_, task % bands_);
        const int64_t h_end = part_begin(s_.H, bands_, task % bands_ + 1);
        add_band(n, h, h_end, packed.data(), products.data(), band.data());
        for (int64_t row = h; row < h_end; ++row)
          store_row(band.data() + (row - h) * row_ + s_.window.pad_w * s_.C,
                    bias_ ? bias.data() : nullptr,
                    result_ + n * s_.input.s[0] + row * s_.input.s[2]);
      }
    });
  }

 private:
  // Of the input with its padding, as far as windows reach.
  static int64_t columns_of(const Conv2dShape& s) {
    return larger(s.window.pad_w + s.W, (s.Q - 1) * s.window.stride_w + s.window.S);
  }

  // Operand a of planes: pixels are contiguous, channels lie `plane` apart.
  struct PlaneRows {
    struct Tile {
      const T* data;
      int64_t plane;
      static constexpr int64_t row_stride = 1;
      FASTCONV_INLINE const T* at(int64_t d) const { return data + d * plane; }
    };
    const T* data;
    int64_t plane;
    int64_t begin = 0;

    FASTCONV_INLINE void prepare(int64_t from, int64_t) { begin = from; }
    FASTCONV_INLINE Tile rows(int64_t i) const { return {data + i + begin * plane, plane}; }
  };

  struct Store {
    T* products;
    int64_t stride;
    TileEnd<T> end(int64_t i, int64_t, int64_t j, int64_t) const {
      return {products + i * stride + j, stride, kTileColumns<T>};
    }
    void operator()(int64_t, int64_t, int64_t, int64_t, const T*, int64_t) const {}
  };

  // [panel][k][kTileColumns], columns are (r, s, c).
  void pack(const T* weight, T* packed) const {
    const int64_t* stride = s_.weight.s;
    clear_run(packed, panels_ * depth_ * kTileColumns<T>);
    int64_t x = 0;
    for (int64_t r = 0; r < s_.window.R; ++r)
      for (int64_t q = 0; q < s_.window.S; ++q)
        for (int64_t c = 0; c < s_.C; ++c, ++x) {
          T* to = packed + x / kTileColumns<T> * depth_ * kTileColumns<T> + x % kTileColumns<T>;
          const T* from = weight + c * stride[1] + r * stride[2] + q * stride[3];
          for (int64_t k = 0; k < depth_; ++k) to[k * kTileColumns<T>] = from[k * stride[0]];
        }
  }

  // band = the sums of rows [h, h_end) of image n.
  void add_band(int64_t n, int64_t h, int64_t h_end, const T* packed, T* products, T* band) const {
    const Window2d& window = s_.window;
    const int64_t *g = s_.output.s, reach = (window.R - 1) * window.dilation_h;
    const int64_t p = larger(divide_up(h + window.pad_h - reach, window.stride_h), int64_t{0});
    const int64_t p_end = smaller((h_end - 1 + window.pad_h) / window.stride_h + 1, s_.P);
    const int64_t columns = window.R * run_, stride = panels_ * kTileColumns<T>;
    clear_run(band, (h_end - h) * row_);
    for (int64_t i = p; i < p_end; ++i)
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t q = part_begin(s_.Q, blocks_, block);
        const int64_t count = part_begin(s_.Q, blocks_, block + 1) - q;
        PackedPanels<T> panels{packed, depth_};
        const T* from = grad_ + n * g[0] + i * g[2] + q * g[3];
        const Store store{products, stride};
        if (g[1] == 1) {
          DirectRows<T> rows{from, g[3]};
          multiply_block<T>(count, columns, depth_, rows, panels, store);
        } else {
          PlaneRows rows{from, g[1]};
          multiply_block<T>(count, columns, depth_, rows, panels, store);
        }
        for (int64_t r = 0; r < window.R; ++r) {
          const int64_t row = i * window.stride_h - window.pad_h + r * window.dilation_h;
          if (row >= h && row < h_end)
            add_windows(products + r * run_, stride, count,
                        band + (row - h) * row_ + q * window.stride_w * s_.C);
        }
      }
  }

  // to[(q * stride_w + s) * C + c] += products[q][s, c]: first windows that do not overlap, then those
  // between them, so that nothing is read that has just been written.
  void add_windows(const T* products, int64_t stride, int64_t count, T* to) const {
    using V = Vec<T>;
    const int64_t step = s_.window.stride_w * s_.C, phases = divide_up(run_, step);
    const int64_t whole = run_ / V::kLanes * V::kLanes, rest = run_ - whole;
    for (int64_t phase = 0; phase < phases; ++phase)
      for (int64_t q = phase; q < count; q += phases) {
        const T* from = products + q * stride;
        T* at = to + q * step;
        for (int64_t x = 0; x < whole; x += V::kLanes)
          (V::load(at + x) + V::load(from + x)).store(at + x);
        if (rest)
          store_some(at + whole, load_some(at + whole, rest) + load_some(from + whole, rest), rest);
      }
  }

  // `bias`: of every element of a row, as [column][c], or null.
  void store_row(const T* from, const T* bias, T* to) const {
    const int64_t C = s_.C, stride_c = s_.input.s[1], stride_w = s_.input.s[3];
    if (stride_c == 1 && stride_w == C) return store_run(to, 1, from, s_.W * C, bias);
    for (int64_t c = 0; c < C; ++c) {
      const T addend = bias ? bias[c] : T{0};
      for (int64_t w = 0; w < s_.W; ++w) to[c * stride_c + w * stride_w] = from[w * C + c] + addend;
    }
  }

  const Conv2dShape& s_;
  const T* grad_;
  const T* bias_;  // or null
  T* result_;
  int64_t run_, depth_, panels_, blocks_, row_, bands_;
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
