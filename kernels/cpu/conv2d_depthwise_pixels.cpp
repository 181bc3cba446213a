// Depthwise convolution, lanes are the pixels of a row: see conv2d_depthwise.h.
//
// One task = some rows of one plane of the source, with all target planes that are made of it.
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_rows.h"
#include "conv2d_depthwise_sums.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

struct PixelCut {
  int64_t rows, strips;  // target rows of a task
  int64_t slots;         // of a ring

  template <class S>
  PixelCut(const Product<S>& p, const DepthwiseRows& rows_of) {
    const PixelGrid& grid = p.source.grid;
    const int64_t group = rows_of.group();
    slots = smaller(rows_of.reach(), p.source.H);
    rows = divide_up(grid.I, group) * group;
    while (rows > group && grid.N * p.G * divide_up(grid.I, rows) < 8 * num_threads())
      rows -= group;
    rows = smaller(rows, grid.I), strips = divide_up(grid.I, rows);
  }
};

template <class S>
class PixelWorker {
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

 public:
  PixelWorker(const Product<S>& p, const DepthwiseWindow& window, const DepthwiseRows& rows,
              const DepthwiseColumns& columns, const PixelCut& cut)
      : p_(p),
        window_(window),
        rows_(rows),
        cut_(cut),
        ring_(p.source, columns, cut.slots),
        memory_(ring_.size()),
        numbers_(ring_.slots() + 2 * ring_.phases()),
        from_(rows.count(kBlockRows)),
        offsets_(window.S),
        weight_(window.taps()) {
    ring_.use(memory_.data(), numbers_.data(), numbers_.data() + ring_.slots());
    for (int64_t s = 0; s < window.S; ++s) offsets_.data()[s] = ring_.offset(s);
    block_ = {};
    block_.rows = from_.data(), block_.shared = rows.shared;
    block_.R = window.R, block_.S_ = window.S;
    block_.offset = offsets_.data(), block_.q_step = kLanes;
    block_.weight = weight_.data();
    const int64_t J = p.source.grid.J;
    block_.product = &p, block_.registers = 1;
    block_.vectors = divide_up(J, kLanes);
    block_.to_step = kLanes * p.target.stride_j, block_.to_row = rows.spacing * p.target.stride_i;
    block_.last_lanes = J - (block_.vectors - 1) * kLanes;
  }

  void run(int64_t task) {
    const int64_t strip = task % cut_.strips, g = task / cut_.strips % p_.G;
    const int64_t n = task / cut_.strips / p_.G;
    const int64_t i_begin = strip * cut_.rows;
    const int64_t i_end = smaller(i_begin + cut_.rows, p_.source.grid.I);
    ring_.start(p_.source.data + n * p_.source.stride_n + g * p_.source.stride_c);
    S* const to = p_.target.data + n * p_.target.stride_n;
    set_weight(g * p_.K);
    for (int64_t group = i_begin; group < i_end; group += rows_.group())
      for (int64_t i = group; i < smaller(group + rows_.spacing, i_end); ++i) {
        const int64_t count = smaller(divide_up(i_end - i, rows_.spacing), int64_t{kBlockRows});
        for (int64_t k = 0; k < rows_.count(count); ++k)
          from_.data()[k] = ring_.row(rows_.source_row(i, k));
        for (int64_t k = g * p_.K; k < (g + 1) * p_.K; ++k) {
          if (p_.K > 1) set_weight(k);
          block_.to = to + k * p_.target.stride_k + i * p_.target.stride_i;
          depthwise_block<false>(block_, count);
        }
      }
  }

 private:
  void set_weight(int64_t k) {
    const S* from = p_.weight + k / p_.K * p_.weight_g + k % p_.K * p_.weight_k;
    T* weight = weight_.data();
    for (int64_t r = 0; r < window_.R; ++r)
      for (int64_t s = 0; s < window_.S; ++s)
        *weight++ = to_compute(from[p_.source.taps[window_.number(r, s)].weight]);
    block_.channel = k;
    block_.bias = p_.bias ? p_.bias + k : nullptr;
  }

  const Product<S>& p_;
  const DepthwiseWindow& window_;
  const DepthwiseRows& rows_;
  const PixelCut& cut_;
  DepthwisePixelRows<S> ring_;
  Scratch<T> memory_;
  Scratch<int64_t> numbers_;
  Scratch<const T*> from_;
  Scratch<int64_t> offsets_;
  Scratch<T> weight_;
  DepthwiseBlock<S> block_;
};

template <class S>
void run(const Product<S>& p) {
  const DepthwiseWindow window(p.source);
  const DepthwiseRows rows(window, p.source);
  const DepthwiseColumns columns(window, p.source);
  const PixelCut cut(p, rows);
  const int64_t work = cut.rows * p.source.grid.J * p.K * (window.taps() + 8);
  parallel_for(p.source.grid.N * p.G * cut.strips, (int64_t{1} << 16) / work + 1,
               [&](int64_t begin, int64_t end) {
                 PixelWorker<S> worker(p, window, rows, columns, cut);
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
