// See conv2d_depthwise_weight_grad.h. One task = one chunk of rows times some registers of channels.
#include "conv2d_depthwise_weight_grad.h"

#include "conv2d_depthwise_planes.h"
#include "conv2d_depthwise_weight_sums.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// A strip's rows of source and grad, of all channels where they are read in place: stay in L2. Those
// of a patch, of one register, do so as well.
constexpr int64_t kStripBytes = int64_t{192} << 10, kPatchBytes = int64_t{160} << 10;
// Pixels that are summed one after the other at least, and chunks at most.
constexpr int64_t kChunkPixels = 1024, kMostChunks = 32;

struct WeightGradCut {
  bool in_place;              // else by way of patches
  int64_t channels, all;      // of grad; registers of them
  int64_t rows, strips;       // of grad in a strip; of an image
  int64_t source_rows;        // that a strip reads
  int64_t chunks;             // of all strips of all images
  int64_t registers, groups;  // of a task; of a chunk

  template <class S>
  WeightGradCut(const PixelSource<S>& source, const PixelSource<S>& grad,
                const DepthwiseWindow& window, int64_t G, int64_t K) {
    using T = Compute<S>;
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const PixelGrid& grid = source.grid;
    channels = G * K, all = divide_up(channels, kLanes);
    in_place = K == 1 && source.stride_c == 1 && grad.stride_c == 1 && channels >= kLanes;
    const int64_t pixels = source.W * source.step_h + grid.J;
    const int64_t reach = (window.R - 1) * window.dilation_h + 1;
    rows = in_place ? kStripBytes / (pixels * channels * int64_t{sizeof(S)})
                    : kPatchBytes / (pixels * kLanes * int64_t{sizeof(T)});
    rows = smaller(larger(rows, divide_up(reach, source.step_h)), grid.I);
    strips = divide_up(grid.I, rows), rows = divide_up(grid.I, strips);
    strips = divide_up(grid.I, rows);
    source_rows = smaller((rows - 1) * source.step_h + reach, source.H);

    chunks = smaller(larger(grid.count() / kChunkPixels, int64_t{1}), kMostChunks);
    chunks = smaller(chunks, grid.N * strips);
    // Runs of many channels are read faster; threads want their share.
    groups = in_place ? smaller(divide_up(int64_t{4} * num_threads(), chunks), all) : all;
    registers = divide_up(all, groups), groups = divide_up(all, registers);
  }
};

template <class S>
class WeightGradWorker {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  WeightGradWorker(const PixelSource<S>& source, const PixelSource<S>& grad,
                   const DepthwiseWindow& window, int64_t K, const WeightGradCut& cut)
      : source_(source),
        grad_(grad),
        window_(window),
        columns_(window, source),
        K_(K),
        cut_(cut),
        source_patch_(cut.in_place ? 0 : cut.source_rows * source.W, kLanes),
        grad_patch_(cut.in_place ? 0 : cut.rows * source.grid.J, kLanes) {}

  // sums: [register][taps][kLanes]
  void run(int64_t chunk, int64_t first, int64_t count, T* sums) {
    const int64_t all = source_.grid.N * cut_.strips, taps = window_.taps() * kLanes;
    clear_run(sums, count * taps);
    const int64_t begin = all * chunk / cut_.chunks, end = all * (chunk + 1) / cut_.chunks;
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t n = strip / cut_.strips, i = strip % cut_.strips * cut_.rows;
      const int64_t i_end = smaller(i + cut_.rows, source_.grid.I);
      for (int64_t b = first; b < first + count; ++b, sums += taps)
        cut_.in_place ? add_in_place(n, i, i_end, b, sums) : add_patch(n, i, i_end, b, sums);
      sums -= count * taps;
    }
  }

 private:
  template <class E>
  WeightSumsTask<E> task_of(T* sums) const {
    WeightSumsTask<E> task = {};
    task.H = source_.H, task.h = window_.h;
    task.step_h = source_.step_h, task.dilation_h = window_.dilation_h;
    task.step = columns_.step, task.dilation = columns_.dilation;
    columns_.inside(0, source_.W, columns_.count(source_.grid.J), task.x_begin, task.x_end);
    task.pixels = source_.grid.J;
    task.window_rows = window_.R, task.window_columns = window_.S;
    task.sums = sums;
    return task;
  }

  void add_in_place(int64_t n, int64_t i, int64_t i_end, int64_t b, T* sums) const {
    const int64_t k = smaller(b * kLanes, cut_.channels - kLanes);
    auto task = task_of<S>(sums);
    task.source = source_.data + n * source_.stride_n + k + columns_.first * source_.stride_w;
    task.source_row = source_.stride_h, task.pitch = columns_.unit * source_.stride_w;
    task.grad = grad_.data + n * grad_.stride_n + k;
    task.grad_row = grad_.stride_h, task.grad_step = grad_.stride_w;
    add_weight_sums(task, i, i_end);
  }

  void add_patch(int64_t n, int64_t i, int64_t i_end, int64_t b, T* sums) {
    const int64_t k = b * kLanes, lanes = smaller(kLanes, cut_.channels - k);
    const int64_t h = larger(i * source_.step_h + window_.h, int64_t{0});
    const int64_t last =
        (i_end - 1) * source_.step_h + window_.h + (window_.R - 1) * window_.dilation_h;
    const int64_t rows = larger(smaller(last + 1, source_.H) - h, int64_t{0});
    const auto index = lanes_of_source<T>(k, lanes, K_);
    gather_pixels(
        source_,
        source_.data + n * source_.stride_n + h * source_.stride_h + k / K_ * source_.stride_c,
        rows, (k + lanes - 1) / K_ - k / K_ + 1, source_patch_.data(), kLanes,
        [&](V v) { return K_ == 1 ? v : permute(v, index); });
    gather_pixels(grad_, grad_.data + n * grad_.stride_n + i * grad_.stride_h + k * grad_.stride_c,
                  i_end - i, lanes, grad_patch_.data(), kLanes, [](V v) { return v; });
    auto task = task_of<T>(sums);
    task.source_row = source_.W * kLanes, task.pitch = columns_.unit * kLanes;
    task.source = source_patch_.data() - h * task.source_row + columns_.first * kLanes;
    task.grad_row = source_.grid.J * kLanes, task.grad_step = kLanes;
    task.grad = grad_patch_.data() - i * task.grad_row;
    add_weight_sums(task, i, i_end);
  }

  const PixelSource<S>&source_, &grad_;
  const DepthwiseWindow& window_;
  DepthwiseColumns columns_;
  int64_t K_;
  const WeightGradCut& cut_;
  Scratch<T> source_patch_, grad_patch_;
};

