// The weight's gradient, block by block and strip by strip: see conv2d_weight_grad_plan.h.
// Cost: 2 * N*P*Q * K * C/G*R*S flops, less what falls into the padding.
#pragma once
#include "../parallel.h"
#include "conv2d_weight_grad_plan.h"

namespace fastconv::cpu::FASTCONV_ISA {

// When copying pays: see rows_in_place and lanes_in_place. Measured on a Zen 3 (AVX2, 32 KiB of L1)
// and a Xeon with AVX-512 (48 KiB), 2026-11.
constexpr int64_t kFarPixels = 256, kSetBytes = 1024;
constexpr int64_t kFewRows = 32, kFewLanes = 128;

// Element (k, c, t) of a block of sums, or of the result.
template <class E>
struct WeightView {
  E* data;
  int64_t k, c, t;  // strides
};

// target[i * row_stride + j * column_stride] = source[i + j * source_stride], narrowed.
template <class S>
void store_transposed(S* target, int64_t row_stride, int64_t column_stride,
                      const Compute<S>* source, int64_t source_stride, int64_t rows,
                      int64_t columns) {
  using V = Vec<Compute<S>>;
  if (column_stride != 1 || columns == 1) {
    for (int64_t j = 0; j < columns; ++j)
      store_run(target + j * column_stride, row_stride, source + j * source_stride, rows,
                Compute<S>{0});
    return;
  }
  constexpr int64_t kLanes = V::kLanes;
  const int64_t whole_rows = kMasks ? rows : rows / kLanes * kLanes;
  const int64_t whole_columns = kMasks ? columns : columns / kLanes * kLanes;
  for (int64_t i = 0; i < whole_rows; i += kLanes)
    for (int64_t j = 0; j < whole_columns; j += kLanes) {
      const int64_t height = smaller(rows - i, kLanes), count = smaller(columns - j, kLanes);
      const Compute<S>* from = source + i + j * source_stride;
      S* to = target + i * row_stride + j;
      V block[kLanes];
      for (int l = 0; l < kLanes; ++l)
        block[l] = l >= count         ? V::zero()
                   : height == kLanes ? V::load(from + l * source_stride)
                                      : load_some(from + l * source_stride, height);
      transpose(block);
      for (int l = 0; l < height; ++l)
        if (count == kLanes)
          store_from_compute(to + l * row_stride, block[l]);
        else
          store_some_from_compute(to + l * row_stride, block[l], count);
    }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      target[i * row_stride + j] = from_compute<S>(source[i + j * source_stride]);
}

template <class S>
class WeightGradBlocks {
 public:
  using T = Compute<S>;

  WeightGradBlocks(const WeightGradExtents& e, const GridTensor<S>& input,
                   const GridTensor<S>& grad_output, const WeightView<S>& result)
      : e_(e), plan_(e), input_(input), grad_(grad_output), result_(result) {}

  void run() const {
    if (plan_.slices > 1) return run_slices();
    parallel_for(e_.G * plan_.blocks(), 1, [&](int64_t begin, int64_t end) {
      Scratch<T> memory(plan_.taps * plan_.block_rows * plan_.block_lanes);
      for (int64_t task = begin; task < end; ++task) {
        const Block block = block_of(task);
        if constexpr (kSame<S, T>) {
          if (plan_.lanes_are_input && result_.c == 1 && e_.C % e_.vector == 0) {
            add_strips(block, 0, plan_.strips(), place_of(result_of(block.g), block));
            continue;
          }
        }
        const WeightView<T> sums = sums_of(memory.data(), block.rows.length(), plan_.block_lanes);
        add_strips(block, 0, plan_.strips(), sums);
        write(place_of(result_of(block.g), block), sums, channels_of(block));
      }
    });
  }

 private:
  struct Block {
    int64_t g;
    Interval rows, lanes;
  };
  struct Channels {
    Interval k, c;
  };
  struct Strip {
    Interval n, p, q;
  };

  Strip strip_of(int64_t index) const {
    const auto part = [](int64_t extent, int64_t index, int64_t count) {
      return Interval{extent * index / count, extent * (index + 1) / count};
    };
    return {part(e_.N, index / plan_.strips_w / plan_.strips_h, plan_.strips_n),
            part(e_.h.positions, index / plan_.strips_w % plan_.strips_h, plan_.strips_h),
            part(e_.w.positions, index % plan_.strips_w, plan_.strips_w)};
  }

  Block block_of(int64_t task) const {
    const int64_t row = task / plan_.lane_blocks % plan_.row_blocks;
    const int64_t lane = task % plan_.lane_blocks;
    const auto part = [](int64_t extent, int64_t unit, int64_t index, int64_t count) {
      return Interval{part_begin(extent, unit, index, count),
                      part_begin(extent, unit, index + 1, count)};
    };
    return {task / plan_.blocks() % e_.G, part(plan_.rows, 1, row, plan_.row_blocks),
            part(plan_.lanes, e_.panel, lane, plan_.lane_blocks)};
  }

