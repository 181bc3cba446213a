// Depthwise convolution, lanes are channels: see conv2d_depthwise.h.
//
// One task = some rows of a piece of an image's width times some registers of target channels. NHWC is
// read and written as it lies in memory: pixel by pixel, all channels of the task. Planes (NCHW) of
// few pixels are transposed on their way into the ring of source rows and on their way out of the
// sums, a register at a time.
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_rows.h"
#include "conv2d_depthwise_sums.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// A ring of rows of many channels stays in L2, one of few in L1; so does a whole plane with its sums.
constexpr int64_t kWideRingBytes = int64_t{256} << 10, kRingBytes = int64_t{24} << 10;
constexpr int64_t kWholeBytes = int64_t{40} << 10;

// How the work is cut: by the machine as it likes, for no sum is.
struct ChannelCut {
  bool planes;                  // source or target have their channels apart
  int64_t registers, chunks;    // of target channels in a task; tasks of a pixel
  int64_t columns, pieces;      // of a target row
  int64_t rows, strips;         // target rows of a task
  int64_t slots;                // of a ring
  int64_t sums_rows;            // target rows that are brought into planes at once

  template <class S>
  ChannelCut(const Product<S>& p, const DepthwiseRows& rows_of, const DepthwiseColumns& columns_of) {
    using T = Compute<S>;
    constexpr int64_t kLanes = Vec<T>::kLanes, kBytes = kLanes * int64_t{sizeof(T)};
    const PixelSource<S>& source = p.source;
    const PixelGrid& grid = source.grid;
    const int64_t all = divide_up(p.G * p.K, kLanes), group = rows_of.group();
    planes = p.target.stride_k != 1 || source.stride_c != 1;
    slots = smaller(rows_of.reach(), source.H);

    // Columns: as many as fit beside each other with `least` registers of channels.
    const int64_t least = planes ? 1 : smaller(all, int64_t{8});
    const int64_t ring = planes ? kRingBytes : kWideRingBytes;
    const int64_t halo = columns_of.count(1) - 1, most = ring / (slots * least * kBytes);
    columns = larger((most - halo) / columns_of.step,
                     larger(2 * halo / columns_of.step, int64_t{16}));
    pieces = divide_up(grid.J, columns), columns = divide_up(grid.J, pieces);
    pieces = divide_up(grid.J, columns);

    registers = planes ? 1 : ring / (slots * columns_of.count(columns) * kBytes);
    registers = smaller(larger(registers, least), all);
    chunks = divide_up(all, registers), registers = divide_up(all, chunks);
    chunks = divide_up(all, registers);

    // Rows: a strip begins with rows that its neighbour reads as well.
    const int64_t threads = num_threads(), others = grid.N * pieces * chunks;
    rows = grid.I;
    if (others < 4 * threads && grid.I > 2 * group) rows = divide_up(grid.I, divide_up(4 * threads, others));
    rows = smaller(larger(rows, 2 * group), grid.I), strips = divide_up(grid.I, rows);
    rows = divide_up(grid.I, strips), strips = divide_up(grid.I, rows);
    if (others * strips < 2 * threads && registers > 1) {
      registers = divide_up(registers, int64_t{2});
      chunks = divide_up(all, registers);
    }
    const int64_t whole = (source.H * columns_of.count(columns) + grid.I * grid.J) * kBytes;
    const bool is_whole = planes && strips == 1 && pieces == 1 && whole <= kWholeBytes;
    if (is_whole) slots = source.H;
    sums_rows = planes ? (is_whole ? grid.I : kBlockRows) : 0;
  }
};

