// conv2d's gradient by its input, and so conv_transpose2d, one tap of the window after the other:
//
//   grad_input[n, c, h, w] += sum_k grad_output[n, k, p, q] * weight[k, c, r, s]
//     with  h = p * stride_h - pad_h + r * dilation_h,  w = q * stride_w - pad_w + s * dilation_w
//
// The pixels (p, q) that a tap (r, s) brings inside are a grid, and so are those where they go: each
// tap is a matrix product of pixels by channels, whose tiles are added where they belong. Nothing is
// unfolded, and no product is made in vain. Lanes are the channels c. Where the result is laid out
// otherwise, or narrower than its sums, tiles are added to a band of it, [row][column][c], in cache.
//
// One task = a band of input rows, of one image or of all, times a block of c. For each block of k:
//   grad_output   is read in place, or copied as [pixel][k]
//   weight        lies in panels [tap][panel][k][kTileColumns], of all tasks or of this one alone
// An element's sum is in the order of blocks of k, then of taps: independent of the tasks.
// Cost: 2 * N*K*C flops for each pixel and tap that meet inside.
#pragma once
#include "../parallel.h"
#include "conv2d_algorithm.h"
#include "conv2d_input_grad_axis.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {  // of conv2d.cpp alone

constexpr int64_t kMostTaps = 1024;
constexpr int64_t kTapPixels = 256;                       // of grad_output, that a task is made of
constexpr int64_t kTapChannels = 256;                     // of a task
constexpr int64_t kTapBandBytes = int64_t{1} << 19;       // a band stays in L2
constexpr int64_t kOwnPanelBytes = int64_t{384} << 10;    // and so do the panels of one task
constexpr int64_t kAssociativity = 4096;                  // rows so far apart share sets of L1

template <class S>
class InputGradTaps {
 public:
  using T = Compute<S>;
  using V = Vec<T>;

  InputGradTaps(const Conv2dShape& s, const S* grad_output, const S* weight, const T* bias,
                S* grad_input)
      : s_(s),
        grad_(grad_output),
        weight_(weight),
        bias_(bias),
        result_(grad_input),
        rows_(s.window.R),
        columns_(s.window.S),
        taps_(s.window.R, s.window.S),
        panels_(divide_up(s.C, kPanel)),
        direct_(kSame<S, T> && s.input.s[1] == 1),
        joined_(s.Q < kTileRows) {
    set_taps();
    set_tasks();
    const int64_t* g = s.output.s;
    in_place_ = kSame<S, T> && g[1] == 1 && g[3] * int64_t{sizeof(T)} % kAssociativity != 0 &&
                (!joined_ || g[2] == s.Q * g[3]);
  }

