// adaptive_max_pool2d: windows of one size are max_pool2d's; the others are walked here.
//
// A task is some output rows. Lanes are channels (channels_last), which walk a window together; or,
// for values alone, columns: the rows of an output row first, then each window's columns one by one.
// With indices the elements of a plane's window are compared one by one.
#include "../adaptive_max_pool2d.h"

#include "../adaptive_avg_pool2d.h"
#include "../scratch.h"
#include "max_pool2d_taps.h"

namespace fastconv::cpu::FASTCONV_ISA {

void max_pool2d_forward(const MaxPool2dShape& shape, const void* input, void* output, void* where);

namespace {

struct Window {
  int64_t h, h_end, w, w_end;
};

template <class S, bool kIndices>
struct Adaptive {
  using L = LanesOf<S>;
  using Lane = typename L::Lane;
  using Place = Signed<Lane>;
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<Lane>::kLanes;

  const AdaptiveMaxPool2dShape& s;
  const S* input;
  S* output;
  int64_t* indices;

  Window window(int64_t p, int64_t q) const {
    return {adaptive_begin(p, s.H, s.P), adaptive_end(p, s.H, s.P), adaptive_begin(q, s.W, s.Q),
            adaptive_end(q, s.W, s.Q)};
  }
  const S* at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return input + n * s.input.s[0] + c * s.input.s[1] + h * s.input.s[2] + w * s.input.s[3];
  }
  S* to(int64_t n, int64_t c, int64_t p, int64_t q) const {
    return output + n * s.output.s[0] + c * s.output.s[1] + p * s.output.s[2] + q * s.output.s[3];
  }
  int64_t* place(int64_t n, int64_t c, int64_t p, int64_t q) const {
    return indices + n * s.indices.s[0] + c * s.indices.s[1] + p * s.indices.s[2] +
           q * s.indices.s[3];
  }

  void run() const {
    // Numbers of elements in a window, r * W + s, are as wide as lanes.
    const double numbers = static_cast<double>(s.H / s.P + 2) * static_cast<double>(s.W);
    const bool fits = !kIndices || numbers < (sizeof(Lane) == 2 ? 0x1p15 : 0x1p31);
    const bool channels_last =
        s.C > 1 && s.input.s[1] == 1 && s.output.s[1] == 1 && (!kIndices || s.indices.s[1] == 1);
    if (channels_last && fits) {
      const int64_t elements = s.C * (s.W * (s.H / s.P + 1) + s.Q);
      parallel_for(s.N * s.P, kTaskElements / elements + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t q = 0; q < s.Q; ++q) pool_pixel(i / s.P, i % s.P, q);
      });
      return;
    }
    const int64_t elements = s.W * (s.H / s.P + 1) + s.Q;
    parallel_for(s.N * s.C * s.P, kTaskElements / elements + 1, [&](int64_t begin, int64_t end) {
      const Scratch<Lane> row(s.W + kLanes);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / s.P / s.C, c = i / s.P % s.C, p = i % s.P;
        if (!kIndices && s.input.s[3] == 1)
          pool_row(n, c, p, row.data());
        else
          for (int64_t q = 0; q < s.Q; ++q) pool_one(n, c, p, q);
      }
    });
  }

  void pool_pixel(int64_t n, int64_t p, int64_t q) const {
    const Window window = this->window(p, q);
    const auto range = LaneRange<Lane>::of(0, s.C);
    for_blocks<kLanes>(s.C, [&](int64_t c, int64_t count) {
      const auto load = [&](int64_t h, int64_t w) {
        const S* from = at(n, c, h, w);
        return count == kLanes ? L::load(from) : L::load(from, range);
      };
      Numbered<L> best{load(window.h, window.w), Vec<Place>::zero()};
      for (int64_t h = window.h; h < window.h_end; ++h)
        for (int64_t w = window.w + (h == window.h); w < window.w_end; ++w) {
          if constexpr (kIndices)
            best.offer(load(h, w), static_cast<Place>((h - window.h) * s.W + w - window.w));
          else
            best.value = L::larger(best.value, load(h, w));
        }
      store_first<L>(to(n, c, p, q), best.value, count);
      if constexpr (kIndices)
        write_indices(place(n, c, p, q), best.number, count, window.h * s.W + window.w, 0);
    });
  }

  void pool_row(int64_t n, int64_t c, int64_t p, Lane* row) const {
    const Window rows = window(p, 0);
    for (int64_t w = 0; w < s.W; w += kLanes) {
      const auto range = LaneRange<Lane>::of(0, s.W - w);
      const auto load = [&](int64_t h) {
        const S* from = at(n, c, h, w);
        return w + kLanes <= s.W ? L::load(from) : L::load(from, range);
      };
      Vec<Lane> best = load(rows.h);
      for (int64_t h = rows.h + 1; h < rows.h_end; ++h) best = L::larger(best, load(h));
      best.store(row + w);
    }
    for (int64_t q = 0; q < s.Q; ++q) {
      const Window columns = window(p, q);
      Lane best = row[columns.w];
      for (int64_t w = columns.w + 1; w < columns.w_end; ++w)
        if (row[w] > best || row[w] != row[w]) best = row[w];
      store_first<L>(to(n, c, p, q), Vec<Lane>::broadcast(best), 1);
    }
  }

  void pool_one(int64_t n, int64_t c, int64_t p, int64_t q) const {
    const Window window = this->window(p, q);
    int64_t best_h = window.h, best_w = window.w;
    T best = to_compute(*at(n, c, best_h, best_w));
    for (int64_t h = window.h; h < window.h_end; ++h)
      for (int64_t w = window.w; w < window.w_end; ++w) {
        const T value = to_compute(*at(n, c, h, w));
        if (value > best || value != value) best = value, best_h = h, best_w = w;
      }
    *to(n, c, p, q) = *at(n, c, best_h, best_w);
    if constexpr (kIndices) *place(n, c, p, q) = best_h * s.W + best_w;
  }
};

}  // namespace

void adaptive_max_pool2d_forward(const AdaptiveMaxPool2dShape& shape, const void* input,
                                 void* output, int64_t* indices) {
  if (shape.H % shape.P == 0 && shape.W % shape.Q == 0) {
    const int64_t R = shape.H / shape.P, S = shape.W / shape.Q;
    const MaxPool2dShape regular{shape.dtype, DType::kInt64, shape.N,
                                 shape.C,     shape.H,       shape.W,
                                 shape.P,     shape.Q,       {R, S, R, S, 0, 0, 1, 1},
                                 shape.input, shape.output,  shape.indices};
    return max_pool2d_forward(regular, input, output, indices);
  }
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    const S* from = static_cast<const S*>(input);
    if (indices)
      Adaptive<S, true>{shape, from, static_cast<S*>(output), indices}.run();
    else
      Adaptive<S, false>{shape, from, static_cast<S*>(output), nullptr}.run();
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(adaptive_max_pool2d_forward,
                  (const AdaptiveMaxPool2dShape& shape, const void* input, void* output,
                   int64_t* indices),
                  (shape, input, output, indices))
