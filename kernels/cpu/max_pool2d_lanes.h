// What max_pool2d compares: elements as lanes, and the best of a window with where it was.
#pragma once
#include "../max_pool2d.h"
#include "../parallel.h"
#include "simd_order.h"

namespace fastconv::cpu::FASTCONV_ISA {

// kinds of lanes
// PlainLanes compares elements as they are, HalfLanes float16 and bfloat16 as int16 in the same
// order. `stays` says whether the left of two is taken: see left_stays in simd_order.h.

template <class S>
struct PlainLanes {
  using Storage = S;
  using Lane = S;

  static constexpr S lowest() {
    if constexpr (!std::is_integral_v<S>)
      return -static_cast<S>(__builtin_inf());
    else
      return std::is_signed_v<S> ? static_cast<S>(uint64_t{1} << (8 * sizeof(S) - 1)) : S{0};
  }
  FASTCONV_INLINE static Vec<S> load(const S* p) { return Vec<S>::load(p); }
  // Lanes outside the range are lowest.
  FASTCONV_INLINE static Vec<S> load(const S* p, LaneRange<S> range) {
    return load_range(p, range, Vec<S>::broadcast(lowest()));
  }
  FASTCONV_INLINE static void store(S* p, Vec<S> v) { v.store(p); }
  FASTCONV_INLINE static void store(S* p, Vec<S> v, LaneRange<S> range) {
    store_range(p, v, range);
  }
  FASTCONV_INLINE static Vec<S> larger(Vec<S> left, Vec<S> right) { return larger_of(left, right); }
  FASTCONV_INLINE static LaneMask<S> stays(Vec<S> left, Vec<S> right) {
    return left_stays(left, right);
  }
};

// The bits of a half are a sign and a magnitude. With the magnitude of negative numbers inverted
// they are in order as integers; moved down by the number of NaNs of one sign, modulo 2^16, the
// negative NaNs come to lie above infinity too, and -infinity is the least integer.
template <class S>
struct HalfLanes {
  using Storage = S;
  using Lane = int16_t;
  using Raw = Vec<Lane>::Raw;
  static constexpr Lane kInfinity = kSame<S, BFloat16> ? 0x7f80 : 0x7c00;  // its bits
  static constexpr Lane kNaNs = 0x7fff - kInfinity;

  static constexpr Lane lowest() { return -0x8000; }
  FASTCONV_INLINE static Raw flip(Raw bits) { return magnitudes_flipped({bits}).raw; }
  FASTCONV_INLINE static Vec<Lane> load(const S* p) {
    return {flip(Vec<Lane>::load(reinterpret_cast<const Lane*>(p)).raw) - kNaNs};
  }
  FASTCONV_INLINE static Vec<Lane> load(const S* p, LaneRange<Lane> range) {
    const auto infinity = Vec<Lane>::broadcast(static_cast<Lane>(kInfinity - 0x8000));  // negative
    return {flip(load_range(reinterpret_cast<const Lane*>(p), range, infinity).raw) - kNaNs};
  }
  FASTCONV_INLINE static void store(S* p, Vec<Lane> v) {
    Vec<Lane>{flip(v.raw + kNaNs)}.store(reinterpret_cast<Lane*>(p));
  }
  FASTCONV_INLINE static void store(S* p, Vec<Lane> v, LaneRange<Lane> range) {
    store_range(reinterpret_cast<Lane*>(p), {flip(v.raw + kNaNs)}, range);
  }
  FASTCONV_INLINE static Vec<Lane> larger(Vec<Lane> left, Vec<Lane> right) {
    return larger_of(left, right);
  }
  FASTCONV_INLINE static LaneMask<Lane> stays(Vec<Lane> left, Vec<Lane> right) {
    const Raw infinity = Vec<Lane>::broadcast(kInfinity - kNaNs).raw;
    Raw bounded = left.raw < infinity ? left.raw : infinity;     // a NaN stays unless for another
    bounded -= bounded == Vec<Lane>::broadcast(-1 - kNaNs).raw;  // -0 stays for +0
    return left_stays(Vec<Lane>{bounded}, right);
  }
};

// Lanes [begin, end) of p, the others lowest.
template <class L>
FASTCONV_INLINE Vec<typename L::Lane> load_inside(const typename L::Storage* p, int64_t begin,
                                                  int64_t end) {
  return L::load(p, LaneRange<typename L::Lane>::of(begin, end));
}
// The first `count` lanes.
template <class L>
FASTCONV_INLINE void store_first(typename L::Storage* p, Vec<typename L::Lane> v, int64_t count) {
  if (count == Vec<typename L::Lane>::kLanes)
    L::store(p, v);
  else
    L::store(p, v, LaneRange<typename L::Lane>::of(0, count));
}

template <class S>
using LanesOf =
    std::conditional_t<kSame<S, Float16> || kSame<S, BFloat16>, HalfLanes<S>, PlainLanes<S>>;

// the best of a window

// Elements are offered in the order of the window; with places, column and row are the numbers of
// the tap that was taken. Places are as wide as lanes.
template <class L, bool kPlaces>
struct Best {
  Vec<typename L::Lane> value;

