// max_pool2d backward as a gather: every element of grad_input adds what the windows over it gave.
//
//   grad_input[n,c,h,w] = sum over p, q, in row-major order, of grad_output[n,c,p,q]
//                         where taps[n,c,p,q] == r * S + s,
//   r and s being the tap by which window p, q holds h, w
//
// A window that took another element adds nothing: a comparison of bytes masks the addition. What
// is written is written once, in order; nothing is cleared before.
#pragma once
#include "max_pool2d_places.h"
#include "simd_taken.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Rounds sums to storage. One element is no sum: it is stored as it was.
template <class S>
FASTCONV_INLINE void store_sums(S* p, Vec<Compute<S>> sums, bool single) {
  if constexpr (kSame<S, BFloat16>) {
    if (single) {
      *reinterpret_cast<HalfRaw*>(p) = __builtin_convertvector((WordRaw)sums.raw >> 16, HalfRaw);
      return;
    }
  }
  store_from_compute(p, sums);
}

// A tap by which windows hold a row (or a column of a phase), and which window that is.
struct Holder {
  int64_t output, tap;
};

// The windows along an axis that hold one element after the other.
struct WindowsOver {
  const Axis& axis;
  int64_t first;  // the first window that does not end before the element

  WindowsOver(const Axis& axis, int64_t at) : axis(axis) {
    const int64_t ends_before = at + axis.pad - axis.reach();
    first = ends_before <= 0 ? 0 : (ends_before + axis.stride - 1) / axis.stride;
  }

  // The windows that hold element `at`, first to last, into `holders`; returns how many. Elements
  // come in order.
  FASTCONV_INLINE int64_t list(int64_t at, Holder* holders) {
    const int64_t from = at + axis.pad;
    while (first * axis.stride + axis.reach() < from) ++first;
    int64_t count = 0, distance = from - first * axis.stride;
    for (int64_t o = first; o < axis.outputs && distance >= 0; ++o, distance -= axis.stride) {
      if (axis.dilation == 1)
        holders[count++] = {o, distance};
      else if (distance % axis.dilation == 0)
        holders[count++] = {o, distance / axis.dilation};
    }
    return count;
  }
};

// The window's own axes: taps are numbered as the whole window's, and nothing depends on its length.
FASTCONV_INLINE Axis window_rows(const MaxPool2dShape& s) {
  const Window2d& w = s.window;
  return {s.H, w.R, w.stride_h, w.pad_h, w.dilation_h, s.P};
}
FASTCONV_INLINE Axis window_columns(const MaxPool2dShape& s) {
  const Window2d& w = s.window;
  return {s.W, w.S, w.stride_w, w.pad_w, w.dilation_w, s.Q};
}

// Indices of outputs whose windows begin at row h and columns w, w + step, ..., as taps. One that its
// window does not hold becomes none, or a tap in the padding, which holds no element.
FASTCONV_INLINE void taps_of_indices(const MaxPool2dShape& s, int64_t h, int64_t w, int64_t step,
                                     const int64_t* indices, int64_t stride, int64_t count,
                                     uint8_t* taps) {
  const Window2d& window = s.window;
  const int64_t R = window.R, S = window.S, dilation = window.dilation_w;
  const int64_t row_step = window.dilation_h * s.W, corner = h * s.W + w;
  // Rows so short that an index may lie under two rows of the window: which one, its row tells.
  if ((S - 1) * dilation >= row_step) {
    for (int64_t i = 0; i < count; ++i, w += step) {
      const int64_t index = indices[i * stride];
      taps[i] = kNoTap;
      if (index < 0 || index >= s.H * s.W) continue;
      const int64_t below = index / s.W - h, behind = index % s.W - w;
      if (below >= 0 && behind >= 0 && below % window.dilation_h == 0 && behind % dilation == 0 &&
          below / window.dilation_h < R && behind / dilation < S)
        taps[i] = static_cast<uint8_t>(below / window.dilation_h * S + behind / dilation);
    }
    return;
  }
  const auto tap_of = [&](uint64_t offset) {  // modulo 2^64: an index may be anything
    const auto apart = static_cast<uint64_t>(dilation), taps = static_cast<uint64_t>(S);
    uint8_t tap = kNoTap;
    for (int64_t r = 0; r < R; ++r, offset -= static_cast<uint64_t>(row_step))
      if (offset < taps * apart && offset % apart == 0)
        tap = static_cast<uint8_t>(static_cast<uint64_t>(r) * taps + offset / apart);
    return tap;
  };
  int64_t i = 0;
  using Index = Vec<int64_t>;
  if (stride == 1 && dilation == 1)
    for (; i + Index::kLanes <= count; i += Index::kLanes) {
      Index offset =
          Index::load(indices + i) -
          progression(corner + i * step, step, typename CountLanes<Index::kLanes>::List());
      Index tap = Index::broadcast(kNoTap);
      for (int64_t r = 0; r < R; ++r, offset.raw -= row_step)
        tap = select(lanes_below(offset, S), Index{offset.raw + r * S}, tap);
      store_low_bytes(taps + i, tap, Index::kLanes);
    }
  for (; i < count; ++i)
    taps[i] = tap_of(static_cast<uint64_t>(indices[i * stride]) -
                     static_cast<uint64_t>(corner + i * step));
}

// Windows for which two rows and two columns of input lie under at most two of output.
FASTCONV_INLINE bool moves_by_two(const Window2d& w) {
  const bool square = w.R == w.S && w.pad_h == w.pad_w && w.stride_h == 2 && w.stride_w == 2;
  const bool known = (w.R == 2 && w.pad_h == 0) || (w.R == 3 && w.pad_h <= 1);
  return square && known && w.dilation_h == 1 && w.dilation_w == 1;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
