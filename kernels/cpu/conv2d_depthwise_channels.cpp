// Depthwise convolution, lanes are channels: see conv2d_depthwise.h.
//
// One task = some target rows of one image times some registers of target channels, row by row in all
// parts. NHWC is read and written where it lies. Otherwise the source rows of a task are brought into
// a patch of pixels first:
//
//   patch[h][w][register][kLanes]   widened
//
// planes (NCHW) by a transposition, few channels to fill up a register, channels with several targets
// once for each of them; and sums that do not go to the target as they are, are laid down likewise:
//
//   sums[h][w][register][kLanes]    of the image's pixels, all parts together
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_channel_cut.h"
#include "conv2d_depthwise_channel_sums.h"
#include "conv2d_depthwise_planes.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class S>
class ChannelWorker {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  ChannelWorker(const DepthwisePart<S>* parts, int64_t count, const DepthwiseImage<S>& image,
                const ChannelCut& cut)
      : image_(image),
        p_(parts[0].product),
        source_(p_.source),
        cut_(cut),
        part_count_(count),
        parts_(count),
        weight_(cut.all, cut.taps, kLanes),
        has_weight_(cut.chunks),
        bias_(cut.registers, kLanes),
        patch_(cut.in_place ? 0 : cut.source_rows, source_.W, cut.registers * kLanes),
        sums_(sums_are_direct() ? 0 : cut.rows * image.step_h, image.target.grid.J,
              cut.registers * kLanes),
        rows_(cut.window_rows) {
    T* weight = weight_.data();
    for (int64_t i = 0; i < count; ++i) {
      const DepthwiseWindow window(parts[i].product.source);
      parts_.data()[i] = {&parts[i], window, DepthwiseColumns(window, source_), weight};
      weight += cut.all * window.taps() * kLanes;
    }
    for (int64_t c = 0; c < cut.chunks; ++c) has_weight_.data()[c] = false;
  }

  void run(int64_t task) {
    place_ = place_of(task);
    first_ = place_.chunk * cut_.registers, count_ = smaller(cut_.registers, cut_.all - first_);
    set_weight();
    if (cut_.in_place) return sum_in_place();
    fill_patch();
    if constexpr (kSame<S, T>) {
      if (sums_are_direct()) return sum_patch();
    }
    if (image_.has_gaps) fill_gaps();
    sum_patch();
    image_.target.stride_k == 1 ? store_pixels() : store_rows();
  }

 private:
  struct Place {
    int64_t n, chunk, i, i_end;
  };
  struct Part {
    const DepthwisePart<S>* part;
    DepthwiseWindow window;
    DepthwiseColumns columns;
    T* weight;  // [register][tap][kLanes]
    FASTCONV_INLINE const Product<S>& product() const { return part->product; }
  };

  FASTCONV_INLINE Place place_of(int64_t task) const {
    const int64_t strip = task / cut_.chunks % cut_.strips, i = strip * cut_.rows;
    return {task / cut_.chunks / cut_.strips, task % cut_.chunks, i,
            smaller(i + cut_.rows, cut_.all_rows)};
  }

  bool sums_are_direct() const {
    return cut_.in_place || (kSame<S, T> && image_.target.stride_k == 1);
  }

  // Register `index` of the task: its first channel, and how many it has. Where channels are read in
  // place, the last one overlaps the one before instead of reaching behind the last channel.
  FASTCONV_INLINE int64_t channel(int64_t index) const {
    const int64_t k = (first_ + index) * kLanes;
    return cut_.in_place ? smaller(k, cut_.channels - kLanes) : k;
  }
  FASTCONV_INLINE int64_t lanes(int64_t index) const {
    return smaller(kLanes, cut_.channels - channel(index));
  }
  // Elements of a pixel in a patch, and of a row of sums.
  FASTCONV_INLINE int64_t pixel() const { return count_ * kLanes; }
  FASTCONV_INLINE int64_t sums_row() const { return image_.target.grid.J * pixel(); }

  void set_weight() {
    for (int64_t b = 0; p_.bias && b < count_; ++b)
      load_some(p_.bias + channel(b), lanes(b)).store(bias_.data() + b * kLanes);
    if (has_weight_.data()[place_.chunk]) return;
    has_weight_.data()[place_.chunk] = true;
    for (int64_t i = 0; i < part_count_; ++i) {
      const Part& part = parts_.data()[i];
      for (int64_t b = 0; b < count_; ++b)
        pack_depthwise_weight(part.product(), part.window, channel(b),
                              part.weight + (first_ + b) * part.window.taps() * kLanes);
    }
  }

