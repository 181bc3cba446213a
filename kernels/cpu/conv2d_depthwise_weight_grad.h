// Depthwise convolution: one source channel and one target channel per group, so no product of
// matrices but a weighted sum of shifted images. Both passes of conv2d.cpp, and the weight's
// gradient:
//
//   target[n,g,i,j]  = bias[g] + sum_t weight[g,t] * source[n,g,row,column]
//   grad_weight[g,t] = sum_{n,i,j} grad_output[n,g,i,j] * source[n,g,row,column]
//
//   with  row = i * step_h + h(t),  column = j * step_w + w(t)
//
// Two arrangements:
//   lanes are channels (NHWC)  per pixel and kLanes channels, a sum over the taps that lie inside
//   lanes are columns (else)   source rows are widened, padded and split by column phase (column mod
//                              step_w) into a ring of rows, from which every tap reads contiguously;
//                              with more phases than taps in a row, each tap has a copy of its own
// Cost: 2 flops per tap and target element; the ring adds one copy of each source row.
#pragma once
#include "../parallel.h"
#include "conv2d_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Source rows of one plane as the taps of a target row need them: element (phase, x) of row h is
// source column  first_column + x * step_w + phase,  zero outside.
template <class S>
class RowRing {
 public:
  using T = Compute<S>;

  explicit RowRing(const PixelSource<S>& source)
      : source_(source),
        first_row_(source.taps[0].h),
        first_column_(source.taps[0].w),
        last_row_(first_row_),
        last_column_(first_column_) {
    for (int64_t t = 1; t < source.tap_count; ++t) {
      const Tap& tap = source.taps[t];
      first_row_ = smaller(first_row_, tap.h), last_row_ = larger(last_row_, tap.h);
      first_column_ = smaller(first_column_, tap.w), last_column_ = larger(last_column_, tap.w);
    }
    slots_ = smaller(last_row_ - first_row_ + 1, source.H);
    // The window is a grid of taps: each row has the columns of the first.
    while (row_taps_ < source.tap_count && source.taps[row_taps_].h == source.taps[0].h)
      ++row_taps_;
    by_phase_ = source.step_w <= row_taps_;
    phases_ = by_phase_ ? source.step_w : row_taps_;
    // Reads go up to one vector behind the last pixel of the last tap.
    phase_stride_ = source.grid.J + Vec<T>::kLanes;
    if (by_phase_) phase_stride_ += (last_column_ - first_column_) / source.step_w;
    row_stride_ = phase_stride_ * phases_;
  }

  int64_t slots() const { return slots_; }
  int64_t rows() const { return slots_ + 1; }  // of memory: the last is zero
  int64_t row_stride() const { return row_stride_; }

  // Lends memory: rows() * row_stride() elements, slots() and tap_count numbers.
  void use(T* memory, int64_t* tags, int64_t* columns) {
    memory_ = memory, tags_ = tags, columns_ = columns;
    for (int64_t t = 0; t < source_.tap_count; ++t) {
      const int64_t column = source_.taps[t].w - first_column_;
      columns[t] = by_phase_ ? column % source_.step_w * phase_stride_ + column / source_.step_w
                             : t % row_taps_ * phase_stride_;
    }
  }

  void start(const S* plane) {
    plane_ = plane;
    for (int64_t i = 0; i < slots_; ++i) tags_[i] = -1;
    clear_run(memory_ + slots_ * row_stride_, row_stride_);
  }

  // What every tap of target row i reads for its pixels 0, 1, ...: the row of zeros, if it lies
  // outside. Taps of one source row follow each other.
  FASTCONV_INLINE void rows(int64_t i, const T** rows) {
    const T* row = nullptr;
    for (int64_t t = 0; t < source_.tap_count; ++t) {
      if (t == 0 || source_.taps[t].h != source_.taps[t - 1].h) row = row_at(i, source_.taps[t]);
      rows[t] = row + columns_[t];
    }
  }

 private:
  const T* row_at(int64_t i, const Tap& tap) {
    const int64_t h = i * source_.step_h + tap.h;
    const int64_t slot = h < 0 || h >= source_.H ? slots_ : h % slots_;
    if (slot < slots_ && tags_[slot] != h) fill(slot, h);
    return memory_ + slot * row_stride_;
  }