  // Where windows move by more than one, or hang over the edge with most of their taps, and the
  // channels fill the lanes.
  static bool pays(const Conv2dShape& s) {
    const Window2d& window = s.window;
    if (s.G != 1 || s.K == 0 || window.R > kMostTaps || window.S > kMostTaps / window.R)
      return false;
    if (divide_up(s.C, int64_t{V::kLanes}) * V::kLanes * 3 > s.C * 4) return false;
    if (window.stride_h > 1 || window.stride_w > 1) return true;
    Scratch<AxisTap> taps(larger(window.R, window.S));
    int64_t inside[2] = {0, 0};
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t count = axis ? window.S : window.R;
      set_axis_taps(count, 1, axis ? window.pad_w : window.pad_h,
                    axis ? window.dilation_w : window.dilation_h, axis ? s.Q : s.P,
                    axis ? s.W : s.H, taps.data());
      for (int64_t t = 0; t < count; ++t) inside[axis] += taps.data()[t].count();
    }
    const double all = static_cast<double>(s.H * window.R) * static_cast<double>(s.W * window.S);
    return static_cast<double>(inside[0]) * static_cast<double>(inside[1]) < 0.75 * all;
  }

  void run() const {
    Scratch<T> shared(own_panels_ ? 0 : tap_count_all() * panels_ * s_.K * kPanel);
    if (!own_panels_) pack_all(shared.data());
    parallel_for(groups_ * bands_ * blocks_, 1, [&](int64_t begin, int64_t end) {
      const int64_t images = divide_up(s_.N, groups_), longest = divide_up(s_.H, bands_);
      const int64_t channels = divide_up(panels_, blocks_) * kPanel;
      Scratch<T> pixels(in_place_ ? 0 : images * source_rows(longest) * s_.Q * kDepth);
      Scratch<T> own(own_panels_ ? tap_count_all() * channels * kDepth : 0);
      Scratch<T> band(direct_ ? 0 : images * longest * s_.W * channels);
      for (int64_t number = begin; number < end; ++number) {
        const int64_t block = number % blocks_, rest = number / blocks_;
        const int64_t h = rest % bands_, n = rest / bands_;
        Task task;
        task.n = part_begin(s_.N, groups_, n), task.n_end = part_begin(s_.N, groups_, n + 1);
        task.h = part_begin(s_.H, bands_, h), task.h_end = part_begin(s_.H, bands_, h + 1);
        task.panel = part_begin(panels_, blocks_, block);
        task.panel_end = part_begin(panels_, blocks_, block + 1);
        task.pixels = pixels.data(), task.own = own.data();
        task.panels = own_panels_ ? own.data() : shared.data();
        set_band(task, band.data());
        run_task(task);
      }
    });
  }

 private:
  static constexpr int64_t kPanel = kTileColumns<T>, kDepth = kDepthBlock<T> * 2 / 3;

  struct OrderedTap {
    int64_t r, s;
    bool leads;
  };

  struct Task {
    int64_t n, n_end, h, h_end, panel, panel_end;
    T* pixels;        // [n][p][q][kDepth]
    T* own;           // panels of this task
    const T* panels;  // of the task or of all
    T* band;          // of image n, row h, channel 0 of the block
    int64_t band_n, band_h, band_w;

    FASTCONV_INLINE int64_t channel() const { return panel * kPanel; }
  };

  // What a tap's products of one depth block are made of.
  struct Step {
    const Task& task;
    const OrderedTap& tap;
    int64_t k, k_end;
    const T* source;  // of image n, row `first`
    int64_t first, source_n, source_h, source_w;
    bool writes;  // is the first to do so
  };

  FASTCONV_INLINE int64_t tap_count_all() const { return s_.window.R * s_.window.S; }

  // Rows of grad_output that `rows` rows of the input meet, at most.
  FASTCONV_INLINE int64_t source_rows(int64_t rows) const {
    const int64_t reach = (s_.window.R - 1) * s_.window.dilation_h;
    return smaller((rows - 1 + reach) / s_.window.stride_h + 1, s_.P);
  }

  // Taps that lead their phases come first: they write what the others add to.
  void set_taps() {
    const Window2d& w = s_.window;
    const bool rows_led =
        set_axis_taps(w.R, w.stride_h, w.pad_h, w.dilation_h, s_.P, s_.H, rows_.data());
    const bool columns_led =
        set_axis_taps(w.S, w.stride_w, w.pad_w, w.dilation_w, s_.Q, s_.W, columns_.data());
    starts_ = !rows_led || !columns_led;
    tap_count_ = 0;
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t r = 0; r < w.R; ++r)
        for (int64_t q = 0; q < w.S; ++q) {
          const AxisTap &row = rows_.data()[r], &column = columns_.data()[q];
          const bool leads = !starts_ && row.leads && column.leads;
          if (leads == (pass == 0) && row.count() > 0 && column.count() > 0)
            taps_.data()[tap_count_++] = {r, q, leads};
        }
  }

  // Few pixels share one task, so that each weight is read once; many are cut into bands.
  void set_tasks() {
    const int64_t threads = num_threads(), stride = s_.window.stride_h;
    const int64_t bytes = int64_t{sizeof(T)};
    own_panels_ = s_.N * s_.P * s_.Q <= kTapPixels &&
                  (direct_ || s_.N * s_.H * s_.W <= 4 * kTapBandBytes / (kPanel * bytes));
    if (own_panels_) {
      groups_ = bands_ = 1;
      const int64_t of_panel = tap_count_all() * smaller(s_.K, kDepth) * kPanel * bytes;
      const int64_t most = larger(kOwnPanelBytes / of_panel, int64_t{1});
      blocks_ = larger(divide_up(panels_, most), smaller(panels_, 4 * threads));
      return;
    }
    groups_ = s_.N;
    blocks_ = divide_up(panels_, kTapChannels / kPanel);
    const int64_t channels = divide_up(panels_, blocks_) * kPanel;
    const int64_t near = larger(kTapPixels / s_.Q, int64_t{1}) * stride;
    const int64_t fits = larger(kTapBandBytes / (s_.W * channels * bytes), int64_t{1});
    bands_ = divide_up(s_.H, smaller(near, larger(fits, stride)));
    const int64_t tasks = groups_ * bands_ * blocks_;
    if (tasks % threads != 0 && tasks < 8 * threads)
      bands_ = smaller(divide_up(bands_, threads) * threads, s_.H);
  }

  void set_band(Task& task, T* memory) const {
    const int64_t* to = s_.input.s;
    if constexpr (kSame<S, T>)
      if (direct_) {
        task.band = result_ + task.n * to[0] + task.h * to[2] + task.channel();
        task.band_n = to[0], task.band_h = to[2], task.band_w = to[3];
        return;
      }
    task.band = memory;
    task.band_w = (task.panel_end - task.panel) * kPanel;
    task.band_h = s_.W * task.band_w;
    task.band_n = (task.h_end - task.h) * task.band_h;
  }

  // panels[tap][panel][k - k_begin][kPanel] of `count` panels from `panel` on; `depth` is the distance
  // of two panels. Where taps lie next to each other they are read together.
  void pack(int64_t k, int64_t k_end, int64_t panel, int64_t count, int64_t depth, int64_t of_tap,
            T* to) const {
    const int64_t *from = s_.weight.s, R = s_.window.R, taps = tap_count_all();
    const bool together = from[1] != 1 && from[3] == 1 && from[2] == s_.window.S;
    for (int64_t at = k; at < k_end; ++at)
      for (int64_t j = 0; j < count; ++j) {
        const int64_t c = (panel + j) * kPanel, lanes = smaller(kPanel, s_.C - c);
        const S* weights = weight_ + at * from[0] + c * from[1];
        T* rows = to + (j * depth + at - k) * kPanel;
        if (lanes < kPanel)
          for (int64_t t = 0; t < taps; ++t) clear_run(rows + t * of_tap, kPanel);
        if (together) {
          transpose_taps(rows, of_tap, weights, from[1], taps, lanes);
          continue;
        }
        for (int64_t r = 0; r < R; ++r)
          for (int64_t q = 0; q < s_.window.S; ++q, rows += of_tap)
            copy_run(rows, weights + r * from[2] + q * from[3], from[1], lanes);
      }
  }

  // to[t * of_tap + i] = from[i * stride + t], square block by square block.
  static void transpose_taps(T* to, int64_t of_tap, const S* from, int64_t stride, int64_t taps,
                             int64_t lanes) {
    for (int64_t i = 0; i < lanes; i += V::kLanes)
      for (int64_t t = 0; t < taps; t += V::kLanes) {
        const int64_t rows = smaller(taps - t, int64_t{V::kLanes});
        const int64_t columns = smaller(lanes - i, int64_t{V::kLanes});
        V block[V::kLanes];
        for (int64_t x = 0; x < V::kLanes; ++x)
          block[x] = x < columns ? load_some_as_compute(from + (i + x) * stride + t, rows)
                                 : V::zero();
        transpose(block);
        for (int64_t x = 0; x < rows; ++x) block[x].store(to + (t + x) * of_tap + i);
      }
  }

  void pack_all(T* packed) const {
    constexpr int64_t kPiece = 16;
    const int64_t pieces = divide_up(s_.K, kPiece), of_tap = panels_ * s_.K * kPanel;
    parallel_for(pieces * panels_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t k = task / panels_ * kPiece, panel = task % panels_;
        pack(k, smaller(k + kPiece, s_.K), panel, 1, s_.K, of_tap,
             packed + (panel * s_.K + k) * kPanel);
      }
    });
  }

  void run_task(const Task& task) const {
    const Window2d& w = s_.window;
    const int64_t reach = (w.R - 1) * w.dilation_h;
    const int64_t first = larger(divide_up(task.h + w.pad_h - reach, w.stride_h), int64_t{0});
    const int64_t last = smaller((task.h_end - 1 + w.pad_h) / w.stride_h + 1, s_.P);
    if (starts_) start_band(task);
    const int64_t depths = first < last ? divide_up(s_.K, kDepth) : 0;
    for (int64_t depth = 0; depth < depths; ++depth) {
      const int64_t k = part_begin(s_.K, depths, depth), k_end = part_begin(s_.K, depths, depth + 1);
      Step step{task, taps_.data()[0], k, k_end, nullptr, first, 0, 0, 0, false};
      set_source(step, last);
      const int64_t count = task.panel_end - task.panel;
      if (own_panels_)
        pack(k, k_end, task.panel, count, kDepth, count * kDepth * kPanel, task.own);
      for (int64_t t = 0; t < tap_count_; ++t) {
        const OrderedTap& tap = taps_.data()[t];
        const Step each{task,          tap,           k,
                        k_end,         step.source,   first,
                        step.source_n, step.source_h, step.source_w,
                        tap.leads && k == 0};
        add_tap(each);
      }
    }
    if (!direct_) store_band(task);
  }

  // Every element of the band becomes the bias.
  void start_band(const Task& task) const {
    const int64_t channels = smaller(task.panel_end * kPanel, s_.C) - task.channel();
    for (int64_t n = task.n; n < task.n_end; ++n)
      for (int64_t h = task.h; h < task.h_end; ++h)
        for (int64_t w = 0; w < s_.W; ++w) {
          T* to = task.band + (n - task.n) * task.band_n + (h - task.h) * task.band_h +
                  w * task.band_w;
          if (bias_)
            copy_run(to, bias_ + task.channel(), 1, channels);
          else
            clear_run(to, channels);
        }
  }

  // The rows [first, last) of grad_output, k to k_end, in place or copied.
  void set_source(Step& step, int64_t last) const {
    const int64_t *g = s_.output.s, rows = last - step.first;
    const Task& task = step.task;
    const S* from = grad_ + task.n * g[0] + step.first * g[2] + step.k * g[1];
    if constexpr (kSame<S, T>)
      if (in_place_) {
        step.source = from, step.source_n = g[0], step.source_h = g[2], step.source_w = g[3];
        return;
      }
    step.source = task.pixels;
    step.source_w = kDepth, step.source_h = s_.Q * kDepth, step.source_n = rows * step.source_h;
    const bool one_run = g[2] == s_.Q * g[3];  // rows follow each other
    for (int64_t n = 0; n < task.n_end - task.n; ++n)
      for (int64_t row = 0; row < (one_run ? 1 : rows); ++row)
        copy_grid(task.pixels + n * step.source_n + row * step.source_h, kDepth,
                  from + n * g[0] + row * g[2], g[3], g[1], one_run ? rows * s_.Q : s_.Q,
                  step.k_end - step.k);
  }

  // Adds what a tap makes of the pixels that it brings inside the band.
  void add_tap(const Step& step) const {
    const Task& task = step.task;
    const Window2d& w = s_.window;
    const AxisTap &row = rows_.data()[step.tap.r], &column = columns_.data()[step.tap.s];
    // Of the rows p * stride + offset those in [h, h_end).
    const int64_t above = task.h - row.offset, below = task.h_end - row.offset;
    const int64_t p = larger(row.begin, above > 0 ? divide_up(above, w.stride_h) : 0);
    const int64_t p_end = smaller(row.end, below > 0 ? divide_up(below, w.stride_h) : 0);
    if (p >= p_end) return;
    for (int64_t n = 0; n < task.n_end - task.n; ++n) {
      const T* source = step.source + n * step.source_n;
      T* band = task.band + n * task.band_n + column.offset * task.band_w;
      if (joined_) {
        const int64_t m = (p - step.first) * s_.Q, count = (p_end - p) * s_.Q;
        T* to = band + (p * w.stride_h + row.offset - task.h) * task.band_h;
        add_pixels(step, source + m * step.source_w, count, to);
        continue;
      }
      for (int64_t i = p; i < p_end; ++i)
        add_pixels(step, source + (i - step.first) * step.source_h + column.begin * step.source_w,
                   column.count(),
                   band + (i * w.stride_h + row.offset - task.h) * task.band_h +
                       column.begin * w.stride_w * task.band_w);
    }
  }

  // Pixels of one row that lie inside; or, joined, of whole rows, from the first column on.
  void add_pixels(const Step& step, const T* source, int64_t count, T* to) const {
    const Task& task = step.task;
    const int64_t tiles = divide_up(count, int64_t{kTileRows}), depth = step.k_end - step.k;
    const int64_t apart = s_.window.stride_w * task.band_w;
    const int64_t tap = step.tap.r * s_.window.S + step.tap.s;
    const int64_t count_of_task = task.panel_end - task.panel;
    const T* panels =
        own_panels_ ? task.panels + tap * count_of_task * kDepth * kPanel
                    : task.panels + ((tap * panels_ + task.panel) * s_.K + step.k) * kPanel;
    const int64_t next = (own_panels_ ? kDepth : s_.K) * kPanel;
    alignas(64) T tile[kTileRows * kPanel];
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = part_begin(count, tiles, t), rows = part_begin(count, tiles, t + 1) - i;
      const PlainRows<T> a{source + i * step.source_w, step.source_w};
      for (int64_t j = 0; j < count_of_task; ++j) {
        const int64_t c = (task.panel + j) * kPanel, lanes = smaller(kPanel, s_.C - c);
        const T* bias = step.writes && bias_ ? bias_ + c : nullptr;
        const PackedPanel<T> b{panels + j * next};
        T* at = to + j * kPanel;
        if (!joined_ && lanes % V::kLanes == 0) {
          at += i * apart;
          const T* partial = step.writes ? nullptr : at;
          const TileEnd<T> end{at, apart, lanes, nullptr, bias, partial, apart};
          multiply_panel<T>(rows, lanes, depth, a, b, end);
          continue;
        }
        multiply_panel<T>(rows, lanes, depth, a, b, TileEnd<T>{tile, kPanel, lanes});
        for (int64_t x = 0; x < rows; ++x)
          if (T* pixel = place_of(step, at, i + x))
            add_lanes(pixel, tile + x * kPanel, bias, lanes, step.writes);
      }
    }
  }

  // Where pixel i of add_pixels goes, or null if it lies outside.
  FASTCONV_INLINE T* place_of(const Step& step, T* to, int64_t i) const {
    const int64_t apart = s_.window.stride_w * step.task.band_w;
    if (!joined_) return to + i * apart;
    const AxisTap& column = columns_.data()[step.tap.s];
    const int64_t row = i / s_.Q, q = i % s_.Q;
    if (q < column.begin || q >= column.end) return nullptr;
    return to + row * s_.window.stride_h * step.task.band_h + q * apart;
  }

  FASTCONV_INLINE static void add_lanes(T* to, const T* sums, const T* bias, int64_t lanes,
                                        bool writes) {
    const T* addend = writes ? bias : to;
    for (int64_t i = 0; i < lanes; i += V::kLanes) {
      const int64_t some = smaller(lanes - i, int64_t{V::kLanes});
      V sum = load_some(sums + i, some);
      if (addend) sum = load_some(addend + i, some) + sum;
      store_some(to + i, sum, some);
    }
  }

  // Narrows the band, and brings its channels apart where planes are wanted.
  void store_band(const Task& task) const {
    const int64_t* to = s_.input.s;
    const int64_t channels = smaller(task.panel_end * kPanel, s_.C) - task.channel();
    for (int64_t n = 0; n < task.n_end - task.n; ++n)
      for (int64_t h = 0; h < task.h_end - task.h; ++h) {
        const T* from = task.band + n * task.band_n + h * task.band_h;
        S* row = result_ + (task.n + n) * to[0] + (task.h + h) * to[2] + task.channel() * to[1];
        if (to[3] == 1 && to[1] != 1) {
          store_planes(from, task.band_w, channels, row);
          continue;
        }
        for (int64_t w = 0; w < s_.W; ++w)
          store_run(row + w * to[3], to[1], from + w * task.band_w, channels, T{0});
      }
  }

  void store_planes(const T* from, int64_t stride, int64_t channels, S* to) const {
    for (int64_t c = 0; c < channels; c += V::kLanes)
      for (int64_t w = 0; w < s_.W; w += V::kLanes) {
        const int64_t columns = smaller(s_.W - w, int64_t{V::kLanes});
        V block[V::kLanes];
        for (int64_t x = 0; x < V::kLanes; ++x)
          block[x] = x < columns ? V::load(from + (w + x) * stride + c) : V::zero();
        transpose(block);
        for (int64_t x = 0; x < smaller(channels - c, int64_t{V::kLanes}); ++x)
          store_some_from_compute(to + (c + x) * s_.input.s[1] + w, block[x], columns);
      }
  }

  const Conv2dShape& s_;
  const S* grad_;
  const S* weight_;
  const T* bias_;  // or null
  S* result_;
  Scratch<AxisTap> rows_, columns_;
  Scratch<OrderedTap> taps_;
  int64_t tap_count_;               // that bring any pixel inside
  int64_t panels_;                  // of all channels
  int64_t groups_, bands_, blocks_; // of images, rows and panels: the tasks
  bool starts_;                     // from the bias, for not every phase has a tap that leads
  bool own_panels_;                 // each task packs its weights for itself
  bool direct_;                     // tiles are added to the result itself
  bool joined_;                     // rows are so short that tiles take several
  bool in_place_;                   // grad_output is read where it lies
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
