// max_pool2d, forward and backward.
//
//   output[n,c,p,q] = max_{r,s} input[n,c, p * stride_h - pad_h + r * dilation_h, q * stride_w -
//   pad_w + s * dilation_w]
//
// Forward keeps the best value of each lane in a register while it walks the window's taps in
// row-major order, and with indices the number of the tap that gave it. Two arrangements:
//   lanes are channels (NHWC)  one task = some output rows; every output pixel walks its taps for
//   kLanes channels at once lanes are columns (else)   one task = some output rows of planes;
//   kLanes neighbouring outputs walk their common taps;
//                              outputs whose window is cut by the border go one by one
// Cost: N*C*P*Q * R*S comparisons; every input element is read from cache R*S / (stride_h *
// stride_w) times. Backward scatters plane by plane into memory that only its task touches: no
// atomics, and one order of additions.
#include "../max_pool2d.h"

#include "../parallel.h"
#include "../scratch.h"
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// types
// Narrow integers are compared as int32; tap numbers are as wide as the values, so that one mask
// selects both. Only taps inside the input are counted, so that 32 bits are enough for every window
// of fewer than 2^31 elements of input.

template <class S>
using Value = std::conditional_t<std::is_integral_v<S>,
                                 std::conditional_t<sizeof(S) == 8, int64_t, int32_t>, Compute<S>>;
template <class T>
using TapNumber = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class S>
constexpr S lowest() {
  if constexpr (!std::is_integral_v<S>)
    return -__builtin_inf();
  else
    return std::is_signed_v<S> ? static_cast<S>(uint64_t{1} << (8 * sizeof(S) - 1)) : S{0};
}
template <class S>
constexpr Value<S> kLowest = lowest<std::conditional_t<std::is_integral_v<S>, S, Value<S>>>();

template <class S>
FASTCONV_INLINE Vec<Value<S>> load_values(const S* p, int64_t count) {
  constexpr int64_t kLanes = Vec<Value<S>>::kLanes;
  if constexpr (std::is_integral_v<S> && sizeof(S) < 4) {
    typedef S Narrow __attribute__((vector_size(kLanes * sizeof(S))));
    Narrow narrow = {};
    __builtin_memcpy(&narrow, p, static_cast<unsigned long>(count) * sizeof(S));
    return {__builtin_convertvector(narrow, typename Vec<int32_t>::Raw)};
  } else if constexpr (std::is_integral_v<S>) {
    return count == kLanes ? Vec<S>::load(p) : load_some(p, count);
  } else {
    return count == kLanes ? load_as_compute(p) : load_some_as_compute(p, count);
  }
}

template <class S>
FASTCONV_INLINE void store_values(S* p, Vec<Value<S>> v, int64_t count) {
  constexpr int64_t kLanes = Vec<Value<S>>::kLanes;
  if constexpr (std::is_integral_v<S> && sizeof(S) < 4) {
    typedef S Narrow __attribute__((vector_size(kLanes * sizeof(S))));
    const Narrow narrow = __builtin_convertvector(v.raw, Narrow);
    __builtin_memcpy(p, &narrow, static_cast<unsigned long>(count) * sizeof(S));
  } else if constexpr (std::is_integral_v<S>) {
    store_some(p, v, count);
  } else if (count == kLanes) {
    store_from_compute(p, v);
  } else {
    store_some_from_compute(p, v, count);
  }
}

// Lane l = p[l * stride] for the first `count` lanes.
template <class S>
FASTCONV_INLINE Vec<Value<S>> load_strided(const S* p, int64_t stride, int64_t count) {
  if (stride == 1) return load_values(p, count);
  S lanes[Vec<Value<S>>::kLanes];
  for (int64_t l = 0; l < count; ++l) lanes[l] = p[l * stride];
  return load_values(lanes, count);
}

template <class S>
FASTCONV_INLINE void store_strided(S* p, int64_t stride, Vec<Value<S>> v, int64_t count) {
  if (stride == 1) return store_values(p, v, count);
  S lanes[Vec<Value<S>>::kLanes];
  store_values(lanes, v, count);
  for (int64_t l = 0; l < count; ++l) p[l * stride] = lanes[l];
}

// forward

