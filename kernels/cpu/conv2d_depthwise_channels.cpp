// Depthwise convolution, lanes are channels: see conv2d_depthwise.h.
//
// One task = some target rows of one image times some registers of target channels. NHWC is read and
// written where it lies. Otherwise the source rows of a task are brought into a patch of pixels first:
//
//   patch[h][w][register][kLanes]   widened
//
// planes (NCHW) by a transposition, few channels to fill up a register, channels with several targets
// once for each of them; and sums that do not go to the target as they are, are laid down likewise:
//
//   sums[i][j][register][kLanes]
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_channel_sums.h"
#include "conv2d_depthwise_planes.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// The rows that one target row reads, those of a task, a patch and its sums: what stays in L1, in L2
// and in L1.
constexpr int64_t kWindowBytes = int64_t{20} << 10, kStripBytes = int64_t{256} << 10;
constexpr int64_t kPatchBytes = int64_t{40} << 10;
// Results beyond this are not met in cache again.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// How the work is cut: by the machine as it likes, for no sum is.
struct ChannelCut {
  bool in_place;              // else by way of a patch
  int64_t channels, all;      // target channels; registers of them
  int64_t registers, chunks;  // of a task; tasks of a pixel
  int64_t rows, strips;       // target rows of a task
  int64_t source_rows;        // that a task reads
  bool stream;                // whole lines of the target may be stored around the caches

  template <class S>
  ChannelCut(const Product<S>& p, const DepthwiseWindow& window) {
    using T = Compute<S>;
    constexpr int64_t kLanes = Vec<T>::kLanes, kBytes = kLanes * int64_t{sizeof(T)};
    const PixelSource<S>& source = p.source;
    const PixelGrid& grid = source.grid;
    const bool planes = p.target.stride_k != 1 || source.stride_c != 1;
    channels = p.G * p.K, all = divide_up(channels, kLanes);
    in_place = !planes && p.K == 1 && channels >= kLanes;
    const int64_t reach = (window.R - 1) * window.dilation_h + 1;

    // Memory likes runs: all channels of a pixel.
    registers = in_place ? all : planes ? 1 : larger(kWindowBytes / (window.R * source.W * kBytes), int64_t{1});
    chunks = divide_up(all, registers), registers = divide_up(all, chunks);
    // The last register may overlap the one before: both belong to one task.
    while (registers > 1 && registers < all && all % registers == 1) ++registers;
    chunks = divide_up(all, registers);

    if (in_place) {
      rows = kStripBytes / (source.W * source.step_h * source.stride_w * int64_t{sizeof(S)});
    } else {
      // rows * (source row * step + target row) + halo
      const int64_t row = registers * kBytes * (source.W * source.step_h + grid.J);
      const int64_t halo = registers * kBytes * source.W * reach;
      rows = (kPatchBytes - halo) / row;
      rows = larger(rows, divide_up(reach, source.step_h));
    }
    rows = smaller(larger(rows, int64_t{1}), grid.I);
    const int64_t others = grid.N * chunks, threads = num_threads();
    if (others * divide_up(grid.I, rows) % threads != 0 && others < 8 * threads)
      rows = smaller(rows, larger(divide_up(grid.I, threads), divide_up(reach, source.step_h)));
    strips = divide_up(grid.I, rows), rows = divide_up(grid.I, strips);
    strips = divide_up(grid.I, rows);
    const Target<S>& target = p.target;
    const int64_t line = 64 / int64_t{sizeof(S)};
    stream = kCanStoreAroundCache && grid.count() * channels * int64_t{sizeof(S)} > kStreamBytes &&
             target.stride_j % line == 0 && target.stride_i % line == 0 && target.stride_n % line == 0;
    source_rows = smaller((rows - 1) * source.step_h + reach, source.H);
  }
};

template <class S>
class ChannelWorker {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  ChannelWorker(const Product<S>& p, const DepthwiseWindow& window, const ChannelCut& cut)
      : p_(p),
        window_(window),
        columns_(window, p.source),
        cut_(cut),
        weight_(cut.all, window.taps() * kLanes),
        has_weight_(cut.chunks),
        bias_(cut.registers * kLanes),
        patch_(cut.in_place ? 0 : cut.source_rows * p.source.W, cut.registers * kLanes),
        sums_(sums_are_direct() ? 0 : cut.rows * p.source.grid.J, cut.registers * kLanes),
        rows_(window.R) {
    for (int64_t c = 0; c < cut.chunks; ++c) has_weight_.data()[c] = false;
  }

