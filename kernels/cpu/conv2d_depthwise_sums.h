// The sums of a depthwise convolution: a block of target pixels in registers, whose source rows lie
// widened and padded in cache (conv2d_depthwise_rows.h).
//
//   sums[o][q][lane] = bias + sum_{r,s} rows[k(o,r)][q * q_step + offset[s] + lane] * weight(r,s)
//
// o: target rows of the block, q: its vectors. Lanes are channels (a weight is a vector, and register
// after register of channels is summed) or pixels of one row (a weight is broadcast). Where target
// rows share source rows, a vector that was loaded meets all sums that it is part of. Every sum runs
// over r, then s, whatever the block.
// Cost: one multiplication-addition per tap and vector.
#pragma once
#include "conv2d_depthwise_window.h"

namespace fastconv::cpu::FASTCONV_ISA {

template <class S>
struct DepthwiseBlock {
  using T = Compute<S>;

  // What is summed.
  const T* const* rows;  // null: outside, counts as zeros
  bool shared;           // as in DepthwiseRows
  int64_t R, S_;
  const int64_t* offset;  // [S]
  int64_t q_step;         // elements between the vectors of a block
  const T* weight;        // [R][S], or [register][R][S][kLanes]
  const T* bias;          // one, or [register][kLanes]; null: none

  // Where the sums go: element (o, q) of register b lies at o * to_row + q * to_step + b * kLanes.
  S* to;
  int64_t to_row, to_step;
  T* raw;           // instead, if not null: sums as they are, whole registers
  int64_t vectors;  // of a row

  const Product<S>* product;
  int64_t channel;     // the target's, of lane 0 or of all
  int64_t registers;   // of channels; 1 where lanes are pixels
  int64_t first;       // of the source's registers: it lies there behind so many others
  int64_t last_lanes;  // of the last register, or of the last vector of pixels
};

// Vectors of a block at most: sums, one source vector for each and a weight fill the registers.
constexpr int kBlockVectors = kVectorRegisters == 32 ? 4 : 2;

template <class S, int kRows, int kVectors, bool kChannels, int kS>
class DepthwiseSums {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kWeight = kChannels ? V::kLanes : 1;

 public:
  // Vectors from `first` on of every row, register `index` of channels.
  FASTCONV_INLINE DepthwiseSums(const DepthwiseBlock<S>& block, int64_t first, int64_t index)
      : block_(block),
        from_(first * block.q_step + (block.first + index) * V::kLanes),
        S_(kS ? kS : block.S_),
        weight_(block.weight + index * block.R * block.S_ * kWeight) {
    V bias = V::zero();
    if (block.bias)
      bias = kChannels ? V::load(block.bias + index * V::kLanes) : V::broadcast(*block.bias);
    each([&](int o, int q) { sums_[o][q] = bias; });
    if (!block.raw) {
      const S* to = block.to + first * block.to_step + (index + 2) * V::kLanes;
      each([&](int o, int q) { __builtin_prefetch(to + o * block.to_row + q * block.to_step, 1); });
    }
  }

  // Row k meets targets o with 0 <= k - o < R.
  FASTCONV_INLINE void add_shared() {
    for (int64_t k = 0; k < block_.R + kRows - 1; ++k) {
      const T* row = block_.rows[k];
      if (!row) continue;
      const int64_t low = larger(k - block_.R + 1, int64_t{0});
      const int64_t high = smaller(k, int64_t{kRows - 1});
      add_from<0>(low, high, row + from_, weight_ + k * S_ * kWeight);
    }
  }

  // The same with three rows of taps, step by step.
  template <int k = 0>
  FASTCONV_INLINE void add_three() {
    if constexpr (k < kRows + 2) {
      constexpr int kLow = k < 2 ? 0 : k - 2, kHigh = k < kRows ? k : kRows - 1;
      if (const T* row = block_.rows[k])
        add_row<kLow, kHigh>(row + from_, weight_ + k * S_ * kWeight);
      add_three<k + 1>();
    }
  }

