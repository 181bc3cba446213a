// Grouped convolution, lanes are pixels: see conv2d_grouped.h.
//
// One task = some target rows of one image and group. What they read is copied once,
//
//   strip[c][phase_h][phase_w][row][x]    source row first_h + row * step_h + phase_h, column
//                                         first_w + x * step_w + phase_w, zero outside
//
// with rows as long as the target's, plus the padding, of which the end of a row and the begin of the
// next share what they can. So target pixel m of the whole strip, its rows one behind the other, reads
// tap t of channel c at m + offset(c, t), whatever the stride; the pixels between two rows are
// computed in vain.
#include "conv2d_grouped.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kStripElements = 8192;  // wanted: of a strip, 32 KiB of float32
constexpr int64_t kStripColumns = 256, kLeastRows = 4;

// Vectors of pixels of a tile with kTallBlock or kLowBlock channels: sums, pixels and one weight.
constexpr int kTallVectors = 3, kLowVectors = kVectorRegisters == 32 ? 6 : 3;

template <class S>
class PixelStrip {
 public:
  using T = Compute<S>;

  explicit PixelStrip(const PixelSource<S>& source) : source_(source), span_(source) {
    const PixelGrid& grid = source.grid;
    pieces = divide_up(grid.J, kStripColumns), columns = divide_up(grid.J, pieces);
    pieces = divide_up(grid.J, columns);
    phases_h_ = smaller(source.step_h, span_.rows),
    phases_w_ = smaller(source.step_w, span_.columns);
    const int64_t reach = (span_.columns - 1) / source.step_w;
    halo_ = (span_.rows - 1) / source.step_h;
    filled_ = columns + reach;
    width = filled_ - (pieces == 1 ? shared_zeros() : 0);
    const int64_t row = source.C * phases_h_ * phases_w_ * width;
    rows = smaller(larger(kStripElements / row - halo_, kLeastRows), grid.I);
    strips = divide_up(grid.I, rows), rows = divide_up(grid.I, strips);
    strips = divide_up(grid.I, rows);
    plane_ = (rows + halo_) * width;
    channel_ = phases_h_ * phases_w_ * plane_;
  }

  int64_t columns, pieces;  // of a target row
  int64_t rows, strips;     // target rows of a task
  int64_t width;            // from a target row to the next

  // The last tile reads up to one vector too many.
  int64_t size() const { return source_.C * channel_ + filled_ + Vec<T>::kLanes; }

  void set_offsets(int64_t* offsets) const {
    for (int64_t c = 0; c < source_.C; ++c)
      for (int64_t t = 0; t < source_.tap_count; ++t) {
        const int64_t h = source_.taps[t].h - span_.h, w = source_.taps[t].w - span_.w;
        const int64_t phase = h % source_.step_h * phases_w_ + w % source_.step_w;
        *offsets++ =
            c * channel_ + phase * plane_ + h / source_.step_h * width + w / source_.step_w;
      }
  }

  // What target rows [i, i + rows), columns [j, j + columns) of `image`, a group's first channel, read.
  void fill(const S* image, int64_t i, int64_t j, int64_t wanted_rows, T* strip) const {
    const int64_t step = source_.step_w;
    for (int64_t a = 0; a < phases_h_; ++a)
      for (int64_t b = 0; b < phases_w_; ++b) {
        const int64_t w = j * step + span_.w + b;
        const int64_t begin = zeros_before(w), end = larger(begin, inside_until(w));
        T* to = strip + (a * phases_w_ + b) * plane_;
        for (int64_t row = 0; row < wanted_rows + halo_; ++row, to += width) {
          const int64_t h = (i + row) * source_.step_h + span_.h + a;
          const bool inside = h >= 0 && h < source_.H;
          for (int64_t c = 0; c < source_.C; ++c) {
            clear_run(to + c * channel_, inside ? begin : filled_);
            if (inside) clear_run(to + c * channel_ + end, filled_ - end);
          }
          if (inside)
            copy_grid(to + begin, channel_,
                      image + h * source_.stride_h + (w + begin * step) * source_.stride_w,
                      source_.stride_c, step * source_.stride_w, source_.C, end - begin);
        }
      }
  }

 private:
  // Of the columns w, w + step_w, ... : how many lie before the source; the first that lies behind.
  int64_t zeros_before(int64_t w) const {
    return smaller(w >= 0 ? 0 : divide_up(-w, source_.step_w), filled_);
  }
  int64_t inside_until(int64_t w) const {
    return smaller(w >= source_.W ? 0 : divide_up(source_.W - w, source_.step_w), filled_);
  }
  // Zeros that the end of every row has in common with the begin of the next.
  int64_t shared_zeros() const {
    int64_t shared = filled_ - columns;  // no two target pixels share a place
    for (int64_t b = 0; b < phases_w_; ++b) {
      const int64_t begin = zeros_before(span_.w + b), end = inside_until(span_.w + b);
      shared = smaller(shared, smaller(begin, filled_ - larger(begin, end)));
    }
    return shared;
  }