  void fill(int64_t slot, int64_t h) {
    tags_[slot] = h;
    const S* from = plane_ + h * source_.stride_h;
    const int64_t step = source_.step_w;
    for (int64_t phase = 0; phase < phases_; ++phase) {
      T* to = memory_ + slot * row_stride_ + phase * phase_stride_;
      // x with a column inside [0, W).
      const int64_t column = by_phase_ ? first_column_ + phase : source_.taps[phase].w;
      const int64_t begin = smaller(column >= 0 ? 0 : divide_up(-column, step), phase_stride_);
      const int64_t end = larger(
          smaller(column >= source_.W ? 0 : divide_up(source_.W - column, step), phase_stride_),
          begin);
      clear_run(to, begin);
      copy_run(to + begin, from + (column + begin * step) * source_.stride_w,
               step * source_.stride_w, end - begin);
      clear_run(to + end, phase_stride_ - end);
    }
  }

  const PixelSource<S>& source_;
  int64_t first_row_, first_column_, last_row_, last_column_;
  int64_t row_taps_ = 0, phases_, slots_, phase_stride_, row_stride_;
  bool by_phase_;
  const S* plane_ = nullptr;
  T* memory_ = nullptr;
  int64_t* tags_ = nullptr;     // which source row a slot holds
  int64_t* columns_ = nullptr;  // where a tap begins in a row
};

// The taps of pixel (i, j) that lie inside: where each reads channel 0, and its number. `until` is
// the first pixel behind j that has other taps.
template <class S>
FASTCONV_INLINE int64_t taps_inside_pixel(const PixelSource<S>& source, int64_t n, int64_t i,
                                          int64_t j, const S** from, int64_t* number,
                                          int64_t& until) {
  int64_t count = 0;
  until = source.grid.J;
  for (int64_t t = 0; t < source.tap_count; ++t) {
    const Tap& tap = source.taps[t];
    if (!source.row_inside(tap, i)) continue;
    if (j < tap.j_begin) until = smaller(until, tap.j_begin);
    if (j < tap.j_begin || j >= tap.j_end) continue;
    until = smaller(until, tap.j_end);
    from[count] = source.row_of(tap, n, i) + j * source.pixel_stride();
    number[count++] = t;
  }
  return count;
}

// The weight's gradient of channel g, lanes are columns: one vector of sums per tap, and images and
// rows in order, whatever the number of threads.
template <class S>
void depthwise_weight_grad_columns(const PixelSource<S>& source, const PixelSource<S>& grad,
                                   int64_t g, Compute<S>* sums) {
  using T = Compute<S>;
  using V = Vec<T>;
  const int64_t taps = source.tap_count, J = source.grid.J;
  RowRing<S> ring(source);
  Scratch<T> memory(ring.rows(), ring.row_stride()), lanes(taps * V::kLanes);
  Scratch<T> grad_row(J + V::kLanes);
  Scratch<int64_t> numbers(ring.slots() + taps);
  Scratch<const T*> rows(taps);
  ring.use(memory.data(), numbers.data(), numbers.data() + ring.slots());
  clear_run(lanes.data(), taps * V::kLanes);
  clear_run(grad_row.data(), J + V::kLanes);
  for (int64_t n = 0; n < source.grid.N; ++n) {
    ring.start(source.data + n * source.stride_n + g * source.stride_c);
    for (int64_t i = 0; i < source.grid.I; ++i) {
      copy_run(grad_row.data(),
               grad.data + n * grad.stride_n + g * grad.stride_c + i * grad.stride_h, grad.stride_w,
               J);
      ring.rows(i, rows.data());
      for (int64_t t = 0; t < taps; ++t) {
        const T* row = rows.data()[t];
        V sum = V::load(lanes.data() + t * V::kLanes);
        int64_t j = 0;
        for (; j + V::kLanes <= J; j += V::kLanes)
          sum = sum + V::load(grad_row.data() + j) * V::load(row + j);
        // Behind the row's end a zero must not meet an infinity.
        if (j < J) sum = sum + V::load(grad_row.data() + j) * load_some(row + j, J - j);
        sum.store(lanes.data() + t * V::kLanes);
      }
    }
  }
  for (int64_t t = 0; t < taps; ++t) {
    T sum = 0;
    for (int64_t l = 0; l < V::kLanes; ++l) sum += lanes.data()[t * V::kLanes + l];
    sums[t] = sum;
  }
}

