// Winograd's F(4x4, 3x3): see conv2d_winograd.h.
#include "conv2d_winograd_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Phase two, of one panel of the weight: products[36][tile][kTileColumns] (+)= a block of at most
// kDepthBlock source channels. Planes of the three lie apart as given.
struct PanelProducts {
  const T* source;  // [36][tile][source_stride], from the block's first channel on
  int64_t source_stride, source_plane;
  const T* weight;  // [36][channel][kTileColumns], likewise
  int64_t weight_plane;
  T* products;
  int64_t plane;

  void add(int64_t tiles, int64_t depth, bool is_first) const {
    constexpr int64_t kColumns = kTileColumns<T>;
    const int64_t parts = divide_up(tiles, int64_t{kTileRows});
    for (int i = 0; i < kProducts; ++i)
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t tile = part_begin(tiles, parts, part);
        T* const to = products + i * plane + tile * kColumns;
        const TileEnd<T> end{to,      kColumns, kColumns, nullptr, nullptr, is_first ? nullptr : to,
                             kColumns};
        const PlainRows<T> a{source + i * source_plane + tile * source_stride, source_stride};
        const PackedPanel<T> b{weight + i * weight_plane};
        multiply_rows<T, kTileVectors>(part_begin(tiles, parts, part + 1) - tile, depth, a, b, end);
      }
  }
};

// The weight's side: pieces of at most kPiece source channels of one panel.
template <class S>
class WeightTiles {
 public:
  static constexpr int64_t kPiece = 32, kPatchSize = 9 * kPiece * kTileColumns<T>;

  explicit WeightTiles(const Product<S>& p) : p_(p), in_a_row_(p.weight_c == 9) {
    const Tap* taps = p.source.taps;
    int64_t h = taps[0].h, w = taps[0].w;
    for (int t = 1; t < 9; ++t) h = smaller(h, taps[t].h), w = smaller(w, taps[t].w);
    for (int t = 0; t < 9; ++t) {
      tap_at_[(taps[t].h - h) * 3 + taps[t].w - w] = t;
      in_a_row_ = in_a_row_ && taps[t].weight == t;
    }
  }

  // to[product][channel - c][kTileColumns] of channels [c, c_end), target channels [k, K).
  void transform(int64_t k, int64_t c, int64_t c_end, T* patch, T* to, int64_t plane) const {
    constexpr int64_t kColumns = kTileColumns<T>;
    for (; c < c_end; c += kPiece, to += kPiece * kColumns) {
      const int64_t channels = smaller(kPiece, c_end - c);
      gather(k, c, channels, patch);
      for (int64_t x = 0; x < channels; ++x)
        for (int64_t v = 0; v < kColumns; v += kLanes)
          transform_weight_tile(
              [&](int i, int j) {
                return V::load(patch + tap_at_[i * 3 + j] * stride_t() + x * stride_c() + v);
              },
              to + x * kColumns + v, plane);
    }
  }

 private:
  FASTCONV_INLINE int64_t stride_t() const {
    return (in_a_row_ ? 1 : kPiece) * int64_t{kTileColumns<T>};
  }
  FASTCONV_INLINE int64_t stride_c() const {
    return (in_a_row_ ? 9 : 1) * int64_t{kTileColumns<T>};
  }

  // patch[channel * stride_c + tap * stride_t + lane]
  void gather(int64_t k, int64_t c, int64_t channels, T* patch) const {
    constexpr int64_t kColumns = kTileColumns<T>;
    const int64_t lanes = smaller(kColumns, p_.K - k);
    const S* from = p_.weight + k * p_.weight_k + c * p_.weight_c;
    if (lanes < kColumns) clear_run(patch, kPatchSize);
    if (in_a_row_) {
      copy_grid(patch, kColumns, from, 1, p_.weight_k, 9 * channels, lanes);
    } else {
      for (int t = 0; t < 9; ++t)
        copy_grid(patch + t * stride_t(), kColumns, from + p_.source.taps[t].weight, p_.weight_c,
                  p_.weight_k, channels, lanes);
    }
  }

  const Product<S>& p_;
  bool in_a_row_;  // [c][t] of a k is one run
  int tap_at_[9];
};

// One product in the sense of conv2d_winograd.h.
template <class S>
class Winograd {
 public:
  explicit Winograd(const Product<S>& p)
      : p_(p),
        C_(p.source.C),
        tiles_{p.source.grid.N, divide_up(p.source.grid.I, int64_t{kTile}),
               divide_up(p.source.grid.J, int64_t{kTile})},
        source_(p.source, tiles_),
        target_(p, tiles_),
        weight_(p) {}