// The chunks' sums, [chunk][register][taps][kLanes], are added into those of the first one and stored.
template <class S>
void finish_register(const PixelSource<S>& source, const WeightGradCut& cut, int64_t b,
                     Compute<S>* sums, S* grad_weight, int64_t stride_k) {
  using T = Compute<S>;
  using V = Vec<T>;
  const int64_t taps = source.tap_count, size = taps * V::kLanes;
  sums += b * size;
  for (int64_t t = 0; t < size; t += V::kLanes) {
    V sum = V::load(sums + t);
    for (int64_t chunk = 1; chunk < cut.chunks; ++chunk)
      sum = sum + V::load(sums + chunk * cut.all * size + t);
    sum.store(sums + t);
  }
  // What the last register has in common with the one before is stored by that one.
  const int64_t shift =
      cut.in_place ? larger(b * V::kLanes - (cut.channels - V::kLanes), int64_t{0}) : 0;
  const int64_t k = b * V::kLanes - shift;
  const int64_t lanes = smaller(int64_t{V::kLanes}, cut.channels - k);
  bool run = true;
  for (int64_t t = 0; t < taps; ++t) run &= source.taps[t].weight == t;
  if (run) {
    transpose_pixels(sums, int64_t{V::kLanes}, taps, lanes,
                     [&](int l, int64_t t, V some, int64_t count) {
                       if (l >= shift)
                         store_some_from_compute(grad_weight + (k + l) * stride_k + t, some, count);
                     });
  } else {
    for (int64_t l = shift; l < lanes; ++l)
      for (int64_t t = 0; t < taps; ++t)
        grad_weight[(k + l) * stride_k + source.taps[t].weight] =
            from_compute<S>(sums[t * V::kLanes + l]);
  }
}

template <class S>
void run(const PixelSource<S>& source, const PixelSource<S>& grad, int64_t G, int64_t K,
         S* grad_weight, int64_t stride_k) {
  using T = Compute<S>;
  if (source.grid.count() == 0) {  // nothing to cut
    for (int64_t k = 0; k < G * K; ++k)
      for (int64_t t = 0; t < source.tap_count; ++t)
        grad_weight[k * stride_k + source.taps[t].weight] = from_compute<S>(T{0});
    return;
  }
  const DepthwiseWindow window(source);
  const WeightGradCut cut(source, grad, window, G, K);
  const int64_t size = window.taps() * Vec<T>::kLanes;
  Scratch<T> sums(cut.chunks, cut.all, size);
  parallel_for(cut.chunks * cut.groups, 1, [&](int64_t begin, int64_t end) {
    WeightGradWorker<S> worker(source, grad, window, K, cut);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / cut.groups, first = task % cut.groups * cut.registers;
      worker.run(chunk, first, smaller(cut.registers, cut.all - first),
                 sums.data() + (chunk * cut.all + first) * size);
    }
  });
  parallel_for(cut.all, (int64_t{1} << 12) / (size * cut.chunks) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t b = begin; b < end; ++b)
                   finish_register(source, cut, b, sums.data(), grad_weight, stride_k);
               });
}

}  // namespace

#define FASTCONV_DEPTHWISE(S)                                                                     \
  void depthwise_weight_grad(const PixelSource<S>& source, const PixelSource<S>& grad, int64_t G, \
                             int64_t K, S* grad_weight, int64_t stride_k) {                       \
    run(source, grad, G, K, grad_weight, stride_k);                                               \
  }
FASTCONV_DEPTHWISE(float)
FASTCONV_DEPTHWISE(double)
FASTCONV_DEPTHWISE(Float16)
FASTCONV_DEPTHWISE(BFloat16)
#undef FASTCONV_DEPTHWISE

}  // namespace fastconv::cpu::FASTCONV_ISA