// The largest value seen in each lane, and the tap it came from. A NaN is taken always and left
// only for another NaN.
template <class S, bool kIndices>
struct Best {
  using T = Value<S>;
  Vec<T> value;
  Vec<TapNumber<T>> tap;

  FASTCONV_INLINE Best() : value(Vec<T>::broadcast(kLowest<S>)), tap(Vec<TapNumber<T>>::zero()) {}

  FASTCONV_INLINE void offer(Vec<T> candidate, TapNumber<T> number) {
    const auto taken = (candidate.raw > value.raw) | (candidate.raw != candidate.raw);
    value.raw = taken ? candidate.raw : value.raw;
    if constexpr (kIndices) tap.raw = taken ? Vec<TapNumber<T>>::broadcast(number).raw : tap.raw;
  }
};

// Where an output pixel of an image lies, and where its window begins.
struct Position {
  int64_t h, w;             // first row and column of the window, possibly before the input
  int64_t output, indices;  // offsets of channel 0
};

template <class S, bool kIndices>
struct Forward {
  using T = Value<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  const MaxPool2dShape& s;
  const S* input;
  S* output;
  int64_t* indices;

  // Walks the taps of rows x columns for `count` lanes that lie lane_stride apart; `corner` is the
  // window's first element, inside the input or not.
  FASTCONV_INLINE Best<S, kIndices> walk(const S* corner, TapRange rows, TapRange columns,
                                         int64_t lane_stride, int64_t count) const {
    const Window2d& w = s.window;
    Best<S, kIndices> best;
    TapNumber<T> number = 0;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const S* row = corner + r * w.dilation_h * s.input.s[2];
      for (int64_t q = columns.begin; q < columns.end; ++q)
        best.offer(load_strided(row + q * w.dilation_w * s.input.s[3], lane_stride, count),
                   number++);
    }
    return best;
  }

  // A tap is told apart as index h * W + w only here. A window without a tap inside has an index
  // all the same.
  FASTCONV_INLINE void store(const Best<S, kIndices>& best, const Position& at, TapRange rows,
                             TapRange columns, int64_t c, int64_t output_stride,
                             int64_t indices_stride, int64_t w_step, int64_t count) const {
    store_strided(output + at.output + c * s.output.s[1], output_stride, best.value, count);
    if constexpr (kIndices) {
      const Window2d& window = s.window;
      const int64_t width = columns.end - columns.begin;
      const bool empty = rows.begin == rows.end || width == 0;
      TapNumber<T> taps[kLanes];
      best.tap.store(taps);
      for (int64_t l = 0; l < count; ++l) {
        const int64_t row = empty ? not_before(at.h, window.dilation_h)
                                  : at.h + (rows.begin + taps[l] / width) * window.dilation_h;
        const int64_t column = empty ? not_before(at.w, window.dilation_w)
                                     : at.w + (columns.begin + taps[l] % width) * window.dilation_w;
        indices[at.indices + c * s.indices.s[1] + l * indices_stride] =
            row * s.W + column + l * w_step;
      }
    }
  }

  FASTCONV_INLINE static int64_t not_before(int64_t start, int64_t dilation) {
    return start >= 0 ? start : start + (-start + dilation - 1) / dilation * dilation;
  }

  FASTCONV_INLINE Position position(int64_t n, int64_t p, int64_t q) const {
    return {p * s.window.stride_h - s.window.pad_h, q * s.window.stride_w - s.window.pad_w,
            n * s.output.s[0] + p * s.output.s[2] + q * s.output.s[3],
            n * s.indices.s[0] + p * s.indices.s[2] + q * s.indices.s[3]};
  }

  // Output row p of image n, all channels.
  void channels_row(int64_t n, int64_t p) const {
    const Window2d& window = s.window;
    for (int64_t q = 0; q < s.Q; ++q) {
      const Position at = position(n, p, q);
      const TapRange rows = taps_inside(at.h, window.dilation_h, window.R, s.H);
      const TapRange columns = taps_inside(at.w, window.dilation_w, window.S, s.W);
      const S* corner = input + n * s.input.s[0] + at.h * s.input.s[2] + at.w * s.input.s[3];
      int64_t c = 0;
      for (; c + kLanes <= s.C; c += kLanes)
        store(walk(corner + c, rows, columns, 1, kLanes), at, rows, columns, c, 1, s.indices.s[1],
              0, kLanes);
      if (c < s.C)
        store(walk(corner + c, rows, columns, 1, s.C - c), at, rows, columns, c, 1, s.indices.s[1],
              0, s.C - c);
    }
  }

  // Output row p of plane (n, c); outputs [inside_begin, inside_end) of a row have all their
  // columns inside.
  void columns_row(int64_t n, int64_t c, int64_t p, int64_t inside_begin,
                   int64_t inside_end) const {
    const Window2d& window = s.window;
    for (int64_t q = 0; q < s.Q;) {
      const Position at = position(n, p, q);
      const bool inside = q >= inside_begin && q < inside_end;
      const int64_t count = inside ? smaller(kLanes, inside_end - q) : 1;
      const TapRange rows = taps_inside(at.h, window.dilation_h, window.R, s.H);
      const TapRange columns = taps_inside(at.w, window.dilation_w, window.S, s.W);
      const S* corner =
          input + n * s.input.s[0] + c * s.input.s[1] + at.h * s.input.s[2] + at.w * s.input.s[3];
      store(walk(corner, rows, columns, window.stride_w * s.input.s[3], count), at, rows, columns,
            c, s.output.s[3], s.indices.s[3], window.stride_w, count);
      q += count;
    }
  }

  void run() const {
    const Window2d& window = s.window;
    // Rows that are worth a thread: 2^15 comparisons. A window may be far larger than the input.
    const double window_work =
        static_cast<double>(smaller(window.R, s.H)) * static_cast<double>(smaller(window.S, s.W));
    const auto grain = [&](int64_t outputs) {
      return static_cast<int64_t>(0x1p15 / (static_cast<double>(outputs) * window_work)) + 1;
    };
    if (s.input.s[1] == 1 && s.output.s[1] == 1 && s.C > 1) {
      parallel_for(s.N * s.P, grain(s.Q * s.C), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) channels_row(row / s.P, row % s.P);
      });
      return;
    }
    // The outputs of a row whose every column lies inside.
    const int64_t reach = (window.S - 1) * window.dilation_w;
    const int64_t inside_begin =
        smaller((window.pad_w + window.stride_w - 1) / window.stride_w, s.Q);
    const int64_t last = s.W - 1 - reach + window.pad_w;
    const int64_t inside_end =
        larger(smaller(last < 0 ? 0 : last / window.stride_w + 1, s.Q), inside_begin);
    parallel_for(s.N * s.C * s.P, grain(s.Q), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        columns_row(row / s.P / s.C, row / s.P % s.C, row % s.P, inside_begin, inside_end);
    });
  }
};