  const PixelSource<S>& source_;
  WindowSpan span_;
  int64_t phases_h_, phases_w_, halo_, filled_, plane_, channel_;
};

// sums[r][m] = sum_d weight[d][r] * strip[offsets[d] + m], kVectors vectors from m on.
template <class T, int kRows, int kVectors>
void pixel_tile(int64_t depth, const T* strip, const int64_t* offsets, const T* weight, T* sums,
                int64_t stride) {
  using V = Vec<T>;
  V sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sum[r][j] = V::zero();
  for (int64_t d = 0; d < depth; ++d, weight += kRows) {
    const T* at = strip + offsets[d];
    V pixels[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) pixels[j] = V::load(at + j * V::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V factor = V::broadcast(weight[r]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[r][j] = sum[r][j] + factor * pixels[j];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sum[r][j].store(sums + r * stride + j * V::kLanes);
}

// The same for all pixels, in tiles of at most kLargest vectors.
template <class T, int kRows, int kLargest>
void pixel_tiles(int64_t vectors, int64_t depth, const T* strip, const int64_t* offsets,
                 const T* weight, T* sums, int64_t stride) {
  for_each_tile<kLargest>(vectors, [&](int64_t count, int64_t first) {
    const int64_t m = first * Vec<T>::kLanes;
    with_constant<kLargest>(count, [&](auto constant) {
      pixel_tile<T, kRows, decltype(constant)::value>(depth, strip + m, offsets, weight, sums + m,
                                                      stride);
    });
  });
}

template <class S>
void run(const Product<S>& p, const Compute<S>* weight) {
  using T = Compute<S>;
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const PixelSource<S>& source = p.source;
  const int64_t depth = source.depth(), group_size = padded_channels(p.K) * depth;
  const PixelStrip<S> strip(source);
  const int64_t stride = divide_up(strip.rows * strip.width, kLanes) * kLanes;
  Scratch<int64_t> offsets(depth);
  strip.set_offsets(offsets.data());
  const int64_t parts = strip.strips * strip.pieces;
  parallel_for(source.grid.N * p.G * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> memory(strip.size()), sums(kTallBlock, stride);
    clear_run(memory.data(), strip.size());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t g = task / parts % p.G, n = task / parts / p.G;
      const int64_t i = task % parts / strip.pieces * strip.rows;
      const int64_t j = task % strip.pieces * strip.columns;
      const int64_t rows = smaller(strip.rows, source.grid.I - i);
      const int64_t columns = smaller(strip.columns, source.grid.J - j);
      strip.fill(source.data + n * source.stride_n + g * source.C * source.stride_c, i, j, rows,
                 memory.data());
      const int64_t vectors = divide_up((rows - 1) * strip.width + columns, kLanes);
      S* to = p.target.data + n * p.target.stride_n + g * p.K * p.target.stride_k +
              i * p.target.stride_i + j * p.target.stride_j;
      for (int64_t k = 0, height; k < p.K; k += height) {
        height = block_channels(p.K, k);
        const auto multiply = height == kLowBlock ? pixel_tiles<T, kLowBlock, kLowVectors>
                                                  : pixel_tiles<T, kTallBlock, kTallVectors>;
        multiply(vectors, depth, memory.data(), offsets.data(), weight + g * group_size + k * depth,
                 sums.data(), stride);
        for (int64_t r = 0; r < smaller(height, p.K - k); ++r)
          for (int64_t row = 0; row < rows; ++row) {
            S* const at = to + (k + r) * p.target.stride_k + row * p.target.stride_i;
            const T* const from = sums.data() + r * stride + row * strip.width;
            const int64_t channel = g * p.K + k + r;
            if (p.finish)
              p.finish->store_pixels(at, p.target.stride_j, from, columns, channel);
            else
              store_run(at, p.target.stride_j, from, columns, p.bias ? p.bias[channel] : T{0});
          }
      }
    }
  });
}

}  // namespace

#define FASTCONV_GROUPED(S) \
  void run_grouped_pixels(const Product<S>& p, const Compute<S>* weight) { run(p, weight); }
FASTCONV_GROUPED(float)
FASTCONV_GROUPED(double)
FASTCONV_GROUPED(Float16)
FASTCONV_GROUPED(BFloat16)
#undef FASTCONV_GROUPED

}  // namespace fastconv::cpu::FASTCONV_ISA
