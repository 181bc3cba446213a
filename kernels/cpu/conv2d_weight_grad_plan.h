// How conv2d's weight gradient is cut into tasks: by the shape alone, so that the result is the same
// for every number of threads.
//
//   rows, lanes   the two sides of the product. Either the lanes are the input's channels c and the
//                 rows grad_output's k, or, where c would leave lanes empty, the other way round.
//   block         rows x lanes of all taps, whose sums stay in L2
//   strip         a box of window positions, whose pixels stay in L2
//   slice         strips that one task adds up; the slices' sums are added in order afterwards
#pragma once
#include "conv2d_weight_grad_pixels.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Instruction sets with 32 registers come with an L2 of 1 MiB or more, others with 256 or 512 KiB.
constexpr int64_t kBlockSumBytes = int64_t{kVectorRegisters == 32 ? 320 : 160} << 10;
constexpr int64_t kTaskBytes = int64_t{kVectorRegisters == 32 ? 576 : 288} << 10;  // with strips
constexpr int64_t kLargestBlock = 256;
// Sums of 768 products and then of such sums: a relative error of 5e-7 for normal data in float32.
constexpr int64_t kLongestSum = 768, kShortestSum = 64, kShortestSlice = 128;
constexpr int64_t kLeastTasks = 16;                 // one for each of 16 cores
constexpr int64_t kMovesPerSlice = 2;               // its sums are written and read
constexpr int64_t kSliceBytes = int64_t{16} << 20;  // bound of the slices' sums

FASTCONV_INLINE int64_t round_up(int64_t value, int64_t unit) {
  return divide_up(value, unit) * unit;
}

// Begin of part `index` of `count` almost equal parts of `extent`, in whole units.
FASTCONV_INLINE int64_t part_begin(int64_t extent, int64_t unit, int64_t index, int64_t count) {
  return smaller(divide_up(extent, unit) * index / count * unit, extent);
}

struct WeightGradExtents {
  int64_t N, G, C, K;  // channels of a group
  SlidingAxis h, w;
  int64_t element;        // bytes of the compute type
  int64_t vector, panel;  // lanes of a register, of a panel
};

struct WeightGradPlan {
  bool lanes_are_input;
  // The input's (s, c) are contiguous in a copy with padding: together they are the rows.
  bool joined;
  bool tap_by_tap;  // the lines between the taps are too many: each tap's pixels are copied alone
  int64_t rows, lanes, taps;  // taps: of which each has rows x lanes sums
  int64_t row_blocks, lane_blocks;
  int64_t block_rows, block_lanes;  // largest block
  int64_t images, height, width;    // largest strip, in positions
  int64_t lines, columns;           // of the input, that a strip copies at most
  int64_t strips_n, strips_h, strips_w, slices;

  WeightGradPlan(const WeightGradExtents& e) {
    choose_sides(e);
    choose_cut(e);
  }

  int64_t blocks() const { return row_blocks * lane_blocks; }
  int64_t strips() const { return strips_n * strips_h * strips_w; }
  // Of the largest strip: grad_output's pixels, the input's.
  int64_t positions() const { return images * height * width; }
  int64_t input_pixels() const { return images * lines * columns; }

 private:
  // The share of a tile that is used.
  static double fill(int64_t rows, int64_t lanes, int64_t vector) {
    const double height = rows < kTileRows ? double(rows) / kTileRows : 1;
    return height * double(lanes) / double(round_up(lanes, vector));
  }

  void choose_sides(const WeightGradExtents& e) {
    const int64_t S = e.w.taps;
    const bool can_join =
        S > 1 && e.w.reach == 1 && e.C < kTileRows && (e.h.taps - 1) * e.h.reach <= 16 * e.h.step;
    const int64_t rows_of_input = can_join ? S * e.C : e.C;
    lanes_are_input = fill(e.K, e.C, e.vector) >= 0.9 * fill(rows_of_input, e.K, e.vector);
    joined = !lanes_are_input && can_join;
    taps = e.h.taps * (joined ? 1 : S);
    rows = lanes_are_input ? e.K : rows_of_input;
    lanes = lanes_are_input ? e.C : e.K;
  }