// backward

constexpr int64_t kPlaneBytes = int64_t{4}
                                << 20;  // sums of the half types: a task's planes, in float32

template <class S>
struct Backward {
  using T = Compute<S>;
  const MaxPool2dShape& s;
  const S* grad_output;
  const int64_t* indices;
  S* grad_input;

  // Adds `count` gradients, each to its plane's sum: that of index h * W + w of lane l lies at
  // (h * W + w) * pixel_stride + l * lane_stride.
  FASTCONV_INLINE void scatter(const S* from, int64_t from_stride, const int64_t* at,
                               int64_t at_stride, int64_t count, T* sums, int64_t pixel_stride,
                               int64_t lane_stride) const {
    const uint64_t plane = static_cast<uint64_t>(s.H * s.W);
    for (int64_t l = 0; l < count; ++l) {
      const int64_t index = at[l * at_stride];
      if (static_cast<uint64_t>(index) < plane)
        sums[index * pixel_stride + l * lane_stride] += to_compute(from[l * from_stride]);
    }
  }

  // Channels [c, c_end) of image n, into sums[h * W + w][c]; a pixel's channels lie next to each
  // other. Outputs in row-major order: of one channel a row at a time, else a pixel at a time.
  void scatter_planes(int64_t n, int64_t c, int64_t c_end, T* sums, int64_t pixel_stride) const {
    const int64_t channels = c_end - c;
    if (pixel_stride == channels)
      clear(sums, s.H * s.W * channels);
    else
      for (int64_t m = 0; m < s.H * s.W; ++m) clear(sums + m * pixel_stride, channels);
    for (int64_t p = 0; p < s.P; ++p) {
      const S* from = grad_output + n * s.output.s[0] + c * s.output.s[1] + p * s.output.s[2];
      const int64_t* at = indices + n * s.indices.s[0] + c * s.indices.s[1] + p * s.indices.s[2];
      if (channels > 1) {
        for (int64_t q = 0; q < s.Q; ++q)
          scatter(from + q * s.output.s[3], s.output.s[1], at + q * s.indices.s[3], s.indices.s[1],
                  channels, sums, pixel_stride, 1);
      } else if (s.output.s[3] == 1 && s.indices.s[3] == 1 && pixel_stride == 1) {
        scatter(from, 1, at, 1, s.Q, sums, 1, 0);
      } else {
        scatter(from, s.output.s[3], at, s.indices.s[3], s.Q, sums, pixel_stride, 0);
      }
    }
  }