  bool run_prepared(const T* weight) { return run_panels(weight, 0, panels()); }

  // Pieces of the weight of about kWeightBytes at a time: they stay in L3.
  bool run_in_pieces() {
    constexpr int64_t kWeightBytes = int64_t{4} << 20;
    const int64_t piece = larger(kWeightBytes / (panel_size() * int64_t{sizeof(T)}), int64_t{2});
    Scratch<T> weight(smaller(piece, panels()) * panel_size());
    bool finite = true;
    for (int64_t panel = 0; panel < panels() && finite; panel += piece) {
      const int64_t end = smaller(panel + piece, panels());
      transform_panels(panel, end, weight.data());
      finite = run_panels(weight.data(), panel, end);
    }
    return finite;
  }

  // Few tiles: all of them are transformed, then threads part the panels, so that the weight is read
  // once; if it is not prepared, each thread transforms a block of it where it multiplies it, in L2.
  bool run_together(const T* prepared) {
    const int64_t count = tiles_.count(), plane = count * row_stride();
    Scratch<T> transformed(kProducts * plane);
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> patch(kPatchSize);
      for_each_block(begin, end, [&](int64_t t, int64_t t_end) {
        source_.transform(t, t_end, patch.data(), transformed.data() + t * row_stride(),
                          row_stride(), plane);
      });
    });
    parallel_for(panels(), 1, [&](int64_t panel, int64_t panel_end) {
      // Planes a multiple of 4 KiB apart would share their sets of L1.
      const int64_t weight_plane = smaller(C_, kDepthBlock<T>) * kTileColumns<T> + kLanes;
      const int64_t products_plane = count * kTileColumns<T>;
      Scratch<T> weight(prepared ? 0 : kProducts * weight_plane),
          products(kProducts * products_plane), patch(kPatchSize);
      for (; panel < panel_end; ++panel) {
        for (int64_t c = 0; c < C_; c += kDepthBlock<T>) {
          const int64_t depth = smaller(C_ - c, kDepthBlock<T>);
          PanelProducts block{transformed.data() + c, row_stride(),    plane,         weight.data(),
                              weight_plane,           products.data(), products_plane};
          if (prepared) {
            block.weight = prepared + panel * panel_size() + c * kTileColumns<T>;
            block.weight_plane = C_ * kTileColumns<T>;
          } else {
            weight_.transform(panel * kTileColumns<T>, c, c + depth, patch.data(), weight.data(),
                              weight_plane);
          }
          block.add(count, depth, c == 0);
        }
        for_each_block(0, count, [&](int64_t t, int64_t t_end) {
          store(t, t_end, panel, products.data() + t * kTileColumns<T>, products_plane,
                patch.data());
        });
      }
    });
    return !not_finite_;
  }
  // Whether that pays: a prepared weight must be worth more than the way of the source from one
  // thread to another.
  bool together_pays(bool prepared) const {
    constexpr int64_t kFewTiles = 96, kLargeWeight = int64_t{16} << 20;  // bytes
    return tiles_.count() <= kFewTiles && panels() % num_threads() == 0 &&
           (!prepared || panels() * panel_size() * int64_t{sizeof(T)} > kLargeWeight);
  }

  // [panel][36][C][kTileColumns]
  void transform_panels(int64_t first, int64_t end, T* to) const {
    constexpr int64_t kPiece = WeightTiles<S>::kPiece;
    const int64_t pieces = divide_up(C_, kPiece);
    parallel_for((end - first) * pieces, 1, [&](int64_t task, int64_t task_end) {
      Scratch<T> patch(WeightTiles<S>::kPatchSize);
      for (; task < task_end; ++task) {
        const int64_t panel = task / pieces, c = task % pieces * kPiece;
        weight_.transform((first + panel) * kTileColumns<T>, c, smaller(c + kPiece, C_),
                          patch.data(), to + panel * panel_size() + c * kTileColumns<T>,
                          C_ * kTileColumns<T>);
      }
    });
  }

 private:
  static constexpr int64_t kPatchSize = larger(
      larger(SourceTiles<S>::kPatchSize, TargetTiles<S>::kPatchSize), WeightTiles<S>::kPatchSize);

  FASTCONV_INLINE int64_t panels() const { return divide_up(p_.K, int64_t{kTileColumns<T>}); }
  FASTCONV_INLINE int64_t panel_size() const { return kProducts * C_ * kTileColumns<T>; }
  // More than a multiple of C: rows a power of two apart would share few sets of the cache.
  FASTCONV_INLINE int64_t row_stride() const { return divide_up(C_, kLanes) * kLanes + 16; }

  // Calls body(t, t_end) for even blocks of the tiles [begin, end).
  template <class Body>
  FASTCONV_INLINE static void for_each_block(int64_t begin, int64_t end, const Body& body) {
    constexpr int64_t kTooFew = kLargestTileBlock - kTileBlock;
    const int64_t count = end - begin, blocks = divide_up(count - kTooFew, kTileBlock);
    if (blocks <= 1) return body(begin, end);
    for (int64_t block = 0; block < blocks; ++block)
      body(begin + part_begin(count, blocks, block), begin + part_begin(count, blocks, block + 1));
  }

  // Phase three.
  void store(int64_t begin, int64_t end, int64_t panel, const T* products, int64_t plane,
             T* patch) {
    V watch = V::zero();
    int64_t k = panel * kTileColumns<T>;
    for (int64_t v = 0; v < kTileVectors && k < p_.K; ++v, k += kLanes)
      watch = watch + target_.store(begin, end, k, smaller(kLanes, p_.K - k), products + v * kLanes,
                                    kTileColumns<T>, plane, patch);
    T lanes[kLanes];
    watch.store(lanes);
    for (int64_t l = 0; l < kLanes; ++l)
      if (!(lanes[l] == 0)) __atomic_store_n(&not_finite_, 1, __ATOMIC_RELAXED);
  }

  // All phases of a block of tiles, for panels [first, end); `weight` begins with panel `origin`.
  void run_block(int64_t t, int64_t t_end, const T* weight, int64_t origin, int64_t panel,
                 int64_t end) {
    const int64_t count = t_end - t, plane = count * row_stride();
    const int64_t products_plane = count * kTileColumns<T>;
    Scratch<T> transformed(kProducts * plane), products(kProducts * products_plane),
        patch(kPatchSize);
    source_.transform(t, t_end, patch.data(), transformed.data(), row_stride(), plane);
    for (; panel < end; ++panel) {
      const T* from = weight + (panel - origin) * panel_size();
      for (int64_t c = 0; c < C_; c += kDepthBlock<T>)
        PanelProducts{
            transformed.data() + c, row_stride(),    plane,         from + c * kTileColumns<T>,
            C_ * kTileColumns<T>,   products.data(), products_plane}
            .add(count, smaller(C_ - c, kDepthBlock<T>), c == 0);
      store(t, t_end, panel, products.data(), products_plane, patch.data());
    }
  }

  // Panels [first, last), of which `weight` is the transformed weight.
  bool run_panels(const T* weight, int64_t first, int64_t last) {
    const int64_t count = tiles_.count();
    // Few tiles: threads share them and part the panels, each transforming the source for itself.
    if (count < 2 * kTileRows * num_threads() && last - first > 1) {
      parallel_for(last - first, 1, [&](int64_t panel, int64_t panel_end) {
        for_each_block(0, count, [&](int64_t t, int64_t t_end) {
          run_block(t, t_end, weight, first, first + panel, first + panel_end);
        });
      });
    } else {
      parallel_for(count, kTileRows, [&](int64_t begin, int64_t end) {
        for_each_block(begin, end, [&](int64_t t, int64_t t_end) {
          run_block(t, t_end, weight, first, first, last);
        });
      });
    }
    return !not_finite_;
  }

  const Product<S>& p_;
  int64_t C_;
  PixelGrid tiles_;
  SourceTiles<S> source_;
  TargetTiles<S> target_;
  WeightTiles<S> weight_;
  int not_finite_ = 0;
};

template <class S>
bool run(const Product<S>& p, const T* weight) {
  Winograd<S> winograd(p);
  if (winograd.together_pays(weight)) return winograd.run_together(weight);
  return weight ? winograd.run_prepared(weight) : winograd.run_in_pieces();
}

}  // namespace

#define FASTCONV_WINOGRAD(S)                                                          \
  void winograd_transform_weight(const Product<S>& p, float* to) {                    \
    Winograd<S>(p).transform_panels(0, divide_up(p.K, int64_t{kTileColumns<T>}), to); \
  }                                                                                   \
  bool run_winograd(const Product<S>& p, const float* transformed) { return run(p, transformed); }
FASTCONV_WINOGRAD(float)
FASTCONV_WINOGRAD(Float16)
FASTCONV_WINOGRAD(BFloat16)
#undef FASTCONV_WINOGRAD

}  // namespace fastconv::cpu::FASTCONV_ISA
