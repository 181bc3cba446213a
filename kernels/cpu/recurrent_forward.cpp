// Recurrent layers, forward.
//
//   for each chunk of steps that fits the cache
//     all its input products at once                 conv2d's pointwise product
//     for each step                                  a barrier behind each: steps.h
//       for each block of units and group of rows    one task; a thread keeps its blocks
//         sums = h * weight_hh                       panels packed once, gates side by side
//         gates, c and h of those units              while the sums are in L1
//       with a projection: a second step             h = (o * tanh(c)) * weight_hr
//
// A single step reads both weights where they lie: recurrent_direct.h.
// Cost: 2 * S * G*H * (I + P) operations.
#include "../conv2d.h"
#include "recurrent_direct.h"
#include "recurrent_rows.h"
#include "squash.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Of input products, per chunk: what L2 and L3 hold together; and rows enough to be worth packing
// weight_ih for.
constexpr int64_t kChunkBytes = int64_t{4} << 20;
constexpr int64_t kChunkRows = 256;

template <class S>
class Forward {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  Forward(const RecurrentShape& shape, const RecurrentForward& tensors)
      : s_(shape),
        t_(tensors),
        G_(gates_of(shape.cell)),
        projects_(tensors.weight_hr.data != nullptr),
        lstm_(shape.cell == Cell::kLstm),
        direct_(is_direct(shape, tensors)),
        time_(shape),
        slices_(slices_for(shape.N * G_ * shape.H * (shape.P + (direct_ ? shape.I : 0)))),
        panels_(G_ > 1 ? Panels<T>{s_.P, s_.H, static_cast<int>(G_), static_cast<int>(G_), nullptr}
                       : plain_panels<T>(s_.P, s_.H)),
        projection_(plain_panels<T>(s_.H, s_.P)),
        panel_memory_(direct_ ? 0 : panels_.elements()),
        projection_memory_(projects_ ? projection_.elements() : 0),
        bias_(G_ * s_.H),
        bias_hidden_(s_.H),
        h0_(s_.N, s_.P),
        h_memory_(kSame<S, T> ? 0 : s_.S, s_.P),
        c_(lstm_ ? s_.N : 0, s_.H),
        unprojected_(projects_ ? s_.N : 0, s_.H),
        input_(direct_ ? t_.input : RecurrentInput{}, shape, larger<int64_t>(s_.I, 1)),
        hidden_(kSame<S, T> ? static_cast<T*>(t_.output) : h_memory_.data()) {
    panels_.data = panel_memory_.data();
    projection_.data = projection_memory_.data();
  }

  void run() {
    prepare();
    const int64_t rows_at_once = larger(kChunkRows, kChunkBytes / (G_ * s_.H * int64_t{sizeof(T)}));
    int64_t begin = 0;
    while (begin < s_.T) {
      int64_t end = begin, rows = 0;
      for (; end < s_.T && (end == begin || rows + time_.count(time_.step(end)) <= rows_at_once);
           ++end)
        rows += time_.count(time_.step(end));
      chunk(begin, end, rows);
      begin = end;
    }
    finish();
  }

 private:
  // A sum across lanes costs as much as some products: packing saves it where rows are many and sums
  // short (measured, Zen 4: as many rows as a sixteenth of a sum's length).
  static bool is_direct(const RecurrentShape& s, const RecurrentForward& t) {
    return s.T == 1 && s.I > 0 && t.weight_ih.column == 1 && t.weight_hh.column == 1 &&
           s.N <= larger<int64_t>(4, (s.I + s.P) / 16);
  }

  void prepare() {
    if (!direct_)
      panels_.pack(static_cast<const S*>(t_.weight_hh.data), t_.weight_hh.row, t_.weight_hh.column);
    if (projects_)
      projection_.pack(static_cast<const S*>(t_.weight_hr.data), t_.weight_hr.row,
                       t_.weight_hr.column);
    copy_matrix<S>(h0_.data(), t_.hx, s_.N, s_.P);
    if (lstm_) copy_matrix<S>(c_.data(), t_.cx, s_.N, s_.H);
    // a gru's b[n] goes into n times r: its bias stays apart
    const auto at = [](const RecurrentMatrix& bias, int64_t i) {
      return bias.data ? to_compute(static_cast<const S*>(bias.data)[i * bias.row]) : T{0};
    };
    const int64_t joint = s_.cell == Cell::kGru ? 2 * s_.H : G_ * s_.H;
    for (int64_t i = 0; i < G_ * s_.H; ++i)
      bias_.data()[i] = at(t_.bias_ih, i) + (i < joint ? at(t_.bias_hh, i) : T{0});
    for (int64_t j = 0; j < s_.H; ++j)
      bias_hidden_.data()[j] = joint < G_ * s_.H ? at(t_.bias_hh, joint + j) : T{0};
  }

