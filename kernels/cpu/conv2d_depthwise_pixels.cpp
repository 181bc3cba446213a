// Depthwise convolution, lanes are the pixels of a row: see conv2d_depthwise.h.
//
// One task = some rows of one plane of the source, with all target planes that are made of it. Its
// source rows are brought into a patch, padded with zeros and split by phase of the stride, so that
// every tap reads contiguously:
//
//   patch[h][phase][x]   column x * step + phase of DepthwiseColumns, widened
//
// With more phases than taps in a row, each tap has a copy of its own instead.
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_pixel_sums.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kPatchBytes = int64_t{20} << 10;  // stays in L1, beside what is written

template <class S>
struct PixelCut {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  bool by_phase;  // else by tap
  int64_t phases;
  int64_t phase_stride;  // elements
  int64_t rows, strips;  // target rows of a task
  int64_t source_rows;   // that a task reads

  PixelCut(const Product<S>& p, const DepthwiseWindow& window, const DepthwiseColumns& columns,
           const DepthwiseRows& rows_of) {
    const PixelGrid& grid = p.source.grid;
    by_phase = columns.step <= window.S;
    phases = by_phase ? columns.step : window.S;
    const int64_t pixels = divide_up(grid.J, kLanes) * kLanes;
    phase_stride = by_phase ? divide_up(columns.count(pixels), columns.step) : pixels;
    phase_stride = divide_up(phase_stride, kLanes) * kLanes + kLanes;

    const int64_t step = p.source.step_h, row = phases * phase_stride * int64_t{sizeof(T)};
    const int64_t reach = (window.R - 1) * window.dilation_h + 1, group = rows_of.group();
    rows = larger((kPatchBytes / row - reach) / step, 2 * reach / step);
    rows = divide_up(larger(rows, int64_t{1}), group) * group;
    while (rows > group && grid.N * p.G * divide_up(grid.I, rows) < 4 * num_threads())
      rows -= group;
    strips = divide_up(grid.I, rows), rows = divide_up(divide_up(grid.I, strips), group) * group;
    rows = smaller(rows, grid.I), strips = divide_up(grid.I, rows);
    source_rows = smaller((rows - 1) * step + reach, p.source.H);
  }

  int64_t row_stride() const { return phases * phase_stride; }
};

template <class S>
class PixelWorker {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  PixelWorker(const Product<S>& p, const DepthwiseWindow& window, const DepthwiseColumns& columns,
              const DepthwiseRows& rows, const PixelCut<S>& cut)
      : p_(p),
        window_(window),
        columns_(columns),
        rows_(rows),
        cut_(cut),
        patch_(cut.source_rows, cut.row_stride()),
        block_rows_(rows.count(kBlockRows)),
        from_(block_count(), block_rows_),
        offsets_(window.S),
        taps_(window.taps()),
        weight_(window.taps()),
        phases_(cut.phases) {
    clear_run(patch_.data(), cut.source_rows * cut.row_stride());
    set_phases();
    for (int64_t t = 0; t < window.taps(); ++t)
      taps_.data()[t] = p.source.taps[window.number(t / window.S, t % window.S)].weight;
    task_ = {};
    task_.shared = rows.shared;
    task_.window_rows = window.R, task_.window_columns = window.S;
    task_.offset = offsets_.data(), task_.weight = weight_.data();
    task_.to_row = rows.spacing * p.target.stride_i, task_.to_step = p.target.stride_j;
    task_.pixels = p.source.grid.J, task_.finish = p.finish;
  }

  void run(int64_t task) {
    const Place place = place_of(task);
    if (place.strip != strip_) find_rows(place);
    fill_patch(place);
    for (int64_t k = place.g * p_.K; k < (place.g + 1) * p_.K; ++k) {
      set_weight(k);
      S* const to = p_.target.data + place.n * p_.target.stride_n + k * p_.target.stride_k;
      const T* const* rows = from_.data();
      for (int64_t group = place.i; group < place.i_end; group += rows_.group())
        for (int64_t i = group; i < smaller(group + rows_.spacing, place.i_end); ++i) {
          const int64_t left = place.i_end - i;
          const int64_t count = rows_.spacing == 1 ? left : divide_up(left, rows_.spacing);
          pixel_sums(task_, rows, to + i * p_.target.stride_i, smaller(count, int64_t{kBlockRows}));
          rows += block_rows_;
        }
    }
  }

 private:
  struct Place {
    int64_t n, g, strip, i, i_end;
  };

  FASTCONV_INLINE Place place_of(int64_t task) const {
    const int64_t strip = task % cut_.strips, plane = task / cut_.strips;
    const int64_t i = strip * cut_.rows;
    return {plane / p_.G, plane % p_.G, strip, i, smaller(i + cut_.rows, p_.source.grid.I)};
  }

  // Blocks of rows that are not empty come first in the last group as well, for its rows are few.
  int64_t block_count() const { return divide_up(cut_.rows, rows_.group()) * rows_.spacing; }

  // Elements [begin, end) of a phase lie inside, and x = 0 at `at` of a row: so that what lies inside
  // begins at a register's boundary.
  struct Phase {
    int64_t begin, end, at;
    int64_t column;  // of x = 0, in the source
  };