// kTaps taps of `pixels` neighbouring pixels: the taps share each load of a gradient.
template <int kTaps, class S>
FASTCONV_INLINE void add_taps(const S* const* from, const int64_t* number, int64_t step,
                              const S* grad, int64_t grad_step, int64_t pixels, int64_t lanes,
                              Compute<S>* sums) {
  using V = Vec<Compute<S>>;
  V sum[kTaps];
#pragma GCC unroll 8
  for (int t = 0; t < kTaps; ++t) sum[t] = V::load(sums + number[t] * V::kLanes);
  const auto add = [&](auto load) {
    for (int64_t q = 0; q < pixels; ++q) {
      const V factor = load(grad + q * grad_step);
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) sum[t] = sum[t] + factor * load(from[t] + q * step);
    }
  };
  if (lanes == V::kLanes)
    add([](const S* at) { return load_as_compute(at); });
  else
    add([lanes](const S* at) { return load_some_as_compute(at, lanes); });
#pragma GCC unroll 8
  for (int t = 0; t < kTaps; ++t) sum[t].store(sums + number[t] * V::kLanes);
}

// The same for `lanes` channels from g on, lanes are channels; sums is [t][kLanes].
template <class S>
void depthwise_weight_grad_channels(const PixelSource<S>& source, const PixelSource<S>& grad,
                                    int64_t g, int64_t lanes, Compute<S>* sums) {
  constexpr int kTaps = kVectorRegisters == 32 ? 8 : 4;
  Scratch<const S*> from(source.tap_count);
  Scratch<int64_t> number(source.tap_count);
  const int64_t step = source.pixel_stride();
  clear_run(sums, source.tap_count * Vec<Compute<S>>::kLanes);
  PixelSource<S> channels = source;
  channels.data += g;
  for (int64_t n = 0; n < source.grid.N; ++n)
    for (int64_t i = 0; i < source.grid.I; ++i)
      for (int64_t j = 0, until; j < source.grid.J; j = until) {
        const int64_t count =
            taps_inside_pixel(channels, n, i, j, from.data(), number.data(), until);
        const S* at = grad.data + n * grad.stride_n + i * grad.stride_h + j * grad.stride_w + g;
        int64_t t = 0;
        for (; t + kTaps <= count; t += kTaps)
          add_taps<kTaps>(from.data() + t, number.data() + t, step, at, grad.stride_w, until - j,
                          lanes, sums);
        for (; t < count; ++t)
          add_taps<1>(from.data() + t, number.data() + t, step, at, grad.stride_w, until - j, lanes,
                      sums);
      }
}

// grad_weight[g * stride_g + taps[t].weight], for all groups.
template <class S>
void depthwise_weight_grad(const PixelSource<S>& source, const PixelSource<S>& grad, int64_t G,
                           S* grad_weight, int64_t stride_g) {
  using T = Compute<S>;
  const bool channels = source.stride_c == 1 && grad.stride_c == 1 && source.stride_w != 1;
  const int64_t block = channels ? Vec<T>::kLanes : 1, taps = source.tap_count;
  parallel_for(divide_up(G, block), 1, [&](int64_t begin, int64_t end) {
    Scratch<T> sums(taps * block);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t g = task * block, lanes = smaller(block, G - g);
      if (channels)
        depthwise_weight_grad_channels(source, grad, g, lanes, sums.data());
      else
        depthwise_weight_grad_columns(source, grad, g, sums.data());
      for (int64_t l = 0; l < lanes; ++l)
        for (int64_t t = 0; t < taps; ++t)
          grad_weight[(g + l) * stride_g + source.taps[t].weight] =
              from_compute<S>(sums.data()[t * block + l]);
    }
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
