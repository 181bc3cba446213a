// Grouped convolution, lanes are channels: see conv2d_grouped.h.
//
// One task = some target rows of one image times one block: the groups of a register (rotated) or one
// group (broadcast). The source rows that a target row reads are kept in a ring.
#include "conv2d_grouped_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Pixels of a row that a ring holds at most: three rows and a block's weights stay in L1.
constexpr int64_t kRingPixels = 128;
// Source bytes of a strip whose blocks follow each other, and a weight that stays in L2 beside them.
constexpr int64_t kStripBytes = int64_t{256} << 10, kCachedWeight = int64_t{512} << 10;
constexpr int64_t kStoredPixels = 64;  // that are brought into planes at once
constexpr int64_t kLeastRows = 8;      // of a strip: its first rows are copied in vain

// How the work is cut: by the machine as it likes, for no sum is.
struct Cut {
  int64_t groups, blocks;      // groups of a block
  int64_t columns, pieces;     // of a target row
  int64_t rows, strips;        // target rows of a task
  int64_t block_size, others;  // elements of a block's weight; tasks of a block
  bool blocks_first;           // a strip's blocks follow each other
  bool planes;                 // the target's pixels lie next to each other, not its channels
  int64_t batch,
      sums_stride;  // then: target rows that are stored at once, their channels rounded up

  template <class S>
  Cut(const Product<S>& p, bool rotated) {
    constexpr int64_t kLanes = Vec<Compute<S>>::kLanes;
    const PixelSource<S>& source = p.source;
    const PixelGrid& grid = source.grid;
    groups = rotated ? groups_of_block(p) : 1, blocks = divide_up(p.G, groups);
    block_size = grouped_weight_size(p) / blocks;
    pieces = divide_up(grid.J, kRingPixels), columns = divide_up(grid.J, pieces);
    pieces = divide_up(grid.J, columns);
    const int64_t row_bytes =
        columns * source.step_w * source.step_h * p.G * source.C * int64_t{sizeof(S)};
    rows = smaller(larger(kStripBytes / row_bytes, kLeastRows), grid.I);
    while (rows > kLeastRows &&
           grid.N * blocks * pieces * divide_up(grid.I, rows) < 4 * num_threads())
      rows = divide_up(rows, int64_t{2});
    strips = divide_up(grid.I, rows), others = grid.N * strips * pieces;
    planes = p.target.stride_k != 1;
    const bool plane = pieces == 1 && p.target.stride_i == grid.J * p.target.stride_j;
    batch = planes && plane ? smaller(larger(kStoredPixels / columns, int64_t{1}), rows) : 1;
    sums_stride = divide_up(p.K, kLanes) * kLanes;
    blocks_first = blocks * block_size * int64_t{sizeof(Compute<S>)} <= kCachedWeight;
  }
};

// One thread's share: rows of one block after the other.
template <class S>
class ChannelWorker {
 public:
  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  ChannelWorker(const Product<S>& p, const Cut& cut, const LaneIndex<T>* permutations)
      : p_(p),
        cut_(cut),
        rotated_(permutations != nullptr),
        ring_(p.source, cut.groups * p.source.C, cut.columns, 1, kLanes),
        memory_(ring_.size()),
        tags_(ring_.slots()),
        numbers_(p.source.tap_count),
        from_(p.source.tap_count),
        sums_(cut.batch * cut.columns, cut.planes ? cut.sums_stride : 0) {
    ring_.use(memory_.data(), tags_.data());
    row_.from = from_.data(), row_.numbers = numbers_.data(), row_.all_taps = p.source.tap_count;
    row_.to_stride = p.target.stride_j;
    row_.sums_stride = cut.sums_stride;
    row_.permutations = permutations, row_.passes = divide_up(p.K, kRotations);
    row_.C = p.source.C, row_.chunk = ring_.chunk();
  }

  // Target rows [i, i_end), columns [j, j + columns) of a block.
  void run(int64_t block, const T* weight, int64_t n, int64_t i, int64_t i_end, int64_t j,
           int64_t columns) {
    const Target<S>& target = p_.target;
    const int64_t g = block * cut_.groups, groups = smaller(cut_.groups, p_.G - g);
    const int64_t C = p_.source.C;
    ring_.start(p_.source.data + n * p_.source.stride_n + g * C * p_.source.stride_c, groups * C, j,
                columns);
    row_.weight = weight + block * cut_.block_size;
    row_.channels = groups * p_.K, row_.bias = p_.bias ? p_.bias + g * p_.K : nullptr;
    row_.finish = p_.finish, row_.channel = g * p_.K;
    S* const to =
        target.data + n * target.stride_n + j * target.stride_j + g * p_.K * target.stride_k;
    for (int64_t q = i; q < i_end; q += cut_.batch) {
      const int64_t rows = smaller(cut_.batch, i_end - q);
      for (int64_t r = 0; r < rows; ++r) {
        row_.to = to + (q + r) * target.stride_i;
        if (cut_.planes) row_.sums = sums_.data() + r * columns * cut_.sums_stride;
        run_row(q + r, columns);
      }
      row_.sums = sums_.data();
      if (cut_.planes)
        store_planes(row_, rows * columns, to + q * target.stride_i, target.stride_k);
    }
  }

 private:
  void run_row(int64_t i, int64_t columns) {
    row_.taps = 0;
    for (int64_t t = 0; t < p_.source.tap_count; ++t)
      if (const T* at = ring_.tap(i, t)) {
        from_.data()[row_.taps] = at;
        numbers_.data()[row_.taps++] = t;
      }
    rotated_ ? rotated_row(row_, columns) : broadcast_row(row_, columns);
  }

  const Product<S>& p_;
  const Cut& cut_;
  bool rotated_;
  ChannelRing<S> ring_;
  Scratch<T> memory_;
  Scratch<int64_t> tags_, numbers_;
  Scratch<const T*> from_;
  Scratch<T> sums_;
  RowTask<S> row_ = {};
};

template <class S>
void run(const Product<S>& p, const Compute<S>* weight) {
  using T = Compute<S>;
  const PixelGrid& grid = p.source.grid;
  const bool rotated = grouped_lanes(p) == GroupedLanes::kRotated;
  const Cut cut(p, rotated);
  const int64_t rotations = rotated ? divide_up(p.K, kRotations) * kRotations : 0;
  Scratch<LaneIndex<T>> permutations(rotations * Vec<T>::kLanes);
  set_rotations<T>(p.K, rotations, -1, permutations.data());
  parallel_for(cut.others * cut.blocks, 1, [&](int64_t begin, int64_t end) {
    ChannelWorker<S> worker(p, cut, permutations.data());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = cut.blocks_first ? task % cut.blocks : task / cut.others;
      const int64_t other = cut.blocks_first ? task / cut.blocks : task % cut.others;
      const int64_t n = other / cut.pieces / cut.strips;
      const int64_t i = other / cut.pieces % cut.strips * cut.rows;
      const int64_t j = other % cut.pieces * cut.columns;
      worker.run(block, weight, n, i, smaller(i + cut.rows, grid.I), j,
                 smaller(cut.columns, grid.J - j));
    }
  });
}

}  // namespace

#define FASTCONV_GROUPED(S) \
  void run_grouped_channels(const Product<S>& p, const Compute<S>* weight) { run(p, weight); }
FASTCONV_GROUPED(float)
FASTCONV_GROUPED(double)
FASTCONV_GROUPED(Float16)
FASTCONV_GROUPED(BFloat16)
#undef FASTCONV_GROUPED

}  // namespace fastconv::cpu::FASTCONV_ISA