  void set_phases() {
    const int64_t unit = columns_.unit, step = columns_.step * unit;
    for (int64_t i = 0; i < cut_.phases; ++i) {
      const int64_t column = columns_.first + i * unit * (cut_.by_phase ? 1 : columns_.dilation);
      const int64_t most = cut_.phase_stride - kLanes;
      const int64_t begin = smaller(column >= 0 ? 0 : divide_up(-column, step), most);
      const int64_t end =
          smaller(column >= p_.source.W ? 0 : divide_up(p_.source.W - column, step), most);
      phases_.data()[i] = {begin, end, i * cut_.phase_stride + (kLanes - begin % kLanes) % kLanes,
                           column};
    }
    for (int64_t s = 0; s < window_.S; ++s) {
      const int64_t x = s * columns_.dilation;
      offsets_.data()[s] = cut_.by_phase ? phases_.data()[x % columns_.step].at + x / columns_.step
                                         : phases_.data()[s].at;
    }
  }

  // The source rows of a task: the first one, and how many.
  FASTCONV_INLINE int64_t first_row(const Place& place) const {
    return larger(place.i * p_.source.step_h + window_.h, int64_t{0});
  }
  FASTCONV_INLINE int64_t row_count(const Place& place) const {
    const int64_t last =
        (place.i_end - 1) * p_.source.step_h + window_.h + (window_.R - 1) * window_.dilation_h;
    return larger(smaller(last + 1, p_.source.H) - first_row(place), int64_t{0});
  }
  FASTCONV_INLINE const S* plane_of(const Place& place) const {
    return p_.source.data + place.n * p_.source.stride_n + place.g * p_.source.stride_c;
  }

  // All rows at once, for the machine waits longer for rows that come piece by piece between the sums,
  // and longer still where they are fetched ahead (Zen 4, 2026-11).
  void fill_patch(const Place& place) {
    const PixelSource<S>& source = p_.source;
    const S* const plane = plane_of(place);
    const int64_t h = first_row(place), rows = row_count(place);
    const int64_t step = columns_.step * columns_.unit * source.stride_w;
    for (int64_t i_phase = 0; i_phase < cut_.phases; ++i_phase) {
      const Phase phase = phases_.data()[i_phase];
      const int64_t count = phase.end - phase.begin;
      if (count <= 0) continue;
      T* to = patch_.data() + phase.at + phase.begin;
      const S* from =
          plane + h * source.stride_h +
          (phase.column + phase.begin * columns_.step * columns_.unit) * source.stride_w;
      for (int64_t r = 0; r < rows; ++r, to += cut_.row_stride(), from += source.stride_h)
        fill_row(to, from, step, count);
    }
  }

  // Whole registers: what is behind the row's end is zero in any case.
  FASTCONV_INLINE static void fill_row(T* to, const S* from, int64_t step, int64_t count) {
    if (step != 1) return copy_run(to, from, step, count);
    int64_t x = 0;
    for (; x + kLanes <= count; x += kLanes) load_as_compute(from + x).store(to + x);
    if (x < count) load_some_as_compute(from + x, count - x).store(to + x);
  }

  // What the blocks of a strip read: the same for all planes.
  void find_rows(const Place& place) {
    strip_ = place.strip;
    int64_t blocks = 0;
    const T* patch = patch_.data() - first_row(place) * cut_.row_stride();
    for (int64_t group = place.i; group < place.i_end; group += rows_.group())
      for (int64_t i = group; i < smaller(group + rows_.spacing, place.i_end); ++i) {
        const T** rows = from_.data() + blocks++ * block_rows_;
        for (int64_t k = 0; k < block_rows_; ++k) {
          const int64_t h = rows_.source_row(i, k);
          rows[k] = h >= 0 && h < p_.source.H ? patch + h * cut_.row_stride() : nullptr;
        }
      }
  }

  void set_weight(int64_t k) {
    const S* from = p_.weight + k / p_.K * p_.weight_g + k % p_.K * p_.weight_k;
    for (int64_t t = 0; t < window_.taps(); ++t)
      weight_.data()[t] = to_compute(from[taps_.data()[t]]);
    task_.channel = k;
    task_.bias = p_.bias ? p_.bias[k] : T{0};
  }

  const Product<S>& p_;
  const DepthwiseWindow& window_;
  const DepthwiseColumns& columns_;
  const DepthwiseRows& rows_;
  const PixelCut<S>& cut_;
  Scratch<T> patch_;
  int64_t block_rows_;  // source rows of a block, as many pointers in from_
  Scratch<const T*> from_;
  Scratch<int64_t> offsets_, taps_;  // of the window's columns in a row; of its taps in the weight
  Scratch<T> weight_;
  Scratch<Phase> phases_;
  PixelSumsTask<S> task_;
  int64_t strip_ = -1;  // that from_ is about
};

template <class S>
void run(const Product<S>& p) {
  const DepthwiseWindow window(p.source);
  const DepthwiseColumns columns(window, p.source);
  const DepthwiseRows rows(window, p.source);
  const PixelCut<S> cut(p, window, columns, rows);
  const int64_t work = cut.rows * p.source.grid.J * p.K * (window.taps() + 8);
  parallel_for(p.source.grid.N * p.G * cut.strips, (int64_t{1} << 16) / work + 1,
               [&](int64_t begin, int64_t end) {
                 PixelWorker<S> worker(p, window, columns, rows, cut);
                 for (int64_t task = begin; task < end; ++task) worker.run(task);
               });
}

}  // namespace

#define FASTCONV_DEPTHWISE(S) \
  void run_depthwise_pixels(const Product<S>& p) { run(p); }
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cpu::FASTCONV_ISA