  FASTCONV_INLINE void add_separate() {
    for (int64_t r = 0; r < block_.R; ++r) {
      const T* row[kRows];
      bool all = true;
#pragma GCC unroll 4
      for (int o = 0; o < kRows; ++o) {
        row[o] = block_.rows[o * block_.R + r];
        all &= row[o] != nullptr;
      }
      const T* weight = weight_ + r * S_ * kWeight;
      if (all) {
        for (int64_t s = 0; s < S_; ++s) {
          const V factor = weight_at(weight + s * kWeight);
          const int64_t offset = block_.offset[s] + from_;
          each([&](int o, int q) {
            sums_[o][q] = sums_[o][q] + V::load(row[o] + offset + q * block_.q_step) * factor;
          });
        }
      } else {
#pragma GCC unroll 4
        for (int o = 0; o < kRows; ++o)
          if (row[o]) add_alone(o, row[o] + from_, weight);
      }
    }
  }

  FASTCONV_INLINE void store(int64_t first, int64_t index) const {
    const int64_t count = block_.vectors - first;
    if (block_.raw) {
      T* to = block_.raw + first * block_.to_step + index * V::kLanes;
      each([&](int o, int q) {
        if (q < count) sums_[o][q].store(to + o * block_.to_row + q * block_.to_step);
      });
      return;
    }
    S* to = block_.to + first * block_.to_step + index * V::kLanes;
    const bool last = kChannels ? index + 1 == block_.registers : count <= kVectors;
    const int64_t lanes = last ? block_.last_lanes : V::kLanes;
    if constexpr (kSame<S, T>) {
      if (!block_.product->finish && (kChannels || block_.product->target.stride_j == 1))
        return store_plain(to, count, lanes);
    }
    finish(to, count, index, lanes);
  }

 private:
  template <class Body>
  FASTCONV_INLINE static void each(const Body& body) {
#pragma GCC unroll 4
    for (int o = 0; o < kRows; ++o)
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q) body(o, q);
  }

  FASTCONV_INLINE static V weight_at(const T* weight) {
    return kChannels ? V::load(weight) : V::broadcast(*weight);
  }

  // Targets [kLow, kHigh]; `weight` is that of tap row k.
  template <int kLow, int kHigh>
  FASTCONV_INLINE void add_row(const T* row, const T* weight) {
    for (int64_t s = 0; s < S_; ++s) {
      V source[kVectors];
      const int64_t offset = block_.offset[s];
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q) source[q] = V::load(row + offset + q * block_.q_step);
#pragma GCC unroll 4
      for (int o = kLow; o <= kHigh; ++o) {
        const V factor = weight_at(weight + (s - o * S_) * kWeight);
#pragma GCC unroll 4
        for (int q = 0; q < kVectors; ++q) sums_[o][q] = sums_[o][q] + source[q] * factor;
      }
    }
  }

  // add_row of a range known at run time.
  template <int kLow>
  FASTCONV_INLINE void add_from(int64_t low, int64_t high, const T* row, const T* weight) {
    if constexpr (kLow + 1 < kRows)
      if (low > kLow) return add_from<kLow + 1>(low, high, row, weight);
    add_until<kLow, kRows - 1>(high, row, weight);
  }
  template <int kLow, int kHigh>
  FASTCONV_INLINE void add_until(int64_t high, const T* row, const T* weight) {
    if constexpr (kLow < kHigh)
      if (high < kHigh) return add_until<kLow, kHigh - 1>(high, row, weight);
    add_row<kLow, kHigh>(row, weight);
  }

  FASTCONV_INLINE void add_alone(int o, const T* row, const T* weight) {
    for (int64_t s = 0; s < S_; ++s) {
      const V factor = weight_at(weight + s * kWeight);
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q)
        sums_[o][q] = sums_[o][q] + V::load(row + block_.offset[s] + q * block_.q_step) * factor;
    }
  }

  FASTCONV_INLINE void store_plain(T* to, int64_t count, int64_t lanes) const {
    if (count >= kVectors && lanes == V::kLanes) {
      each([&](int o, int q) { sums_[o][q].store(to + o * block_.to_row + q * block_.to_step); });
      return;
    }
    each([&](int o, int q) {
      if (q < count)
        store_some(to + o * block_.to_row + q * block_.to_step, sums_[o][q],
                   kChannels || q + 1 == count ? lanes : V::kLanes);
    });
  }

  // What else becomes of the sums; not register by register, for that would take too much code.
  FASTCONV_INLINE void finish(S* to, int64_t count, int64_t index, int64_t lanes) const {
    alignas(64) T sums[kRows][kVectors][V::kLanes];
    each([&](int o, int q) { sums_[o][q].store(sums[o][q]); });
    const Product<S>& product = *block_.product;
    const int64_t vectors = smaller(count, int64_t{kVectors});
    const int64_t k = block_.channel + index * V::kLanes;
    for (int64_t o = 0; o < kRows; ++o) {
      if constexpr (kChannels) {
        for (int64_t q = 0; q < vectors; ++q) {
          S* at = to + o * block_.to_row + q * block_.to_step;
          const V sum = product.finished(V::load(sums[o][q]), k, lanes, at);
          if (lanes == V::kLanes)
            store_from_compute(at, sum);
          else
            store_some_from_compute(at, sum, lanes);
        }
      } else {
        product.store_pixels(to + o * block_.to_row, sums[o][0], (vectors - 1) * V::kLanes + lanes,
                             k);
      }
    }
  }

  const DepthwiseBlock<S>& block_;
  int64_t from_;
  int64_t S_;
  const T* weight_;
  V sums_[kRows][kVectors];
};

