// conv2d, the weight's gradient, as a matrix product whose depth is the pixels m = (n, p, q):
//
//   grad_weight[k, c, t] = sum_m grad_output[m, k] * unfolded[m][c, t]
//
// Two arrangements, by the layout of the input:
//   channels contiguous (NHWC)   a[k][m]: grad_output, read in place where possible
//                                b[m][x]: unfolded, x = t * C + c
//   pixels contiguous (NCHW)     a[x][m]: unfolded, x = c * T + t
//                                b[m][k]: grad_output, transposed
// One task = one block of a times one block of b of one group, over one slice of the pixels. Where
// blocks alone are too few to fill the cores, the pixels are cut into slices, whose sums are added
// in order afterwards. The number of slices depends on the shape alone: the result is the same for
// every number of threads. Cost: 2 * N*P*Q * K * C/G*R*S flops.
#include "../conv2d.h"
#include "../parallel.h"
#include "conv2d_depthwise.h"
#include "conv2d_weight_grad_rows.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kRowBlock = 192, kColumnBlock = 256;
constexpr int64_t kWantedTasks = 32;                  // enough for 16 cores at two each
constexpr int64_t kPartialBytes = int64_t{16} << 20;  // bound of the slices' sums

template <class S>
struct WeightGrad {
  PixelSource<S> input;        // of group 0
  PixelSource<S> grad_output;  // of group 0, with the single tap that reads the pixel itself
  S* grad_weight;
  int64_t stride_k, stride_c;
  int64_t G, K;
  bool rows_are_channels;  // the arrangement: a[k][m] * b[m][x]

  FASTCONV_INLINE int64_t pixels() const { return input.grid.count(); }
  FASTCONV_INLINE int64_t unfolded() const { return input.depth(); }
  FASTCONV_INLINE int64_t rows() const { return rows_are_channels ? K : unfolded(); }
  FASTCONV_INLINE int64_t columns() const { return rows_are_channels ? unfolded() : K; }
};

// a[k][m], grad_output: k is contiguous when packed along channels.
template <class S>
struct GradRows {
  using T = Compute<S>;
  const PixelSource<S>& source;
  int64_t m_begin, k_begin, k_end;
  T* packed;  // [m][k]
  int64_t row_stride = 1, depth_stride = k_end - k_begin;

  void prepare(int64_t begin, int64_t end) {
    source.pack_along_channels(m_begin + begin, m_begin + end, k_begin, k_end, packed,
                               depth_stride);
  }
  FASTCONV_INLINE const T* row(int64_t i) const { return packed + i; }
};

// a[x][m], the unfolded input: m is contiguous.
template <class S>
struct UnfoldedRows {
  using T = Compute<S>;
  const PixelSource<S>& source;
  int64_t m_begin, x_begin, x_end;
  T* packed;  // [x][kDepthBlock]
  int64_t row_stride = kDepthBlock<T>, depth_stride = 1;

  void prepare(int64_t begin, int64_t end) {
    source.pack_along_pixels(m_begin + begin, m_begin + end, x_begin, x_end, packed, row_stride);
  }
  FASTCONV_INLINE const T* row(int64_t i) const { return packed + i * row_stride; }
};

// b[m][x], of either source: panels of channels.
template <class S>
struct ChannelPanels {
  using T = Compute<S>;
  const PixelSource<S>& source;
  int64_t m_begin, x_begin, x_end;
  T* packed;  // [panel][m][kTileColumns]
  int64_t depth = 0;

  void prepare(int64_t begin, int64_t end) {
    depth = end - begin;
    for (int64_t x = x_begin; x < x_end; x += kTileColumns<T>) {
      T* to = packed + (x - x_begin) * depth;
      const int64_t next = smaller(x + kTileColumns<T>, x_end);
      if (next - x < kTileColumns<T>) clear_run(to, depth * kTileColumns<T>);
      source.pack_along_channels(m_begin + begin, m_begin + end, x, next, to, kTileColumns<T>);
    }
  }
  FASTCONV_INLINE PackedPanel<T> panel(int64_t j) const {
    return {packed + j * kTileColumns<T> * depth};
  }
};

// Where element (row, column) of a group's product belongs in grad_weight.
template <class S>
FASTCONV_INLINE S* place_of(const WeightGrad<S>& p, int64_t g, int64_t row, int64_t column) {
  const int64_t k = p.rows_are_channels ? row : column, x = p.rows_are_channels ? column : row;
  const int64_t C = p.input.C, taps = p.input.tap_count;
  const int64_t c = p.rows_are_channels ? x % C : x / taps,
                t = p.rows_are_channels ? x / C : x % taps;
  return p.grad_weight + (g * p.K + k) * p.stride_k + c * p.stride_c + p.input.taps[t].weight;
}

// Writes columns of one row: runs along c of one tap, or along k, are arithmetic progressions.
template <class S>
void store_columns(const WeightGrad<S>& p, int64_t g, int64_t row, int64_t column, int64_t count,
                   const Compute<S>* values) {
  const int64_t run = p.rows_are_channels ? p.input.C : p.K;
  const int64_t stride = p.rows_are_channels ? p.stride_c : p.stride_k;
  while (count > 0) {
    const int64_t length = smaller(run - column % run, count);
    store_run(place_of(p, g, row, column), stride, values, length, Compute<S>{0});
    column += length, values += length, count -= length;
  }
}