  // The source rows that target rows [i, i_end) read, inside.
  struct SourceRows {
    int64_t h, count;
  };
  FASTCONV_INLINE SourceRows rows_of(int64_t i, int64_t i_end) const {
    const int64_t h = larger(i * source_.step_h + cut_.first_row, int64_t{0});
    const int64_t until = (i_end - 1) * source_.step_h + cut_.first_row + cut_.reach;
    return {h, larger(smaller(until, source_.H) - h, int64_t{0})};
  }

  // Register by register.
  void fill_patch() {
    const auto [h, rows] = rows_of(place_.i, place_.i_end);
    patch_row_ = h;
    const S* const from = source_.data + place_.n * source_.stride_n + h * source_.stride_h;
    for (int64_t b = 0; b < count_; ++b) {
      const int64_t k = channel(b), c = k / p_.K, count = (k + lanes(b) - 1) / p_.K - c + 1;
      const auto index = lanes_of_source<T>(k, lanes(b), p_.K);
      gather_pixels(source_, from + c * source_.stride_c, rows, count, patch_.data() + b * kLanes,
                    pixel(), [&](V v) { return p_.K == 1 ? v : permute(v, index); });
    }
  }

  // Pixels of no part: no sums, and so are all for now.
  void fill_gaps() {
    T* to = sums_.data();
    const int64_t pixels = cut_.rows * image_.step_h * image_.target.grid.J;
    if (!p_.bias) return clear_run(to, pixels * pixel());
    for (int64_t m = 0; m < pixels; ++m)
      for (int64_t b = 0; b < count_; ++b, to += kLanes)
        V::load(bias_.data() + b * kLanes).store(to);
  }

  // What the rows of a part share.
  template <class E, class R>
  ChannelSumsTask<E, R> task_of(const Part& part, const Finish<R>* finish) const {
    ChannelSumsTask<E, R> task = {};
    const int64_t J = part.product().source.grid.J;
    task.window_rows = part.window.R, task.window_columns = part.window.S;
    task.step = part.columns.step, task.dilation = part.columns.dilation;
    part.columns.inside(0, source_.W, part.columns.count(J), task.x_begin, task.x_end);
    task.weight = part.weight + first_ * part.window.taps() * kLanes;
    task.bias = p_.bias ? bias_.data() : nullptr;
    task.pixels = J, task.registers = count_;
    task.last_lanes = lanes(count_ - 1);
    task.finish = finish, task.channel = first_ * kLanes;
    return task;
  }

  // Row i of a part: element (h, x) of the source lies at from + h * row + x * task.pitch.
  template <class E, class R>
  void sum_row(ChannelSumsTask<E, R>& task, const Part& part, const E* from, int64_t row,
               int64_t i) {
    auto** rows = reinterpret_cast<const E**>(rows_.data());
    for (int64_t r = 0; r < part.window.R; ++r) {
      const int64_t h = i * source_.step_h + part.window.h + r * part.window.dilation_h;
      rows[r] = h >= 0 && h < source_.H ? from + h * row : nullptr;
    }
    task.rows = rows;
    channel_sums(task);
  }

  void sum_in_place() {
    const S* const from = source_.data + place_.n * source_.stride_n + first_ * kLanes;
    const int64_t shift = (first_ + count_ - 1) * kLanes - channel(count_ - 1);
    for (int64_t i = place_.i; i < place_.i_end; ++i)
      for (int64_t index = 0; index < part_count_; ++index) {
        const Part& part = parts_.data()[index];
        const Target<S>& target = part.product().target;
        if (i >= part.product().source.grid.I) continue;
        auto task = task_of<S, S>(part, p_.finish);
        task.pitch = part.columns.unit * source_.stride_w;
        task.to_step = target.stride_j, task.last_shift = shift;
        task.to = target.data + place_.n * target.stride_n + first_ * kLanes + i * target.stride_i;
        task.stream = cut_.stream;
        sum_row(task, part, from + part.columns.first * source_.stride_w, source_.stride_h, i);
      }
    if (cut_.stream) finish_stores_around_cache();
  }

