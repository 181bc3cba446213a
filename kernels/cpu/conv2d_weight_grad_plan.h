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
constexpr int64_t kWantedTasks = 32, kLeastTasks = 16;  // two or one for each of 16 cores
constexpr int64_t kSliceBytes = int64_t{16} << 20;      // bound of the slices' sums

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
    choose_blocks(e);
    choose_strips(e);
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

  void choose_blocks(const WeightGradExtents& e) {
    const int64_t area = kBlockSumBytes / (e.element * taps);
    int64_t side = e.panel;
    while (side < kLargestBlock && (side + e.panel) * (side + e.panel) <= area) side += e.panel;
    lane_blocks = divide_up(lanes, side);
    block_lanes = smaller(round_up(divide_up(lanes, lane_blocks), e.panel), side);
    const int64_t height =
        clamped(area / block_lanes / kTileRows * kTileRows, kTileRows, kLargestBlock);
    row_blocks = divide_up(rows, joined ? rows : height);
    const int64_t slices_at_most = divide_up(e.N * e.h.positions * e.w.positions, kShortestSlice);
    for (;;) {
      block_rows = divide_up(rows, row_blocks);
      block_lanes = round_up(divide_up(divide_up(lanes, e.panel), lane_blocks) * e.panel, e.panel);
      if (e.G * blocks() * slices_at_most >= kLeastTasks) break;
      if (block_rows >= block_lanes && block_rows >= 8 * kTileRows && !joined)
        row_blocks *= 2;
      else if (block_lanes >= 4 * e.panel)
        lane_blocks *= 2;
      else
        break;
    }
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

    const int64_t product = e.G * taps * rows * round_up(lanes, e.panel) * e.element;
    const int64_t positions = e.N * P * Q;
    const int64_t most =
        smaller(smaller(positions / kShortestSlice, strips()),
                smaller(kSliceBytes / product, divide_up(kWantedTasks, e.G * blocks())));
    for (slices = 1; 2 * slices <= most;) slices *= 2;
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