  FASTCONV_INLINE static void clear(T* p, int64_t count) {
    __builtin_memset(p, 0, static_cast<unsigned long>(count) * sizeof(T));
  }

  void planes(int64_t n, int64_t c, int64_t c_end) const {
    S* to = grad_input + n * s.input.s[0] + c * s.input.s[1];
    const int64_t channels = c_end - c;
    const bool dense = s.input.s[2] == s.W * s.input.s[3] && (channels == 1 || s.input.s[1] == 1);
    if constexpr (kSame<S, T>)
      if (dense) return scatter_planes(n, c, c_end, to, s.input.s[3]);
    Scratch<T> sums(s.H * s.W * channels);
    scatter_planes(n, c, c_end, sums.data(), channels);
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t w = 0; w < s.W; ++w)
        for (int64_t i = 0; i < channels; ++i)
          to[h * s.input.s[2] + w * s.input.s[3] + i * s.input.s[1]] =
              from_compute<S>(sums.data()[(h * s.W + w) * channels + i]);
  }

  void run() const {
    // Neighbouring channels share cache lines in NHWC: a task takes as many as one line holds.
    int64_t block = 1;
    if (s.input.s[1] == 1)
      block =
          larger(smaller(int64_t{16}, kPlaneBytes / (s.H * s.W * int64_t{sizeof(T)})), int64_t{1});
    const int64_t blocks = (s.C + block - 1) / block;
    const int64_t work = block * (s.P * s.Q + s.H * s.W);
    parallel_for(s.N * blocks, (int64_t{1} << 14) / work + 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t c = task % blocks * block;
        planes(task / blocks, c, smaller(c + block, s.C));
      }
    });
  }
};

template <class Body>
void with_pooled_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kUInt8:
      return body(uint8_t{});
    case DType::kInt8:
      return body(int8_t{});
    case DType::kInt16:
      return body(int16_t{});
    case DType::kInt32:
      return body(int32_t{});
    case DType::kInt64:
      return body(int64_t{});
    default:
      return with_storage_type(dtype, body);
  }
}

}  // namespace

void max_pool2d_forward(const MaxPool2dShape& shape, const void* input, void* output,
                        int64_t* indices) {
  with_pooled_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    if (indices)
      Forward<S, true>{shape, static_cast<const S*>(input), static_cast<S*>(output), indices}.run();
    else
      Forward<S, false>{shape, static_cast<const S*>(input), static_cast<S*>(output), nullptr}
          .run();
  });
}

void max_pool2d_backward(const MaxPool2dShape& shape, const void* grad_output,
                         const int64_t* indices, void* grad_input) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    Backward<S>{shape, static_cast<const S*>(grad_output), indices, static_cast<S*>(grad_input)}
        .run();
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(max_pool2d_forward,
                  (const MaxPool2dShape& shape, const void* input, void* output, int64_t* indices),
                  (shape, input, output, indices))
FASTCONV_DISPATCH(max_pool2d_backward,
                  (const MaxPool2dShape& shape, const void* grad_output, const int64_t* indices,
                   void* grad_input),
                  (shape, grad_output, indices, grad_input))