  Channels channels_of(const Block& block) const {
    if (plan_.lanes_are_input) return {block.rows, block.lanes};
    return {block.lanes, plan_.joined ? Interval{0, e_.C} : block.rows};
  }

  // Sums lie [row][tap][lane] where lanes are c, else [tap][row][lane]; rows that are (s, c) joined
  // are [r][s][c][lane] again.
  WeightView<T> sums_of(T* data, int64_t rows, int64_t pitch) const {
    if (plan_.lanes_are_input) return {data, plan_.taps * pitch, 1, pitch};
    return {data, 1, pitch, (plan_.joined ? e_.C : rows) * pitch};
  }

  WeightView<S> result_of(int64_t g) const {
    return {result_.data + g * e_.K * result_.k, result_.k, result_.c, result_.t};
  }

  template <class E>
  WeightView<E> place_of(const WeightView<E>& group, const Block& block) const {
    const Channels at = channels_of(block);
    return {group.data + at.k.begin * group.k + at.c.begin * group.c, group.k, group.c, group.t};
  }

  // The slices' sums, [slice][g] as above, then their sum in order.
  void run_slices() const {
    const int64_t pitch = round_up(plan_.lanes, e_.panel), tasks = e_.G * plan_.blocks();
    const int64_t group = plan_.taps * plan_.rows * pitch, product = e_.G * group;
    Scratch<T> partial(plan_.slices * product);
    const auto sums_of_group = [&](int64_t slice, int64_t g) {
      return sums_of(partial.data() + slice * product + g * group, plan_.rows, pitch);
    };
    parallel_for(tasks * plan_.slices, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const Block block = block_of(task);
        const int64_t slice = task / tasks, strips = plan_.strips();
        add_strips(block, strips * slice / plan_.slices, strips * (slice + 1) / plan_.slices,
                   place_of(sums_of_group(slice, block.g), block));
      }
    });
    parallel_for(product / e_.vector, 1024, [&](int64_t begin, int64_t end) {
      using V = Vec<T>;
      for (T* to = partial.data() + begin * V::kLanes; begin < end; ++begin, to += V::kLanes) {
        V sum = V::load(to);
        for (int64_t slice = 1; slice < plan_.slices; ++slice)
          sum = sum + V::load(to + slice * product);
        sum.store(to);
      }
    });
    const int64_t parts = divide_up(e_.K, e_.vector), taps = e_.h.taps * e_.w.taps;
    parallel_for(e_.G * parts, divide_up(int64_t{1024}, e_.C * taps),
                 [&](int64_t begin, int64_t end) {
                   for (; begin < end; ++begin) {
                     const int64_t g = begin / parts, k = begin % parts * e_.vector;
                     const Interval channels = {k, smaller(k + e_.vector, e_.K)};
                     WeightView<T> sums = sums_of_group(0, g);
                     WeightView<S> result = result_of(g);
                     sums.data += k * sums.k, result.data += k * result.k;
                     write(result, sums, {channels, {0, e_.C}});
                   }
                 });
  }

  void write(const WeightView<S>& to, const WeightView<T>& sums, const Channels& channels) const {
    const int64_t K = channels.k.length(), C = channels.c.length(), taps = e_.h.taps * e_.w.taps;
    if (plan_.lanes_are_input) {
      for (int64_t k = 0; k < K; ++k)
        if (to.c == 1)
          for (int64_t t = 0; t < taps; ++t)
            store_run(to.data + k * to.k + t * to.t, 1, sums.data + k * sums.k + t * sums.t, C,
                      T{0});
        else
          store_transposed(to.data + k * to.k, to.c, to.t, sums.data + k * sums.k, sums.t, C, taps);
    } else if (to.c == 1) {
      for (int64_t t = 0; t < taps; ++t)
        store_transposed(to.data + t * to.t, to.k, 1, sums.data + t * sums.t, sums.c, K, C);
    } else {
      for (int64_t c = 0; c < C; ++c)
        store_transposed(to.data + c * to.c, to.k, to.t, sums.data + c * sums.c, sums.t, K, taps);
    }
  }

  // Whether the tiles read the tensor's memory as it is. A tile takes a small piece of each pixel:
  // pixels that lie far apart come from memory slower than in one stream, and meet in the same few
  // sets of a cache; so do the planes of channels that lie a multiple of kSetBytes apart.
  bool rows_in_place(const GridTensor<S>& tensor) const {
    if (!kSame<S, T> || plan_.joined) return false;
    const int64_t stride = tensor.stride_w * tensor.w.spacing;
    if (tensor.stride_c != 1) return stride == 1 && tensor.stride_c * e_.element % kSetBytes != 0;
    return stride * e_.element <= kFarPixels;
  }
  bool lanes_in_place(const GridTensor<S>& tensor, int64_t lanes) const {
    return kSame<S, T> && tensor.stride_c == 1 && lanes % e_.vector == 0 &&
           (lanes <= e_.panel || (plan_.block_rows <= kFewRows && lanes <= kFewLanes));
  }

  // The pixels of a strip as rows (one panel of all channels) or as lanes.
  StripPixels<T> pixels_of(const GridTensor<S>& tensor, const StripRange& range, bool as_lanes,
                           T* memory) const {
    if constexpr (kSame<S, T>) {
      if (as_lanes ? lanes_in_place(tensor, range.channels) : rows_in_place(tensor))
        return read_in_place(tensor, range.c, e_.panel);
    }
    return copy_strip(tensor, range, as_lanes ? e_.panel : range.channels, memory);
  }

  // sums = what strips [begin, end) give.
  void add_strips(const Block& block, int64_t begin, int64_t end, const WeightView<T>& sums) const {
    const Channels channels = channels_of(block);
    const bool lanes_are_input = plan_.lanes_are_input;
    Scratch<T> grad_memory(plan_.positions() * round_up(channels.k.length(), e_.panel));
    Scratch<T> input_memory(plan_.input_pixels() * (lanes_are_input
                                                        ? round_up(channels.c.length(), e_.panel)
                                                        : channels.c.length()));
    for (int64_t strip = begin; strip < end; ++strip) {
      const Strip at = strip_of(strip);
      const StripPixels<T> grad = pixels_of(
          grad_, {at.n, at.p, at.q, at.q, block.g * e_.K + channels.k.begin, channels.k.length()},
          !lanes_are_input, grad_memory.data());
      const auto add = [&](const GridTensor<S>& input, T* to) {
        StripRange range = {at.n,
                            input.h.lines_of(at.p),
                            input.w.lines_of(at.q),
                            {},
                            block.g * e_.C + channels.c.begin,
                            channels.c.length()};
        range.held = range.copied;
        if (plan_.joined) range.held = input.w.all_lines_of(at.q);
        const StripPixels<T> pixels = pixels_of(input, range, lanes_are_input, input_memory.data());
        add_taps(block, at, grad, pixels, input, to, sums, strip > begin);
      };
      if (!plan_.tap_by_tap) {
        add(input_, sums.data);
        continue;
      }
      for (int64_t t = 0; t < plan_.taps; ++t) {
        GridTensor<S> input = input_;
        input.h = input_.h.tap(t / e_.w.taps), input.w = input_.w.tap(t % e_.w.taps);
        add(input, sums.data + t * sums.t);
      }
    }
  }

  // sums (+)= the strip's pixels, for the taps of input's axes.
  void add_taps(const Block& block, const Strip& at, const StripPixels<T>& grad,
                const StripPixels<T>& input, const GridTensor<S>& tensor, T* to,
                const WeightView<T>& sums, bool accumulate) const {
    const SlidingAxis &h = tensor.h, &w = tensor.w;
    const int64_t columns = plan_.joined ? 1 : w.taps;
    const int64_t rows = block.rows.length(), lanes = block.lanes.length();
    const int64_t row_stride = plan_.lanes_are_input ? sums.k : sums.c;
    const int64_t tap_stride = plan_.joined ? w.taps * sums.t : sums.t;
    for (int64_t panel = 0; panel * e_.panel < lanes; ++panel)
      for (int64_t r = 0; r < h.taps; ++r)
        for (int64_t s = 0; s < columns; ++s) {
          const Interval p = h.inside_of(r).within(at.p);
          const Interval q = plan_.joined ? at.q : w.inside_of(s).within(at.q);
          const PixelBox box = {at.n.length(), p.length(), q.length()};
          BoxOperand<T> a = {}, b = {};
          if (!box.is_empty()) {
            const BoxOperand<T> x = input.from(plan_.lanes_are_input ? panel : 0, at.n.begin,
                                               p.begin * h.step + r * h.reach,
                                               q.begin * w.step + s * w.reach, h.step, w.step);
            const BoxOperand<T> g =
                grad.from(plan_.lanes_are_input ? 0 : panel, at.n.begin, p.begin, q.begin, 1, 1);
            a = plan_.lanes_are_input ? g : x, b = plan_.lanes_are_input ? x : g;
          }
          multiply_box(rows, smaller(lanes - panel * e_.panel, e_.panel), box, a, b,
                       to + (r * columns + s) * tap_stride + panel * e_.panel, row_stride,
                       accumulate);
        }
  }

  const WeightGradExtents e_;
  const WeightGradPlan plan_;
  const GridTensor<S> input_, grad_;
  const WeightView<S> result_;
};

}  // namespace fastconv::cpu::FASTCONV_ISA