  // `last`: no task follows.
  void run(int64_t task, bool last) {
    const auto [n, chunk, i, i_end] = place_of(task);
    next_ = last ? place_of(task) : place_of(task + 1);
    first_ = chunk * cut_.registers, count_ = smaller(cut_.registers, cut_.all - first_);
    set_weight(chunk);
    const S* image = p_.source.data + n * p_.source.stride_n;
    S* const to = p_.target.data + n * p_.target.stride_n + first_ * kLanes * p_.target.stride_k;
    to_ = to;
    if (cut_.in_place) return sum_in_place(image, to, i, i_end);
    fill_patch(image, i, i_end);
    if constexpr (kSame<S, T>) {
      if (sums_are_direct()) return sum_patch(to, p_.target.stride_i, p_.target.stride_j, p_.finish, i, i_end);
    }
    const int64_t pixel = count_ * kLanes, row = p_.source.grid.J * pixel;
    const Finish<T>* const none = nullptr;
    sum_patch(sums_.data() - i * row, row, pixel, none, i, i_end);
    p_.target.stride_k == 1 ? store_pixels(to, i, i_end) : store_rows(to, i, i_end);
  }

 private:
  struct Place {
    int64_t n, chunk, i, i_end;
  };

  FASTCONV_INLINE Place place_of(int64_t task) const {
    const int64_t strip = task / cut_.chunks % cut_.strips, i = strip * cut_.rows;
    return {task / cut_.chunks / cut_.strips, task % cut_.chunks, i,
            smaller(i + cut_.rows, p_.source.grid.I)};
  }