  void sum_patch() {
    const int64_t row = source_.W * pixel();
    for (int64_t index = 0; index < part_count_; ++index) {
      const Part& part = parts_.data()[index];
      const T* const from = patch_.data() - patch_row_ * row + part.columns.first * pixel();
      const Target<S>& target = part.product().target;
      auto task = task_of<T, T>(part, static_cast<const Finish<T>*>(nullptr));
      task.pitch = part.columns.unit * pixel();
      T* to = sums_.data() + part.part->a * sums_row() + part.part->b * pixel();
      int64_t to_row = image_.step_h * sums_row();
      task.to_step = image_.step_w * pixel();
      if constexpr (kSame<S, T>) {
        if (sums_are_direct()) {
          to = target.data + place_.n * target.stride_n + first_ * kLanes +
               place_.i * target.stride_i;
          to_row = target.stride_i, task.to_step = target.stride_j;
          task.finish = p_.finish;
        }
      }
      const int64_t i_end = smaller(place_.i_end, part.product().source.grid.I);
      for (int64_t i = place_.i; i < i_end; ++i, to += to_row) {
        task.to = to;
        sum_row(task, part, from, row, i);
      }
    }
  }

  // Rows of the image that the task is about.
  FASTCONV_INLINE SourceRows target_rows() const {
    const int64_t h = place_.i * image_.step_h;
    return {h, smaller(place_.i_end * image_.step_h, image_.target.grid.I) - h};
  }

  // The sums into channels that are runs.
  void store_pixels() const {
    const Target<S>& target = image_.target;
    const auto [first, rows] = target_rows();
    S* const to = target.data + place_.n * target.stride_n + first * target.stride_i;
    const T* sums = sums_.data();
    for (int64_t h = 0; h < rows; ++h)
      for (int64_t w = 0; w < target.grid.J; ++w)
        for (int64_t b = 0; b < count_; ++b, sums += kLanes) {
          S* at = to + h * target.stride_i + w * target.stride_j + channel(b);
          const V sum = p_.finished(V::load(sums), channel(b), lanes(b), at);
          store_some_from_compute(at, sum, lanes(b));
        }
  }

  // The same into planes; rows without gaps are one.
  void store_rows() const {
    const Target<S>& target = image_.target;
    const auto [first, count] = target_rows();
    const int64_t W = target.grid.J;
    const bool joined = target.stride_i == W * target.stride_j;
    const int64_t rows = joined ? 1 : count, pixels = joined ? count * W : W;
    for (int64_t b = 0; b < count_; ++b) {
      S* to = target.data + place_.n * target.stride_n + channel(b) * target.stride_k +
              first * target.stride_i;
      const T* sums = sums_.data() + b * kLanes;
      for (int64_t r = 0; r < rows; ++r, to += target.stride_i, sums += sums_row())
        store_planes(to, sums, pixels, b);
    }
  }

  void store_planes(S* to, const T* sums, int64_t pixels, int64_t b) const {
    const Target<S>& target = image_.target;
    if (target.stride_j == 1 && !p_.finish) {
      transpose_pixels(sums, pixel(), pixels, lanes(b),
                       [&](int l, int64_t m, V run, int64_t count) {
                         S* at = to + m + l * target.stride_k;
                         if (count == kLanes)
                           store_from_compute(at, run);
                         else
                           store_some_from_compute(at, run, count);
                       });
    } else {
      transpose_pixels(sums, pixel(), pixels, lanes(b),
                       [&](int l, int64_t m, V run, int64_t count) {
                         alignas(64) T some[kLanes];
                         run.store(some);
                         p_.store_pixels(to + m * target.stride_j + l * target.stride_k, some,
                                         count, channel(b) + l);
                       });
    }
  }

  const DepthwiseImage<S>& image_;
  const Product<S>& p_;  // of the first part: what all have in common
  const PixelSource<S>& source_;
  const ChannelCut& cut_;
  int64_t part_count_;
  Scratch<Part> parts_;
  Scratch<T> weight_;
  Scratch<bool> has_weight_;  // of a chunk
  Scratch<T> bias_, patch_, sums_;
  Scratch<const void*> rows_;
  Place place_ = {};
  int64_t first_ = 0, count_ = 0;  // registers of the task
  int64_t patch_row_ = 0;          // the first source row of the patch
};

template <class S>
void run(const DepthwisePart<S>* parts, int64_t count, const DepthwiseImage<S>& image) {
  const ChannelCut cut(parts, count, image);
  const int64_t tasks = parts[0].product.source.grid.N * cut.strips * cut.chunks;
  const int64_t work = cut.rows * image.target.grid.J * cut.registers * (cut.taps + 8);
  parallel_for(tasks, (int64_t{1} << 12) / work + 1, [&](int64_t begin, int64_t end) {
    ChannelWorker<S> worker(parts, count, image, cut);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
}

}  // namespace

#define FASTCONV_DEPTHWISE(S)                                               \
  void run_depthwise_channels(const DepthwisePart<S>* parts, int64_t count, \
                              const DepthwiseImage<S>& image) {             \
    run(parts, count, image);                                               \
  }
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cpu::FASTCONV_ISA