  // Steps [begin, end) in the order of computation, which have so many rows.
  void chunk(int64_t begin, int64_t end, int64_t rows) {
    const int64_t earliest = smaller(time_.step(begin), time_.step(end - 1));
    const int64_t first_row = time_.first(earliest);
    Scratch<T> gates(direct_ ? 0 : rows, G_ * s_.H);
    if (!direct_) multiply_input(earliest, end - begin, rows, gates.data());
    const RowGroups groups(s_.N, panels_.blocks(), most_rows(panels_.vectors), slices_);
    const RowGroups projected(s_.N, projection_.blocks(), most_rows(projection_.vectors), slices_);
    const int64_t tasks = panels_.blocks() * groups.count;
    const int64_t projections = projects_ ? projection_.blocks() * projected.count : 0;
    const int phases = projects_ ? 2 : 1;
    run_steps((end - begin) * phases, larger(tasks, projections), slices_,
              [&](int64_t phase, int64_t task) {
                const int64_t t = time_.step(begin + phase / phases);
                if (phase % phases == 0 && task < tasks && direct_)
                  units(task / groups.count, task % groups.count * groups.size, groups.size);
                else if (phase % phases == 0 && task < tasks)
                  units(t, task / groups.count, task % groups.count * groups.size, groups.size,
                        gates.data() + (time_.first(t) - first_row) * G_ * s_.H);
                if (phase % phases == 1 && task < projections)
                  project(t, task / projected.count, task % projected.count * projected.size,
                          projected.size);
              });
  }