template <class S>
class ChannelWorker {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  ChannelWorker(const Product<S>& p, const DepthwiseWindow& window, const DepthwiseRows& rows,
                const DepthwiseColumns& columns, const ChannelCut& cut)
      : p_(p),
        window_(window),
        rows_(rows),
        cut_(cut),
        ring_(p.source, columns, divide_up(cut.columns, int64_t{kBlockVectors}) * kBlockVectors,
              cut.slots, cut.registers, p.K),
        memory_(ring_.size()),
        tags_(ring_.slots()),
        from_(rows.count(kBlockRows)),
        offsets_(window.S),
        weight_(cut.chunks * cut.registers, window.taps() * kLanes),
        has_weight_(cut.chunks),
        bias_(cut.registers * kLanes),
        sums_(cut.sums_rows * cut.columns * kLanes) {
    ring_.use(memory_.data(), tags_.data());
    for (int64_t s = 0; s < window.S; ++s) offsets_.data()[s] = ring_.offset(s);
    for (int64_t c = 0; c < cut.chunks; ++c) has_weight_.data()[c] = false;
    clear_run(bias_.data(), cut.registers * kLanes);
    block_ = {};
    block_.rows = from_.data(), block_.shared = rows.shared;
    block_.R = window.R, block_.S_ = window.S;
    block_.offset = offsets_.data(), block_.q_step = ring_.pixel_step();
    block_.product = &p;
  }

  void run(int64_t task) {
    const int64_t chunk = task % cut_.chunks, piece = task / cut_.chunks % cut_.pieces;
    const int64_t strip = task / cut_.chunks / cut_.pieces % cut_.strips;
    const int64_t n = task / cut_.chunks / cut_.pieces / cut_.strips;
    const PixelGrid& grid = p_.source.grid;
    const int64_t most = cut_.registers * kLanes, k = chunk * most;
    const int64_t channels = smaller(most, p_.G * p_.K - k), j = piece * cut_.columns;
    block_.channel = k, block_.registers = divide_up(channels, kLanes);
    block_.last_lanes = channels - (block_.registers - 1) * kLanes;
    block_.vectors = smaller(cut_.columns, grid.J - j);
    block_.weight = weight_of(chunk);
    if (p_.bias) copy_run(bias_.data(), p_.bias + k, 1, channels);
    block_.bias = p_.bias ? bias_.data() : nullptr;
    ring_.start(p_.source.data + n * p_.source.stride_n, k, channels, j);
    to_ = p_.target.data + n * p_.target.stride_n + j * p_.target.stride_j + k * p_.target.stride_k;
    const int64_t i = strip * cut_.rows, i_end = smaller(i + cut_.rows, grid.I);
    if (p_.target.stride_k == 1)
      for_each_block(i, i_end, [&](int64_t first, int64_t count) { sum_channels(first, count); });
    else
      sum_planes(i, i_end);
  }

 private:
  // Calls block(i, count) for target rows i, i + rows_.spacing, ..., `count` of them.
  template <class Block>
  FASTCONV_INLINE void for_each_block(int64_t i, int64_t i_end, const Block& block) {
    for (int64_t group = i; group < i_end; group += rows_.group())
      for (int64_t first = group; first < smaller(group + rows_.spacing, i_end); ++first) {
        const int64_t count = divide_up(i_end - first, rows_.spacing);
        block(first, smaller(count, int64_t{kBlockRows}));
      }
  }

  void find_rows(int64_t i, int64_t count) {
    for (int64_t k = 0; k < rows_.count(count); ++k)
      from_.data()[k] = ring_.row(rows_.source_row(i, k));
  }

  void sum_channels(int64_t i, int64_t count) {
    find_rows(i, count);
    block_.raw = nullptr, block_.to = to_ + i * p_.target.stride_i;
    block_.to_step = p_.target.stride_j, block_.to_row = rows_.spacing * p_.target.stride_i;
    depthwise_block<true>(block_, count);
  }