template <class S, class Store>
void multiply_slice(const WeightGrad<S>& p, int64_t g, int64_t m, int64_t m_end, int64_t row,
                    int64_t row_end, int64_t column, int64_t column_end, const Store& store) {
  using T = Compute<S>;
  PixelSource<S> input = p.input, grad_output = p.grad_output;
  input.data += g * input.C * input.stride_c;
  grad_output.data += g * p.K * grad_output.stride_c;
  const int64_t rows = row_end - row, columns = column_end - column, depth = m_end - m;
  const int64_t block = smaller(depth, kDepthBlock<T>);
  Scratch<T> packed_columns(divide_up(columns, int64_t{kTileColumns<T>}) * kTileColumns<T> * block);
  if (!p.rows_are_channels) {
    Scratch<T> packed_rows(rows * kDepthBlock<T>);
    UnfoldedRows<S> a{input, m, row, row_end, packed_rows.data()};
    ChannelPanels<S> b{grad_output, m, column, column_end, packed_columns.data()};
    return multiply_block<T>(rows, columns, depth, a, b, store);
  }
  ChannelPanels<S> b{input, m, column, column_end, packed_columns.data()};
  if constexpr (kSame<S, T>) {
    if (grad_output.is_plain_matrix()) {
      DirectRows<T> a{grad_output.data + m * grad_output.pixel_stride() + row, 1,
                      grad_output.pixel_stride()};
      return multiply_block<T>(rows, columns, depth, a, b, store);
    }
  }
  Scratch<T> packed_rows(rows * block);
  GradRows<S> a{grad_output, m, row, row_end, packed_rows.data()};
  multiply_block<T>(rows, columns, depth, a, b, store);
}

template <class S>
void run(const WeightGrad<S>& p) {
  using T = Compute<S>;
  const int64_t rows = p.rows(), columns = p.columns(), pixels = p.pixels();
  const int64_t row_blocks = divide_up(rows, kRowBlock),
                column_blocks = divide_up(columns, kColumnBlock);
  const int64_t blocks = p.G * row_blocks * column_blocks, product = p.G * rows * columns;
  int64_t slices = smaller(divide_up(kWantedTasks, blocks), divide_up(pixels, 2 * kDepthBlock<T>));
  slices = larger(smaller(slices, kPartialBytes / (product * int64_t{sizeof(T)})), int64_t{1});
  Scratch<T> partial(slices > 1 ? slices * product : 0);

  parallel_for(blocks * slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slice = task / blocks, g = task % blocks / (row_blocks * column_blocks);
      const int64_t row = task / column_blocks % row_blocks * kRowBlock,
                    column = task % column_blocks * kColumnBlock;
      const auto store = [&](int64_t i, int64_t count, int64_t j, int64_t width, const T* tile,
                             int64_t stride) {
        for (int64_t r = 0; r < count; ++r) {
          if (slices > 1)
            store_run(
                partial.data() + slice * product + (g * rows + row + i + r) * columns + column + j,
                1, tile + r * stride, width, T{0});
          else
            store_columns(p, g, row + i + r, column + j, width, tile + r * stride);
        }
      };
      multiply_slice(p, g, pixels * slice / slices, pixels * (slice + 1) / slices, row,
                     smaller(row + kRowBlock, rows), column,
                     smaller(column + kColumnBlock, columns), store);
    }
  });

  // Adding the slices' sums, in order.
  if (slices == 1) return;
  parallel_for(p.G * rows, divide_up(int64_t{4096}, columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* sum = partial.data() + row * columns;
      for (int64_t slice = 1; slice < slices; ++slice)
        store_run(sum, 1, sum, columns, sum + slice * product);
      store_columns(p, row / rows, row % rows, 0, columns, sum);
    }
  });
}

template <class S>
void weight_grad(const Conv2dShape& s, const S* grad_output, const S* input, S* grad_weight) {
  WeightGrad<S> p;
  p.input = input_source(s, input);
  p.grad_output = output_source(s, grad_output, {s.N, s.P, s.Q});
  p.grad_weight = grad_weight;
  p.stride_k = s.weight.s[0];
  p.stride_c = s.weight.s[1];
  p.G = s.G;
  p.K = s.K / s.G;
  p.rows_are_channels = s.input.s[1] == 1 && s.input.s[3] != 1;

  // The window's taps, and behind them the single one that reads a pixel itself.
  const int64_t count = s.window.R * s.window.S;
  Scratch<Tap> taps(count + 1);
  set_window_taps(s, taps.data());
  for (int64_t t = 0; t < count; ++t) set_columns_inside(taps.data()[t], p.input);
  taps.data()[count] = {0, 0, 0, s.Q, 0};
  p.input.taps = taps.data(), p.input.tap_count = count;
  p.grad_output.taps = taps.data() + count, p.grad_output.tap_count = 1;
  if (p.input.C == 1 && p.K == 1 && p.G > 1)
    depthwise_weight_grad(p.input, p.grad_output, p.G, p.grad_weight, p.stride_k);
  else if (!p.rows_are_channels && rows_pay(p.input, p.K))
    weight_grad_rows(p.input, p.grad_output, p.G, p.K, p.grad_weight, p.stride_k, p.stride_c);
  else
    run(p);
}

}  // namespace

void conv2d_weight_grad(const Conv2dShape& shape, const void* grad_output, const void* input,
                        void* grad_weight) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    weight_grad(shape, static_cast<const S*>(grad_output), static_cast<const S*>(input),
                static_cast<S*>(grad_weight));
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(conv2d_weight_grad,
                  (const Conv2dShape& shape, const void* grad_output, const void* input,
                   void* grad_weight),
                  (shape, grad_output, input, grad_weight))