template <class S, int kRows, int kVectors, bool kChannels>
__attribute__((noinline)) void depthwise_sums(const DepthwiseBlock<S>& block, int64_t first) {
  if (block.shared && block.R == 3 && block.S_ == 3) {
    for (int64_t b = 0; b < block.registers; ++b) {
      DepthwiseSums<S, kRows, kVectors, kChannels, 3> sums(block, first, b);
      sums.add_three();
      sums.store(first, b);
    }
    return;
  }
  for (int64_t b = 0; b < block.registers; ++b) {
    DepthwiseSums<S, kRows, kVectors, kChannels, 0> sums(block, first, b);
    block.shared ? sums.add_shared() : sums.add_separate();
    sums.store(first, b);
  }
}

// kRows target rows. Channels: a source row is padded to whole tiles; pixels: nothing is computed in
// vain.
template <bool kChannels, int kRows, class S>
FASTCONV_INLINE void depthwise_tiles(const DepthwiseBlock<S>& block) {
  for (int64_t first = 0; first < block.vectors;) {
    const int64_t left = block.vectors - first;
    if (left >= kBlockVectors || (kChannels && left > kBlockVectors / 2)) {
      depthwise_sums<S, kRows, kBlockVectors, kChannels>(block, first);
      first += kBlockVectors;
    } else if (kBlockVectors == 4 && left >= 2) {
      depthwise_sums<S, kRows, 2, kChannels>(block, first);
      first += 2;
    } else {
      depthwise_sums<S, kRows, 1, kChannels>(block, first);
      first += 1;
    }
  }
}

// All sums of a block of `rows` target rows.
template <bool kChannels, class S>
void depthwise_block(const DepthwiseBlock<S>& block, int64_t rows) {
  // Few taps: pixel by pixel, as channels lie in memory. Many: some registers of channels after the
  // other, so that their weights and source rows stay in L1.
  constexpr int64_t kManyTaps = 20, kFewRegisters = 2, kLanes = Vec<Compute<S>>::kLanes;
  const int64_t taps = block.R * block.S_;
  const int64_t most = taps >= kManyTaps ? kFewRegisters : block.registers;
  for (int64_t b = 0; b < block.registers; b += most) {
    DepthwiseBlock<S> part = block;
    if (most < block.registers) {
      part.registers = smaller(most, block.registers - b);
      part.first = b;
      if (b + most < block.registers) part.last_lanes = kLanes;
      part.weight += b * taps * kLanes, part.channel += b * kLanes;
      if (part.bias) part.bias += b * kLanes;
      part.raw ? void(part.raw += b * kLanes) : void(part.to += b * kLanes);
    }
    const auto run = [&](auto count) {
      constexpr int kRows = decltype(count)::value;
      depthwise_tiles<kChannels, kRows>(part);
      part.rows += block.shared ? kRows : kRows * block.R;
      part.raw ? void(part.raw += kRows * block.to_row) : void(part.to += kRows * block.to_row);
    };
    for (int64_t left = rows; left > 0;) {
      if (left >= 4)
        run(std::integral_constant<int, 4>()), left -= 4;
      else if (left >= 2)
        run(std::integral_constant<int, 2>()), left -= 2;
      else
        run(std::integral_constant<int, 1>()), left -= 1;
    }
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