  bool sums_are_direct() const {
    return cut_.in_place || (kSame<S, T> && p_.target.stride_k == 1);
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

  void set_weight(int64_t chunk) {
    const int64_t size = window_.taps() * kLanes;
    if (!has_weight_.data()[chunk])
      for (int64_t b = 0; b < count_; ++b)
        pack_depthwise_weight(p_, window_, channel(b), weight_.data() + (first_ + b) * size);
    has_weight_.data()[chunk] = true;
    for (int64_t b = 0; p_.bias && b < count_; ++b)
      load_some(p_.bias + channel(b), lanes(b)).store(bias_.data() + b * kLanes);
  }

  struct SourceRows {
    int64_t h, count;
  };

  // What target rows [i, i_end) read, inside.
  FASTCONV_INLINE SourceRows rows_of(int64_t i, int64_t i_end) const {
    const PixelSource<S>& source = p_.source;
    const int64_t h = larger(i * source.step_h + window_.h, int64_t{0});
    const int64_t last =
        (i_end - 1) * source.step_h + window_.h + (window_.R - 1) * window_.dilation_h;
    return {h, larger(smaller(last + 1, source.H) - h, int64_t{0})};
  }

  // Brings the source rows of target rows [i, i_end) into the patch, register by register.
  void fill_patch(const S* image, int64_t i, int64_t i_end) {
    const PixelSource<S>& source = p_.source;
    const auto [h, rows] = rows_of(i, i_end);
    patch_row_ = h;
    image += h * source.stride_h;
    for (int64_t b = 0; b < count_; ++b) {
      const int64_t k = channel(b), c = k / p_.K, count = (k + lanes(b) - 1) / p_.K - c + 1;
      Vec<LaneIndex<T>> index = {};
      for (int64_t l = 0; l < lanes(b); ++l)
        index.raw[l] = static_cast<LaneIndex<T>>((k + l) / p_.K - c);
      fill_register(image + c * source.stride_c, rows, count, patch_.data() + b * kLanes,
                    [&](V v) { return p_.K == 1 ? v : permute(v, index); });
    }
  }

  template <class Spread>
  FASTCONV_INLINE void fill_register(const S* from, int64_t rows, int64_t channels, T* to,
                                     const Spread& spread) const {
    const PixelSource<S>& source = p_.source;
    const int64_t pixel = count_ * kLanes;
    const bool joined = source.stride_h == source.W * source.stride_w;
    const int64_t runs = joined ? 1 : rows, length = joined ? rows * source.W : source.W;
    for (int64_t run = 0; run < runs; ++run, from += source.stride_h, to += length * pixel) {
      if (source.stride_c == 1)
        for (int64_t m = 0; m < length; ++m)
          spread(load_some_as_compute(from + m * source.stride_w, channels)).store(to + m * pixel);
      else
        transpose_planes(from, source.stride_w, source.stride_c, length, channels,
                         [&](int64_t m, V v) { spread(v).store(to + m * pixel); });
    }
  }

  // The part that rows share.
  template <class E, class R>
  ChannelSumsTask<E, R> task_of(const Finish<R>* finish) const {
    ChannelSumsTask<E, R> task = {};
    task.R = window_.R, task.S_ = window_.S;
    task.step = columns_.step, task.dilation = columns_.dilation;
    columns_.inside(0, p_.source.W, columns_.count(p_.source.grid.J), task.x_begin, task.x_end);
    task.weight = weight_.data() + first_ * window_.taps() * kLanes;
    task.bias = p_.bias ? bias_.data() : nullptr;
    task.pixels = p_.source.grid.J, task.registers = count_;
    task.last_lanes = lanes(count_ - 1);
    task.finish = finish, task.channel = first_ * kLanes;
    return task;
  }

  // Element x = 0 of row h is row_of(h), which is asked for rows inside alone.
  template <class E, class RowOf>
  void find_rows(int64_t i, const E** rows, const RowOf& row_of) const {
    for (int64_t r = 0; r < window_.R; ++r) {
      const int64_t h = i * p_.source.step_h + window_.h + r * window_.dilation_h;
      rows[r] = h >= 0 && h < p_.source.H ? row_of(h) : nullptr;
    }
  }

  void sum_in_place(const S* image, S* to, int64_t i, int64_t i_end) {
    const PixelSource<S>& source = p_.source;
    auto task = task_of<S, S>(p_.finish);
    auto** rows = reinterpret_cast<const S**>(rows_.data());
    task.rows = rows, task.pitch = columns_.unit * source.stride_w;
    task.to_step = p_.target.stride_j;
    task.last_shift = (first_ + count_ - 1) * kLanes - channel(count_ - 1);
    task.stream = cut_.stream && reinterpret_cast<uintptr_t>(to) % 64 == 0;
    image += first_ * kLanes + columns_.first * source.stride_w;
    for (; i < i_end; ++i) {
      find_rows(i, rows, [&](int64_t h) { return image + h * source.stride_h; });
      task.to = to + i * p_.target.stride_i;
      fetch_ahead(task, image, i);
      channel_sums(task);
    }
  }

  // The source rows that target row i + 1 reads but row i does not, and that row itself.
  void fetch_ahead(ChannelSumsTask<S, S>& task, const S* image, int64_t i) const {
    const PixelSource<S>& source = p_.source;
    const int64_t turns = divide_up(task.pixels, int64_t{kTilePixels}) * task.registers;
    const int64_t h = larger(i * source.step_h + window_.h + (window_.R - 1) * window_.dilation_h + 1, int64_t{0});
    const int64_t rows = smaller(source.step_h, source.H - h);
    image -= columns_.first * source.stride_w;
    if (rows > 0 && i + 1 < source.grid.I)
      task.next_source.start(image + h * source.stride_h, rows * source.stride_h * int64_t{sizeof(S)}, 0, 1, turns);
    if (!task.stream && i + 1 < source.grid.I)
      task.next_target.start(task.to + p_.target.stride_i, p_.target.stride_i * int64_t{sizeof(S)}, 0, 1, turns);
  }

  // The planes that the next task reads and those that this one is about to write.
  void fetch_planes(ChannelSumsTask<T, T>& task, int64_t i, int64_t i_end) const {
    const PixelSource<S>& source = p_.source;
    const Target<S>& target = p_.target;
    constexpr int64_t kSize = sizeof(S);
    const int64_t turns = (i_end - i) * divide_up(task.pixels, int64_t{kTilePixels}) * count_;
    if (source.stride_c > 1 && source.stride_w == 1) {
      const int64_t k = next_.chunk * cut_.registers * kLanes;
      const int64_t planes = smaller(cut_.registers * kLanes, cut_.channels - k) / p_.K;
      const auto [h, rows] = rows_of(next_.i, next_.i_end);
      task.next_source.start(
          source.data + next_.n * source.stride_n + k / p_.K * source.stride_c + h * source.stride_h,
          rows * source.stride_h * kSize, source.stride_c * kSize, planes, turns);
    }
    if (target.stride_k > 1 && target.stride_j == 1)
      task.next_target.start(to_ + i * target.stride_i, (i_end - i) * target.stride_i * kSize,
                             target.stride_k * kSize, count_ * kLanes, turns);
  }

  // To element (i, j, lane) of register b: i * to_row + j * to_step + b * kLanes.
  void sum_patch(T* to, int64_t to_row, int64_t to_step, const Finish<T>* finish, int64_t i, int64_t i_end) {
    const int64_t pixel = count_ * kLanes, row = p_.source.W * pixel;
    auto task = task_of<T, T>(finish);
    auto** rows = reinterpret_cast<const T**>(rows_.data());
    task.rows = rows, task.pitch = columns_.unit * pixel, task.to_step = to_step;
    const T* from = patch_.data() - patch_row_ * row + columns_.first * pixel;
    fetch_planes(task, i, i_end);
    for (; i < i_end; ++i) {
      find_rows(i, rows, [&](int64_t h) { return from + h * row; });
      task.to = to + i * to_row;
      channel_sums(task);
    }
  }

  // The sums of rows [i, i_end) into channels that are runs.
  void store_pixels(S* to, int64_t i, int64_t i_end) const {
    const T* sums = sums_.data();
    for (; i < i_end; ++i)
      for (int64_t j = 0; j < p_.source.grid.J; ++j)
        for (int64_t b = 0; b < count_; ++b, sums += kLanes) {
          S* at = to + i * p_.target.stride_i + j * p_.target.stride_j + b * kLanes;
          const V sum = p_.finished(V::load(sums), channel(b), lanes(b), at);
          store_some_from_compute(at, sum, lanes(b));
        }
  }

  // The same into planes; rows without gaps are one.
  void store_rows(S* to, int64_t i, int64_t i_end) const {
    const Target<S>& target = p_.target;
    const int64_t J = p_.source.grid.J;
    const bool joined = target.stride_i == J * target.stride_j;
    const int64_t pixels = joined ? (i_end - i) * J : J;
    for (int64_t b = 0; b < count_; ++b) {
      const T* sums = sums_.data() + b * kLanes;
      for (int64_t row = i; row < i_end; row = joined ? i_end : row + 1) {
        store_planes(to + row * target.stride_i + b * kLanes * target.stride_k, sums, pixels, b);
        sums += pixels * count_ * kLanes;
      }
    }
  }

  void store_planes(S* to, const T* sums, int64_t pixels, int64_t b) const {
    const Target<S>& target = p_.target;
    const bool plain = target.stride_j == 1 && !p_.finish;
    const int64_t planes = lanes(b), pixel = count_ * kLanes;
    for (int64_t next = 0; next < pixels; next += kLanes) {
      // The last block overlaps the one before instead of being partly empty.
      const int64_t m = larger(smaller(next, pixels - kLanes), int64_t{0});
      const int64_t count = smaller(pixels, kLanes);
      V block[V::kLanes];
#pragma GCC unroll 16
      for (int q = 0; q < kLanes; ++q) block[q] = V::load(sums + (m + (q < count ? q : 0)) * pixel);
      transpose(block);
      S* at = to + m * target.stride_j;
      if (plain && count == kLanes && planes == kLanes) {
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) store_from_compute(at + l * target.stride_k, block[l]);
      } else if (plain) {
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l)
          if (l < planes) store_some_from_compute(at + l * target.stride_k, block[l], count);
      } else {
        alignas(64) T some[kLanes][kLanes];
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) block[l].store(some[l]);
        for (int64_t l = 0; l < planes; ++l)
          p_.store_pixels(at + l * target.stride_k, some[l], count, channel(b) + l);
      }
    }
  }

  const Product<S>& p_;
  const DepthwiseWindow& window_;
  DepthwiseColumns columns_;
  const ChannelCut& cut_;
  Scratch<T> weight_;
  Scratch<bool> has_weight_;
  Scratch<T> bias_, patch_, sums_;
  Scratch<const void*> rows_;
  Place next_ = {};                // of the next task
  S* to_ = nullptr;                // the target's first pixel and channel of the task
  int64_t first_ = 0, count_ = 0;  // registers of the task
  int64_t patch_row_ = 0;          // the first source row of the patch
};

template <class S>
void run(const Product<S>& p) {
  const DepthwiseWindow window(p.source);
  const ChannelCut cut(p, window);
  const int64_t tasks = p.source.grid.N * cut.strips * cut.chunks;
  const int64_t work = cut.rows * p.source.grid.J * cut.registers * (window.taps() + 8);
  parallel_for(tasks, (int64_t{1} << 12) / work + 1, [&](int64_t begin, int64_t end) {
    ChannelWorker<S> worker(p, window, cut);
    for (int64_t task = begin; task < end; ++task) worker.run(task, task + 1 == end);
  });
}

}  // namespace

#define FASTCONV_DEPTHWISE(S) \
  void run_depthwise_channels(const Product<S>& p) { run(p); }
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cpu::FASTCONV_ISA