  // gates[row][g*H + j] = bias + input[row] * weight_ih, of `steps` steps from t on.
  void multiply_input(int64_t t, int64_t steps, int64_t rows, T* gates) const {
    const int64_t columns = G_ * s_.H, first = time_.first(t);
    if (rows == 0) return;
    if (s_.I == 0) {
      for (int64_t i = 0; i < rows; ++i) copy_row(gates + i * columns, bias_.data(), 1, columns);
      return;
    }
    const bool packed = s_.batch_sizes != nullptr, copies = !kSame<S, T>;
    const auto* from =
        static_cast<const S*>(t_.input.data) + (packed ? first * t_.input.row : t * t_.input.step);
    Scratch<T> input(copies ? rows : 0, s_.I), weight(copies ? columns : 0, s_.I);
    Conv2dShape shape{};
    shape.dtype = kSame<T, double> ? DType::kFloat64 : DType::kFloat32;
    const bool even = packed || copies || t_.input.step == s_.N * t_.input.row;
    shape.N = 1, shape.C = s_.I, shape.K = columns, shape.G = 1;
    shape.H = shape.P = even ? 1 : steps;
    shape.W = shape.Q = even ? rows : s_.N;
    shape.window = {1, 1, 1, 1, 0, 0, 1, 1};
    shape.input = {{0, t_.input.column, t_.input.step, t_.input.row}};
    shape.weight = {{t_.weight_ih.row, t_.weight_ih.column, 1, 1}};
    shape.output = {{rows * columns, 1, shape.W * columns, columns}};
    shape.bias_stride = 1;
    const void *x = from, *w = t_.weight_ih.data;
    if (copies) {
      const auto source = [&](int64_t i) {
        return packed ? from + i * t_.input.row
                      : from + i / s_.N * t_.input.step + i % s_.N * t_.input.row;
      };
      parallel_for(rows, (int64_t{1} << 14) / s_.I + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          copy_row(input.data() + i * s_.I, source(i), t_.input.column, s_.I);
      });
      copy_matrix<S>(weight.data(), t_.weight_ih, columns, s_.I);
      shape.input = {{0, 1, rows * s_.I, s_.I}};
      shape.weight = {{s_.I, 1, 1, 1}};
      x = input.data(), w = weight.data();
    }
    cpu::conv2d_forward(shape, x, w, bias_.data(), nullptr, nullptr, gates);
  }

  const T* state_before(int64_t t, int64_t n) const {
    const int64_t row = time_.before(t, n);
    return row < 0 ? h0_.data() + n * s_.P : hidden_ + row * s_.P;
  }

  // The units of a block, of the rows [begin, begin + size) of step t. gates: of the step's rows.
  void units(int64_t t, int64_t block, int64_t begin, int64_t size, const T* gates) {
    const int64_t end = smaller(begin + size, time_.count(t));
    const int vectors = panels_.vectors_of(block);
    const int64_t at_once = most_rows(vectors);
    for (int64_t n = begin; n < end; n += at_once) {
      const int64_t count = smaller(at_once, end - n);
      const T* rows[kMostRows];
      for (int64_t m = 0; m < count; ++m) rows[m] = state_before(t, n + m);
      alignas(64) RecurrentSums<T> sums;
      multiply_panel(vectors, count, rows, panels_.block(block), s_.P, sums);
      for (int64_t m = 0; m < count; ++m)
        finish_units(t, n + m, block, rows[m], gates + (n + m) * G_ * s_.H + first_unit(block),
                     s_.H, sums + m * vectors * kLanes);
    }
  }

  // The same of a single step, without panels or input products.
  void units(int64_t block, int64_t begin, int64_t size) {
    const int64_t end = smaller(begin + size, s_.N), j = first_unit(block);
    const int vectors = panels_.vectors_of(block);
    const int64_t apart = G_ > 1 ? s_.H : kLanes;  // rows of the weight, from vector to vector
    const auto *w_ih = static_cast<const S*>(t_.weight_ih.data),
               *w_hh = static_cast<const S*>(t_.weight_hh.data);
    for (int64_t n = begin; n < end; n += kMostRows) {
      const int64_t count = smaller<int64_t>(kMostRows, end - n), step = vectors * kLanes;
      const T *inputs[kMostRows], *states[kMostRows];
      for (int64_t m = 0; m < count; ++m)
        inputs[m] = input_[n + m], states[m] = h0_.data() + (n + m) * s_.P;
      alignas(64) RecurrentSums<T> gates, sums;
      for (int v = 0; v < vectors; ++v) {
        const int64_t row = j + v * apart;
        const int64_t lanes = smaller(kLanes, s_.H - (G_ > 1 ? j : row));
        multiply_direct(count, inputs, w_ih + row * t_.weight_ih.row, t_.weight_ih.row, s_.I, lanes,
                        gates + v * kLanes, step);
        multiply_direct(count, states, w_hh + row * t_.weight_hh.row, t_.weight_hh.row, s_.P, lanes,
                        sums + v * kLanes, step);
        const V bias = load_some(bias_.data() + row, lanes);
        for (int64_t m = 0; m < count; ++m) {
          T* const at = gates + m * step + v * kLanes;
          store_some(at, load_some(at, lanes) + bias, lanes);
        }
      }
      for (int64_t m = 0; m < count; ++m)
        finish_units(0, n + m, block, states[m], gates + m * step, kLanes, sums + m * step);
    }
  }

  int64_t first_unit(int64_t block) const {
    return block * (G_ > 1 ? 1 : panels_.vectors) * kLanes;
  }

  // a: input products from the block's first unit on, gates `apart`.
  void finish_units(int64_t t, int64_t n, int64_t block, const T* before, const T* a, int64_t apart,
                    const T* sums) {
    const int64_t row = time_.first(t) + n;
    if (G_ > 1) {
      const int64_t j = block * kLanes, lanes = smaller(kLanes, s_.H - j);
      return lstm_ ? finish_lstm(row, n, j, lanes, a, apart, sums)
                   : finish_gru(row, j, lanes, a, apart, sums, before);
    }
    const int vectors = panels_.vectors_of(block);
    for (int v = 0; v < vectors; ++v) {
      const int64_t j = (block * panels_.vectors + v) * kLanes, lanes = smaller(kLanes, s_.H - j);
      const V x = load_some(a + v * kLanes, lanes) + V::load(sums + v * kLanes);
      const V h = s_.cell == Cell::kRnnTanh ? tanh(x) : at_least(x, T{0});
      store_some(hidden_ + row * s_.P + j, h, lanes);
    }
  }

  void finish_lstm(int64_t row, int64_t n, int64_t j, int64_t lanes, const T* a, int64_t apart,
                   const T* sums) {
    const int64_t H = s_.H;
    const auto gate = [&](int g) {
      return load_some(a + g * apart, lanes) + V::load(sums + g * kLanes);
    };
    const V i = sigmoid(gate(0)), f = sigmoid(gate(1)), g = tanh(gate(2)), o = sigmoid(gate(3));
    T* const state = c_.data() + n * H + j;
    const V c = f * load_some(state, lanes) + i * g;
    store_some(state, c, lanes);
    store_some((projects_ ? unprojected_.data() + n * H : hidden_ + row * s_.P) + j, o * tanh(c),
               lanes);
    if (!t_.saved) return;
    T* const saved = static_cast<T*>(t_.saved) + row * 5 * H + j;
    const V all[] = {i, f, g, o, c};
    for (int k = 0; k < 5; ++k) store_some(saved + k * H, all[k], lanes);
  }

  void finish_gru(int64_t row, int64_t j, int64_t lanes, const T* a, int64_t apart, const T* sums,
                  const T* before) {
    const int64_t H = s_.H;
    const V r = sigmoid(load_some(a, lanes) + V::load(sums));
    const V z = sigmoid(load_some(a + apart, lanes) + V::load(sums + kLanes));
    const V b = V::load(sums + 2 * kLanes) + load_some(bias_hidden_.data() + j, lanes);
    const V n = tanh(load_some(a + 2 * apart, lanes) + r * b);
    const V h = (V::broadcast(1) - z) * n + z * load_some(before + j, lanes);
    store_some(hidden_ + row * s_.P + j, h, lanes);
    if (!t_.saved) return;
    T* const saved = static_cast<T*>(t_.saved) + row * 4 * H + j;
    const V all[] = {r, z, n, b};
    for (int k = 0; k < 4; ++k) store_some(saved + k * H, all[k], lanes);
  }

  void project(int64_t t, int64_t block, int64_t begin, int64_t size) {
    const int64_t end = smaller(begin + size, time_.count(t));
    const int vectors = projection_.vectors_of(block);
    const int64_t at_once = most_rows(vectors);
    for (int64_t n = begin; n < end; n += at_once) {
      const int64_t count = smaller(at_once, end - n);
      const T* rows[kMostRows];
      for (int64_t m = 0; m < count; ++m) rows[m] = unprojected_.data() + (n + m) * s_.H;
      alignas(64) RecurrentSums<T> sums;
      multiply_panel(vectors, count, rows, projection_.block(block), s_.H, sums);
      for (int64_t m = 0; m < count; ++m)
        for (int v = 0; v < vectors; ++v) {
          const int64_t p = (block * projection_.vectors + v) * kLanes;
          store_some(hidden_ + (time_.first(t) + n + m) * s_.P + p,
                     V::load(sums + (m * vectors + v) * kLanes), smaller(kLanes, s_.P - p));
        }
    }
  }

  // The last state of every sequence; what is of another type than the caller's is rounded.
  void finish() {
    for (int64_t n = 0; n < s_.N; ++n) {
      const int64_t row = time_.end(n);
      write_row(static_cast<S*>(t_.hn) + n * s_.P,
                row < 0 ? h0_.data() + n * s_.P : hidden_ + row * s_.P, s_.P);
      if (lstm_) write_row(static_cast<S*>(t_.cn) + n * s_.H, c_.data() + n * s_.H, s_.H);
    }
    if constexpr (!kSame<S, T>)
      parallel_for(s_.S, (int64_t{1} << 14) / s_.P + 1, [&](int64_t begin, int64_t end) {
        write_row(static_cast<S*>(t_.output) + begin * s_.P, hidden_ + begin * s_.P,
                  (end - begin) * s_.P);
      });
  }

  const RecurrentShape& s_;
  const RecurrentForward& t_;
  const int64_t G_;
  const bool projects_, lstm_, direct_;
  const Timeline time_;
  const int64_t slices_;
  Panels<T> panels_, projection_;
  Scratch<T> panel_memory_, projection_memory_, bias_, bias_hidden_, h0_, h_memory_, c_,
      unprojected_;
  const DenseRows<S> input_;  // of a single step
  T* const hidden_;           // [S, P]: h after every step
};

}  // namespace

void recurrent_forward(const RecurrentShape& shape, const RecurrentForward& tensors) {
  with_storage_type(shape.dtype, [&](auto zero) { Forward<decltype(zero)>(shape, tensors).run(); });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(recurrent_forward, (const RecurrentShape& shape, const RecurrentForward& tensors),
                  (shape, tensors))
