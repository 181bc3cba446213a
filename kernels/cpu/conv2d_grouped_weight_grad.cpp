// Grouped convolution's weight gradient: see conv2d_grouped_weight_grad.h.
//
// One task = one block of groups times one slice: consecutive units of some target rows each, so few
// that their gradients and the source rows below them stay in L1. Its sums are added to memory once per
// unit; the slices' sums are added in order afterwards. Units and slices depend on the shape alone.
#include "conv2d_grouped_weight_grad.h"

#include "conv2d_grouped_ring.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kGradBytes = 16 << 10;  // of a unit's gradients
constexpr int64_t kUnitColumns = 64;
constexpr int64_t kWantedTasks = 32;  // two for each of 16 cores

// How the work is cut, and how a block's sums lie.
struct GradCut {
  bool rotated;
  int64_t groups, blocks;  // groups of a block
  int64_t pitch;           // of a source pixel in the ring
  int64_t depth;           // of a gradient's pixel: rotations x lanes, or k rounded up
  int64_t columns, pieces, rows, strips, units, slices;
  int64_t tap_stride, row_stride;  // of sums: between two taps; rotations or channels c
  int64_t sums;                    // of a block

  template <class S>
  GradCut(const PixelSource<S>& source, int64_t G, int64_t K, bool taps_inside) {
    constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
    const PixelGrid& grid = source.grid;
    const int64_t C = source.C, taps = source.tap_count;
    rotated = 2 * K <= kLanes;
    groups = rotated ? kLanes / K : 1, blocks = divide_up(G, groups);
    pitch = divide_up(groups * C, kLanes) * kLanes;
    const int64_t rotations = divide_up(K, kRotations) * kRotations;
    depth = rotated ? rotations * kLanes : divide_up(K, kLanes) * kLanes;
    pieces = divide_up(grid.J, kUnitColumns), columns = divide_up(grid.J, pieces);
    pieces = divide_up(grid.J, columns);
    const int64_t row_bytes = columns * depth * int64_t{sizeof(Compute<S>)};
    rows = smaller(larger(kGradBytes / row_bytes, int64_t{1}), grid.I);
    strips = divide_up(grid.I, rows), units = grid.N * pieces * strips;
    slices = smaller(divide_up(kWantedTasks, blocks), units);
    const int64_t lines = rotated ? rotations : C, line = rotated ? kLanes : depth;
    row_stride = taps_inside ? taps * line : line;
    tap_stride = taps_inside ? line : lines * line;
    sums = taps * lines * line;
  }
};

// What the tiles of a unit have in common.
template <class T>
struct GradUnit {
  const T* const* from;  // [row][t]: pixel 0 as the tap reads it, zeros if it lies outside
  int64_t taps, rows, pixels, pitch;
  const T* grad;  // [row][pixel][depth]
  int64_t depth;
};