  FASTCONV_INLINE static Best first(Vec<typename L::Lane> value) { return {value}; }
  FASTCONV_INLINE static Best first_tap(Vec<typename L::Lane> value, int64_t, int64_t) {
    return {value};
  }
  FASTCONV_INLINE static Best none() { return {Vec<typename L::Lane>::broadcast(L::lowest())}; }
  FASTCONV_INLINE void offer_column(Vec<typename L::Lane> other, int64_t) {
    value = L::larger(value, other);
  }
  FASTCONV_INLINE void offer_tap(Vec<typename L::Lane> other, int64_t, int64_t) {
    value = L::larger(value, other);
  }
  FASTCONV_INLINE void offer_row(const Best& other, int64_t) {
    value = L::larger(value, other.value);
  }
};

template <class L>
struct Best<L, true> {
  using Lane = typename L::Lane;
  using Place = Signed<Lane>;
  Vec<Lane> value;
  Vec<Place> column, row;

  FASTCONV_INLINE static Best first(Vec<Lane> value) {
    return {value, Vec<Place>::zero(), Vec<Place>::zero()};
  }
  FASTCONV_INLINE static Best first_tap(Vec<Lane> value, int64_t r, int64_t s) {
    return {value, Vec<Place>::broadcast(static_cast<Place>(s)),
            Vec<Place>::broadcast(static_cast<Place>(r))};
  }
  FASTCONV_INLINE static Best none() { return first(Vec<Lane>::broadcast(L::lowest())); }
  FASTCONV_INLINE void offer(Vec<Lane> other, Vec<Place> other_column, Vec<Place> other_row) {
    const LaneMask<Lane> stays = L::stays(value, other);
    value = select(stays, value, other);
    column = select(stays, column, other_column);
    row = select(stays, row, other_row);
  }
  // An element of the same row, tap s of it.
  FASTCONV_INLINE void offer_column(Vec<Lane> other, int64_t s) {
    const LaneMask<Lane> stays = L::stays(value, other);
    value = select(stays, value, other);
    column = select(stays, column, Vec<Place>::broadcast(static_cast<Place>(s)));
  }
  // An element of tap s of row r.
  FASTCONV_INLINE void offer_tap(Vec<Lane> other, int64_t r, int64_t s) {
    offer(other, Vec<Place>::broadcast(static_cast<Place>(s)),
          Vec<Place>::broadcast(static_cast<Place>(r)));
  }
  // The best of a later row, tap r.
  FASTCONV_INLINE void offer_row(const Best& other, int64_t r) {
    offer(other.value, other.column, Vec<Place>::broadcast(static_cast<Place>(r)));
  }
};

// The tap of an empty window.
constexpr uint8_t kNoTap = 255;

// one axis of the window

struct Axis {
  int64_t extent, taps, stride, pad, dilation, outputs;

  FASTCONV_INLINE int64_t start(int64_t output) const { return output * stride - pad; }
  FASTCONV_INLINE int64_t reach() const { return (taps - 1) * dilation; }
  FASTCONV_INLINE TapRange inside(int64_t output) const {
    return taps_inside(start(output), dilation, taps, extent);
  }
  // The number of the first tap that is not before the input.
  FASTCONV_INLINE int64_t first_tap(int64_t output) const {
    const int64_t before = -start(output);
    return before <= 0 ? 0 : dilation == 1 ? before : (before + dilation - 1) / dilation;
  }
  // Whether some window lies in the padding altogether.
  FASTCONV_INLINE bool has_empty_window() const {
    if (dilation == 1 && pad < taps && start(outputs - 1) < extent) return false;
    for (int64_t o = 0; o < outputs; ++o)
      if (inside(o).begin == inside(o).end) return true;
    return false;
  }
};

// The axis without the taps that lie in the padding of every window: what is left is about as long
// as the input at most, whatever the window. `lead` is the number of those left out in front.
struct ClippedAxis : Axis {
  int64_t lead;

  explicit ClippedAxis(const Axis& axis) : Axis(axis), lead(0) {
    if (outputs == 1) stride = 1;
    if (pad == 0 && reach() < extent) return;
    const int64_t last = smaller((extent - 1 + pad) / dilation, taps - 1);
    lead = smaller(first_tap(outputs - 1), last);
    taps = last - lead + 1;
    pad -= lead * dilation;
  }
};

FASTCONV_INLINE ClippedAxis rows_of(const MaxPool2dShape& s) {
  const Window2d& w = s.window;
  return ClippedAxis({s.H, w.R, w.stride_h, w.pad_h, w.dilation_h, s.P});
}
FASTCONV_INLINE ClippedAxis columns_of(const MaxPool2dShape& s) {
  const Window2d& w = s.window;
  return ClippedAxis({s.W, w.S, w.stride_w, w.pad_w, w.dilation_w, s.Q});
}

// Calls body(i, count) for blocks of lanes that cover [0, n); of more than one the last may overlap
// the one before, so that all are full.
template <int64_t kLanes, class Body>
FASTCONV_INLINE void for_blocks(int64_t n, const Body& body) {
  const int64_t count = smaller(n, kLanes);
  for (int64_t i = 0; i < n; i += kLanes) body(smaller(i, n - count), count);
}

// What is worth a thread, in elements of input and output.
constexpr int64_t kTaskElements = int64_t{1} << 14;
// Pooled rows of a tile: they stay in an L1 cache of 32 KiB.
constexpr int64_t kTileBytes = 20 * 1024;

// Calls body(nc, p, p_end) for ranges of output rows of planes, on all threads.
template <class Body>
FASTCONV_INLINE void for_output_rows(const MaxPool2dShape& s, const Axis& rows, const Body& body) {
  const int64_t elements = s.W * smaller(rows.stride, rows.taps) + s.Q;
  parallel_for(s.N * s.C * s.P, kTaskElements / elements + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end;) {
      const int64_t p = row % s.P, p_end = smaller(s.P, p + end - row);
      body(row / s.P, p, p_end);
      row += p_end - p;
    }
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