  // The largest blocks whose sums stay in L2, or halves and quarters of them: the cut that moves
  // the fewest bytes among those that give every core something to do.
  void choose_cut(const WeightGradExtents& e) {
    const int64_t area = kBlockSumBytes / (e.element * taps);
    int64_t side = e.panel;
    while (side < kLargestBlock && (side + e.panel) * (side + e.panel) <= area) side += e.panel;
    const int64_t least_lanes = divide_up(lanes, side);
    const int64_t widest = smaller(round_up(divide_up(lanes, least_lanes), e.panel), side);
    const int64_t height = clamped(area / widest / kTileRows * kTileRows, kTileRows, kLargestBlock);
    const int64_t least_rows = divide_up(rows, joined ? rows : height);
    WeightGradPlan best = *this;
    int64_t least_cost = -1;
    for (int64_t more_rows = 1; more_rows <= 4; more_rows *= 2)
      for (int64_t more_lanes = 1; more_lanes <= 4; more_lanes *= 2) {
        row_blocks = least_rows * more_rows, lane_blocks = least_lanes * more_lanes;
        block_rows = divide_up(rows, row_blocks);
        block_lanes =
            round_up(divide_up(divide_up(lanes, e.panel), lane_blocks) * e.panel, e.panel);
        if (more_rows > 1 && (joined || block_rows < 4 * kTileRows)) continue;
        if (more_lanes > 1 && block_lanes < 2 * e.panel) continue;
        choose_strips(e);
        choose_slices(e);
        const int64_t cost = moved_bytes(e);
        if (least_cost < 0 || cost < least_cost) best = *this, least_cost = cost;
      }
    *this = best;
  }

  // What is copied for all blocks and added up for all slices; too few tasks leave cores idle.
  int64_t moved_bytes(const WeightGradExtents& e) const {
    const int64_t positions = e.N * e.h.positions * e.w.positions;
    const int64_t copied = positions * (rows * lane_blocks + lanes * row_blocks);
    const int64_t added = slices > 1 ? kMovesPerSlice * slices * taps * rows * lanes : 0;
    const int64_t tasks = e.G * blocks() * slices;
    return e.G * e.element * (copied + added) * divide_up(kLeastTasks, smaller(tasks, kLeastTasks));
  }

  void choose_strips(const WeightGradExtents& e) {
    const int64_t P = e.h.positions, Q = e.w.positions;
    const int64_t bytes_per_position = e.element * (block_rows + block_lanes);
    const int64_t strip_bytes = kTaskBytes - block_rows * block_lanes * taps * e.element;
    const int64_t length = clamped(strip_bytes / bytes_per_position, kShortestSum, kLongestSum);
    strips_n = divide_up(e.N, clamped(length / (P * Q), 1, larger(e.N, int64_t{1})));
    strips_n = larger(strips_n, int64_t{1});
    strips_h = divide_up(P, clamped(length / Q, 1, P));
    strips_w = divide_up(Q, smaller(length, Q));
    images = divide_up(e.N, strips_n), height = divide_up(P, strips_h);
    width = divide_up(Q, strips_w);

    lines = smaller((height - 1) * e.h.step + (e.h.taps - 1) * e.h.reach + 1, e.h.inside.length());
    columns = (width - 1) * e.w.step + (e.w.taps - 1) * e.w.reach + 1;
    if (!joined) columns = smaller(columns, e.w.inside.length());
    const int64_t channels = lanes_are_input ? block_lanes : joined ? e.C : block_rows;
    tap_by_tap = taps > 1 && !joined &&
                 (lines * columns > height * width * taps ||
                  input_pixels() * channels * e.element > 2 * kTaskBytes);
    if (tap_by_tap) lines = height, columns = width;
  }

  // As many as give enough tasks; strips are cut further until each slice has equally many.
  void choose_slices(const WeightGradExtents& e) {
    const int64_t P = e.h.positions, Q = e.w.positions;
    const int64_t product = e.G * taps * rows * round_up(lanes, e.panel) * e.element;
    const int64_t most = smaller(e.N * P * Q / kShortestSlice, kSliceBytes / product);
    const int64_t wanted = smaller(divide_up(kLeastTasks, e.G * blocks()), most);
    for (slices = 1; 2 * slices <= wanted;) slices *= 2;
    while (strips() % slices) {
      if (strips_n < e.N)
        ++strips_n;
      else if (strips_h < P)
        ++strips_h;
      else if (strips_w < Q)
        ++strips_w;
      else
        slices /= 2;
    }
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