// Taps t, t + 1, ... and kRotations rotations from d on.
template <class T, int kTaps>
void rotated_tile(const GradUnit<T>& unit, int64_t t, int64_t d, T* sums, int64_t tap_stride,
                  int64_t row_stride) {
  using V = Vec<T>;
  V sum[kTaps][kRotations];
  const auto at = [&](int i, int r) { return sums + (t + i) * tap_stride + (d + r) * row_stride; };
#pragma GCC unroll 8
  for (int i = 0; i < kTaps; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < kRotations; ++r) sum[i][r] = V::load(at(i, r));
  const T* grad = unit.grad + d * V::kLanes;
  for (int64_t row = 0; row < unit.rows; ++row) {
    const T* x[kTaps];
#pragma GCC unroll 8
    for (int i = 0; i < kTaps; ++i) x[i] = unit.from[row * unit.taps + t + i];
    for (int64_t q = 0; q < unit.pixels; ++q, grad += unit.depth) {
      V factor[kRotations];
#pragma GCC unroll 4
      for (int r = 0; r < kRotations; ++r) factor[r] = V::load(grad + r * V::kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kTaps; ++i) {
        const V v = V::load(x[i] + q * V::kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRotations; ++r) sum[i][r] = sum[i][r] + v * factor[r];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTaps; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < kRotations; ++r) sum[i][r].store(at(i, r));
}

// Tap t, channels c, c + 1, ... and kVectors vectors from k on.
template <class T, int kChannels, int kVectors>
void broadcast_tile(const GradUnit<T>& unit, int64_t t, int64_t c, int64_t k, T* sums,
                    int64_t row_stride) {
  using V = Vec<T>;
  V sum[kChannels][kVectors];
  sums += c * row_stride + k;
#pragma GCC unroll 16
  for (int i = 0; i < kChannels; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[i][j] = V::load(sums + i * row_stride + j * V::kLanes);
  const T* grad = unit.grad + k;
  for (int64_t row = 0; row < unit.rows; ++row) {
    const T* x = unit.from[row * unit.taps + t] + c;
    for (int64_t q = 0; q < unit.pixels; ++q, x += unit.pitch, grad += unit.depth) {
      V columns[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) columns[j] = V::load(grad + j * V::kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kChannels; ++i) {
        const V factor = V::broadcast(x[i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = sum[i][j] + factor * columns[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChannels; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[i][j].store(sums + i * row_stride + j * V::kLanes);
}

constexpr int kTapsOfTile = kVectorRegisters == 32 ? 6 : 2;
constexpr int kChannelsOfTile = kVectorRegisters == 32 ? 14 : 6;
constexpr int kChannelsOfNarrowTile = kVectorRegisters == 32 ? 16 : 12;

template <class T>
void add_unit(const GradUnit<T>& unit, const GradCut& cut, int64_t C, T* sums) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  if (cut.rotated) {
    for (int64_t d = 0; d * kLanes < cut.depth; d += kRotations)
      for_each_tile<kTapsOfTile>(unit.taps, [&](int64_t count, int64_t t) {
        with_constant<kTapsOfTile>(count, [&](auto constant) {
          rotated_tile<T, decltype(constant)::value>(unit, t, d, sums, cut.tap_stride,
                                                     cut.row_stride);
        });
      });
    return;
  }
  const auto add = [&](auto largest, auto vectors, int64_t t, int64_t k) {
    constexpr int kLargest = decltype(largest)::value;
    for_each_tile<kLargest>(C, [&](int64_t count, int64_t c) {
      with_constant<kLargest>(count, [&](auto constant) {
        broadcast_tile<T, decltype(constant)::value, decltype(vectors)::value>(
            unit, t, c, k, sums + t * cut.tap_stride, cut.row_stride);
      });
    });
  };
  for (int64_t t = 0; t < unit.taps; ++t)
    for (int64_t k = 0; k < cut.depth; k += 2 * kLanes)
      if (cut.depth - k > kLanes)
        add(std::integral_constant<int, kChannelsOfTile>(), std::integral_constant<int, 2>(), t, k);
      else
        add(std::integral_constant<int, kChannelsOfNarrowTile>(), std::integral_constant<int, 1>(),
            t, k);
}

// The sums of one block over the units [begin, end).
template <class S>
class GradSlice {
 public:
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  GradSlice(const PixelSource<S>& source, const PixelSource<S>& grad, const GradCut& cut)
      : source_(source),
        grad_(grad),
        cut_(cut),
        ring_(source, cut.groups * source.C, cut.columns, cut.rows, cut.pitch),
        memory_(ring_.size()),
        tags_(ring_.slots()),
        from_(cut.rows, source.tap_count),
        grads_(cut.rows * cut.columns, cut.depth),
        row_(cut.rotated ? cut.columns * kLanes : 0),
        permutations_(cut.rotated ? cut.depth : 0) {
    ring_.use(memory_.data(), tags_.data());
    clear_run(grads_.data(), cut.rows * cut.columns * cut.depth);
    if (cut.rotated) {
      clear_run(row_.data(), cut.columns * kLanes);
      set_rotations<T>(grad.C, cut.depth / kLanes, 1, permutations_.data());
    }
  }

  void add(int64_t g, int64_t groups, int64_t begin, int64_t end, T* sums) {
    clear_run(sums, cut_.sums);
    const int64_t taps = source_.tap_count;
    const S* const image = source_.data + g * source_.C * source_.stride_c;
    const S* const grad = grad_.data + g * grad_.C * grad_.stride_c;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t strip = unit % cut_.strips, piece = unit / cut_.strips % cut_.pieces;
      const int64_t n = unit / cut_.strips / cut_.pieces, j = piece * cut_.columns;
      const int64_t i = strip * cut_.rows, rows = smaller(cut_.rows, source_.grid.I - i);
      const int64_t pixels = smaller(cut_.columns, source_.grid.J - j);
      if (unit == begin || strip == 0)
        ring_.start(image + n * source_.stride_n, groups * source_.C, j, pixels);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t t = 0; t < taps; ++t) {
          const T* at = ring_.tap(i + row, t);
          from_.data()[row * taps + t] = at ? at : ring_.zeros(t);
        }
        fill_grad(grad + n * grad_.stride_n + (i + row) * grad_.stride_h + j * grad_.stride_w,
                  pixels, groups * grad_.C, grads_.data() + row * pixels * cut_.depth);
      }
      add_unit<T>({from_.data(), taps, rows, pixels, cut_.pitch, grads_.data(), cut_.depth}, cut_,
                  source_.C, sums);
    }
  }

 private:
  void fill_grad(const S* from, int64_t pixels, int64_t channels, T* to) const {
    if (!cut_.rotated)
      return copy_pixels(to, cut_.depth, from, grad_.stride_w, grad_.stride_c, pixels, channels);
    copy_pixels(row_.data(), kLanes, from, grad_.stride_w, grad_.stride_c, pixels, channels);
    for (int64_t q = 0; q < pixels; ++q) {
      const auto v = Vec<T>::load(row_.data() + q * kLanes);
      for (int64_t d = 0; d < cut_.depth; d += kLanes)
        permute(v, Vec<LaneIndex<T>>::load(permutations_.data() + d))
            .store(to + q * cut_.depth + d);
    }
  }

  const PixelSource<S>&source_, &grad_;
  const GradCut& cut_;
  ChannelRing<S> ring_;
  Scratch<T> memory_;
  Scratch<int64_t> tags_;
  Scratch<const T*> from_;
  Scratch<T> grads_, row_;
  Scratch<LaneIndex<T>> permutations_;
};

// How grad_weight's (c, t) lie: [c][t] or [t][c] without gaps, or otherwise.
enum class WeightOrder { kTapsInside, kChannelsInside, kOther };

template <class S>
WeightOrder weight_order(const PixelSource<S>& source, int64_t stride_c) {
  const int64_t taps = source.tap_count;
  bool inside = stride_c == taps, outside = stride_c == 1;
  for (int64_t t = 0; t < taps; ++t) {
    inside = inside && source.taps[t].weight == t;
    outside = outside && source.taps[t].weight == t * source.C;
  }
  return inside    ? WeightOrder::kTapsInside
         : outside ? WeightOrder::kChannelsInside
                   : WeightOrder::kOther;
}

// Writes the sums of `groups` groups; `to` is of the first one.
template <class S>
void store_block(const PixelSource<S>& source, const GradCut& cut, int64_t K, int64_t groups,
                 const Compute<S>* sums, WeightOrder order, S* to, int64_t stride_k,
                 int64_t stride_c) {
  const int64_t C = source.C, taps = source.tap_count;
  if (cut.rotated) {
    for (int64_t lane = 0; lane < groups * K; ++lane)
      for (int64_t d = 0; d < K; ++d) {
        const int64_t i = lane % K, k = lane - i + (i + d) % K;
        S* at = to + k * stride_k + i * stride_c;
        for (int64_t t = 0; t < taps; ++t)
          at[source.taps[t].weight] =
              from_compute<S>(sums[t * cut.tap_stride + d * cut.row_stride + lane]);
      }
    return;
  }
  if constexpr (kSame<S, Compute<S>>)
    if (order != WeightOrder::kOther)
      return copy_pixels(to, stride_k, sums, 1, cut.depth, K, C * taps);
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t k = 0; k < K; ++k)
        to[k * stride_k + c * stride_c + source.taps[t].weight] =
            from_compute<S>(sums[t * cut.tap_stride + c * cut.row_stride + k]);
}

template <class S>
void weight_grad(const PixelSource<S>& source, const PixelSource<S>& grad, int64_t G,
                 S* grad_weight, int64_t stride_k, int64_t stride_c) {
  using T = Compute<S>;
  using V = Vec<T>;
  const int64_t K = grad.C;
  const WeightOrder order = weight_order(source, stride_c);
  const GradCut cut(source, G, K, order == WeightOrder::kTapsInside);
  Scratch<T> sums(cut.blocks * cut.slices, cut.sums);
  parallel_for(cut.blocks * cut.slices, 1, [&](int64_t begin, int64_t end) {
    GradSlice<S> slice(source, grad, cut);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t g = task / cut.slices * cut.groups, index = task % cut.slices;
      slice.add(g, smaller(cut.groups, G - g), cut.units * index / cut.slices,
                cut.units * (index + 1) / cut.slices, sums.data() + task * cut.sums);
    }
  });
  parallel_for(cut.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      T* total = sums.data() + block * cut.slices * cut.sums;
      for (int64_t slice = 1; slice < cut.slices; ++slice)
        for (int64_t i = 0; i < cut.sums; i += V::kLanes)
          (V::load(total + i) + V::load(total + slice * cut.sums + i)).store(total + i);
      const int64_t g = block * cut.groups;
      store_block(source, cut, K, smaller(cut.groups, G - g), total, order,
                  grad_weight + g * K * stride_k, stride_k, stride_c);
    }
  });
}

}  // namespace

#define FASTCONV_GROUPED(S)                                                                     \
  void grouped_weight_grad(const PixelSource<S>& source, const PixelSource<S>& grad, int64_t G, \
                           S* grad_weight, int64_t stride_k, int64_t stride_c) {                \
    weight_grad(source, grad, G, grad_weight, stride_k, stride_c);                              \
  }
FASTCONV_GROUPED(float)
FASTCONV_GROUPED(double)
FASTCONV_GROUPED(Float16)
FASTCONV_GROUPED(BFloat16)
#undef FASTCONV_GROUPED

}  // namespace fastconv::cpu::FASTCONV_ISA
