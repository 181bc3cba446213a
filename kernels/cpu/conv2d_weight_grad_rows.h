// The weight's gradient of convolutions with few channels, where a window moves by one over rows
// without gaps (NCHW, stride 1). A matrix product would leave most lanes of K empty; here lanes are
// the pixels of a row:
//
//   sums[k][x][lane] = sum_{row, j} grad_output[k, row, j + lane] * strip[row, j + offset(x) + lane]
//   grad_weight[k][x] = sum over lanes,  x = c * taps + t
//
// One task = a slice of the strips of all images, of one group; slices are added in order. How
// many there are depends on the shape alone. The input's strips are those of conv2d_shifted.h; behind the
// end of a row they are not read, so that an infinity there cannot meet a zero.
// Cost: 2 flops per lane, pixel vector, k and x.
#pragma once
#include "conv2d_shifted.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Registers of a tile: kRowsK x kRowsX sums, kRowsK gradients, one input.
constexpr int kRowsK = kVectorRegisters == 32 ? 4 : 2;
constexpr int kRowsX = kVectorRegisters == 32 ? 6 : 4;
constexpr int64_t kRowsSumBytes = int64_t{256} << 10;  // a task's sums stay in L2
constexpr int64_t kRowsSlices = 16;

// What one strip adds to sums[kCountK][kCountX].
template <class T, int kCountK, int kCountX>
void add_strip(int64_t rows, int64_t J, const T* grad, int64_t grad_plane, int64_t grad_row,
               const T* strip, int64_t width, const int64_t* offsets, T* sums,
               int64_t sums_stride) {
  using V = Vec<T>;
  V acc[kCountK][kCountX];
#pragma GCC unroll 4
  for (int k = 0; k < kCountK; ++k)
#pragma GCC unroll 6
    for (int x = 0; x < kCountX; ++x) acc[k][x] = V::load(sums + k * sums_stride + x * V::kLanes);
  const auto add = [&](const T* from, const T* at, auto load) {
    V g[kCountK];
#pragma GCC unroll 4
    for (int k = 0; k < kCountK; ++k) g[k] = V::load(from + k * grad_plane);
#pragma GCC unroll 6
    for (int x = 0; x < kCountX; ++x) {
      const V value = load(at + offsets[x]);
#pragma GCC unroll 4
      for (int k = 0; k < kCountK; ++k) acc[k][x] = acc[k][x] + g[k] * value;
    }
  };
  const int64_t whole = J / V::kLanes * V::kLanes, rest = J - whole;
  for (int64_t i = 0; i < rows; ++i) {
    const T *from = grad + i * grad_row, *at = strip + i * width;
    for (int64_t j = 0; j < whole; j += V::kLanes)
      add(from + j, at + j, [](const T* p) { return V::load(p); });
    if (rest) add(from + whole, at + whole, [rest](const T* p) { return load_some(p, rest); });
  }
#pragma GCC unroll 4
  for (int k = 0; k < kCountK; ++k)
#pragma GCC unroll 6
    for (int x = 0; x < kCountX; ++x) acc[k][x].store(sums + k * sums_stride + x * V::kLanes);
}

template <class S>
class WeightGradRows {
 public:
  using T = Compute<S>;
  using V = Vec<T>;

  WeightGradRows(const PixelSource<S>& input, const PixelSource<S>& grad_output, int64_t K)
      : input_(input),
        grad_(grad_output),
        strip_(input),
        K_(K),
        X_(input.depth()),
        J_(input.grid.J),
        strips_(divide_up(input.grid.I, strip_.rows())),
        grad_row_(divide_up(J_, int64_t{V::kLanes}) * V::kLanes) {}

  int64_t units() const { return input_.grid.N * strips_; }