  void sum_planes(int64_t i, int64_t i_end) {
    const int64_t columns = block_.vectors;
    block_.to_step = kLanes, block_.to_row = columns * kLanes;
    const bool joined = p_.target.stride_i == columns * p_.target.stride_j;
    if (cut_.sums_rows >= i_end - i) {
      block_.to_row *= rows_.spacing;
      for_each_block(i, i_end, [&](int64_t first, int64_t count) {
        find_rows(first, count);
        block_.raw = sums_.data() + (first - i) * columns * kLanes;
        depthwise_block<true>(block_, count);
      });
      return store_rows(to_ + i * p_.target.stride_i, p_.target.stride_i, i_end - i, joined);
    }
    for_each_block(i, i_end, [&](int64_t first, int64_t count) {
      find_rows(first, count);
      block_.raw = sums_.data();
      depthwise_block<true>(block_, count);
      store_rows(to_ + first * p_.target.stride_i, rows_.spacing * p_.target.stride_i, count,
                 joined && rows_.spacing == 1);
    });
  }

  // Brings the sums of `count` rows, `between` apart, into planes; rows without gaps are one.
  void store_rows(S* to, int64_t between, int64_t count, bool joined) const {
    const int64_t columns = block_.vectors;
    if (joined) return store_planes(to, sums_.data(), count * columns);
    for (int64_t r = 0; r < count; ++r)
      store_planes(to + r * between, sums_.data() + r * columns * kLanes, columns);
  }

  void store_planes(S* to, const T* sums, int64_t pixels) const {
    const Target<S>& target = p_.target;
    const bool plain = target.stride_j == 1 && !p_.finish;
    for (int64_t m = 0; m < pixels; m += kLanes, sums += kLanes * kLanes) {
      const int64_t count = smaller(pixels - m, kLanes);
      V block[V::kLanes];
#pragma GCC unroll 16
      for (int q = 0; q < kLanes; ++q)
        block[q] = V::load(sums + (q < count ? q : 0) * kLanes);
      transpose(block);
      S* at = to + m * target.stride_j;
      if (plain && count == kLanes && block_.last_lanes == kLanes) {
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) store_from_compute(at + l * target.stride_k, block[l]);
      } else if (plain) {
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l)
          if (l < block_.last_lanes)
            store_some_from_compute(at + l * target.stride_k, block[l], count);
      } else {
        alignas(64) T some[kLanes][kLanes];
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) block[l].store(some[l]);
        for (int64_t l = 0; l < block_.last_lanes; ++l)
          p_.store_pixels(at + l * target.stride_k, some[l], count, block_.channel + l);
      }
    }
  }

  const T* weight_of(int64_t chunk) {
    const int64_t size = window_.taps() * kLanes;
    T* weight = weight_.data() + chunk * cut_.registers * size;
    if (!has_weight_.data()[chunk])
      for (int64_t b = 0; b < block_.registers; ++b)
        pack_depthwise_weight(p_, window_, block_.channel + b * kLanes, weight + b * size);
    has_weight_.data()[chunk] = true;
    return weight;
  }

  const Product<S>& p_;
  const DepthwiseWindow& window_;
  const DepthwiseRows& rows_;
  const ChannelCut& cut_;
  DepthwiseChannelRows<S> ring_;
  Scratch<T> memory_;
  Scratch<int64_t> tags_;
  Scratch<const T*> from_;
  Scratch<int64_t> offsets_;
  Scratch<T> weight_;
  Scratch<bool> has_weight_;
  Scratch<T> bias_, sums_;
  DepthwiseBlock<S> block_;
  S* to_ = nullptr;
};

template <class S>
void run(const Product<S>& p) {
  const DepthwiseWindow window(p.source);
  const DepthwiseRows rows(window, p.source);
  const DepthwiseColumns columns(window, p.source);
  const ChannelCut cut(p, rows, columns);
  const int64_t tasks = p.source.grid.N * cut.strips * cut.pieces * cut.chunks;
  const int64_t work = cut.rows * cut.columns * cut.registers * (window.taps() + 8);
  parallel_for(tasks, (int64_t{1} << 12) / work + 1, [&](int64_t begin, int64_t end) {
    ChannelWorker<S> worker(p, window, rows, columns, cut);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
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