  // partial[k][x] = what units [begin, end) of group g give.
  void run(int64_t g, int64_t begin, int64_t end, T* partial) const {
    Scratch<T> sums(K_ * X_ * V::kLanes), strip(strip_.size()), grad(K_ * grad_plane());
    Scratch<int64_t> offsets(X_);
    strip_.set_offsets(input_, offsets.data());
    clear_run(sums.data(), K_ * X_ * V::kLanes);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / strips_, i = unit % strips_ * strip_.rows();
      const int64_t i_end = smaller(i + strip_.rows(), input_.grid.I);
      strip_.fill(input_.data + g * input_.C * input_.stride_c, n, i, i_end, strip.data());
      copy_grad(g, n, i, i_end, grad.data());
      for (int64_t k = 0; k < K_;) {
        const int64_t count = K_ - k >= kRowsK ? kRowsK : K_ - k >= 2 ? 2 : 1;
        const T* from = grad.data() + k * grad_plane();
        T* to = sums.data() + k * X_ * V::kLanes;
        if (count == kRowsK)
          add_taps<kRowsK>(i_end - i, from, strip.data(), offsets.data(), to);
        else if (count == 2)
          add_taps<2>(i_end - i, from, strip.data(), offsets.data(), to);
        else
          add_taps<1>(i_end - i, from, strip.data(), offsets.data(), to);
        k += count;
      }
    }
    for (int64_t i = 0; i < K_ * X_; ++i) {
      T sum = 0;
      for (int64_t l = 0; l < V::kLanes; ++l) sum += sums.data()[i * V::kLanes + l];
      partial[i] = sum;
    }
  }

 private:
  int64_t grad_plane() const { return strip_.rows() * grad_row_; }

  // [k][row][grad_row_], zero behind the end of a row.
  void copy_grad(int64_t g, int64_t n, int64_t i, int64_t i_end, T* to) const {
    for (int64_t k = 0; k < K_; ++k)
      for (int64_t row = i; row < i_end; ++row) {
        T* at = to + k * grad_plane() + (row - i) * grad_row_;
        copy_run(
            at,
            grad_.data + n * grad_.stride_n + (g * K_ + k) * grad_.stride_c + row * grad_.stride_h,
            grad_.stride_w, J_);
        clear_run(at + J_, grad_row_ - J_);
      }
  }

  template <int kCountK>
  void add_taps(int64_t rows, const T* grad, const T* strip, const int64_t* offsets,
                T* sums) const {
    for (int64_t x = 0; x < X_;) {
      const int64_t count = X_ - x >= kRowsX ? kRowsX : X_ - x >= 3 ? 3 : 1;
      const auto add = [&](auto width) {
        add_strip<T, kCountK, decltype(width)::value>(rows, J_, grad, grad_plane(), grad_row_,
                                                      strip, strip_.width(), offsets + x,
                                                      sums + x * V::kLanes, X_ * V::kLanes);
      };
      if (count == kRowsX)
        add(std::integral_constant<int, kRowsX>());
      else if (count == 3)
        add(std::integral_constant<int, 3>());
      else
        add(std::integral_constant<int, 1>());
      x += count;
    }
  }

  const PixelSource<S>& input_;
  const PixelSource<S>& grad_;
  ShiftedStrip<S, T> strip_;
  int64_t K_, X_, J_, strips_, grad_row_;
};

// Whether pixels fill the lanes better than K does, and what this arrangement needs is there.
template <class S>
bool rows_pay(const PixelSource<S>& input, int64_t K) {
  constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
  const int64_t J = input.grid.J, bytes = K * input.depth() * kVectorBytes;
  const bool fuller = J * divide_up(K, kLanes) > K * divide_up(J, kLanes);
  return fuller && input.pixel_stride() == 1 && input.step_h == 1 && bytes > 0 &&
         bytes <= kRowsSumBytes && ShiftedStrip<S, Compute<S>>(input).is_small();
}

template <class S>
void weight_grad_rows(const PixelSource<S>& input, const PixelSource<S>& grad_output, int64_t G,
                      int64_t K, S* grad_weight, int64_t stride_k, int64_t stride_c) {
  using T = Compute<S>;
  const WeightGradRows<S> product(input, grad_output, K);
  const int64_t taps = input.tap_count, count = K * input.C * taps, units = product.units();
  const int64_t slices = smaller(larger(units, int64_t{1}), kRowsSlices);
  Scratch<T> partial(G * slices * count);
  parallel_for(G * slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slice = task % slices;
      product.run(task / slices, units * slice / slices, units * (slice + 1) / slices,
                  partial.data() + task * count);
    }
  });
  for (int64_t g = 0; g < G; ++g)
    for (int64_t k = 0; k < K; ++k)
      for (int64_t c = 0; c < input.C; ++c)
        for (int64_t t = 0; t < taps; ++t) {
          const T* from = partial.data() + g * slices * count + (k * input.C + c) * taps + t;
          T sum = 0;
          for (int64_t slice = 0; slice < slices; ++slice) sum += from[slice * count];
          grad_weight[(g * K + k) * stride_k + c * stride_c + input.taps[t].weight] =
              from_compute<S>(sum);
        }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
