// Recurrent layers, backward through time.
//
//   for each step, the last first                  a barrier behind each: steps.h
//     for each block of h's columns, group of rows one task; a thread keeps its blocks
//       sums = grad_gates of the step after * weight_hh      panels packed once
//       grad_gates of this step                    while the sums are in L1
//     with a projection: two steps                 the gradient by h, then by o * tanh(c)
//   and once more for the first state
//
// What is left are products over all steps at once: grad_gates with weight_ih, input and h, which the
// caller does (fastconv/ops/recurrent.py). Cost: 2 * S * G*H * P operations.
#include "recurrent_rows.h"
#include "squash.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class S>
class Backward {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  Backward(const RecurrentShape& shape, const RecurrentBackward& tensors)
      : s_(shape),
        t_(tensors),
        G_(gates_of(shape.cell)),
        width_(grad_gates_of(shape.cell) * shape.H),
        projects_(tensors.weight_hr.data != nullptr),
        lstm_(shape.cell == Cell::kLstm),
        gru_(shape.cell == Cell::kGru),
        time_(shape),
        slices_(slices_for(shape.N * G_ * shape.H * shape.P)),
        panels_(plain_panels<T>(G_ * s_.H, s_.P)),
        projection_(plain_panels<T>(s_.P, s_.H)),
        panel_memory_(panels_.elements()),
        projection_memory_(projects_ ? projection_.elements() : 0),
        grad_output_(t_.grad_output, shape, s_.P),
        output_(t_.output, shape, s_.P),
        grad_hn_(t_.grad_hn, s_.N, s_.P),
        hx_(t_.hx, s_.N, s_.P),
        cx_(t_.cx, s_.N, s_.H),
        saved_(t_.saved, s_.S, saved_of(s_.cell) * s_.H),
        carry_(lstm_ || gru_ ? s_.N : 0, s_.H),
        gates_memory_(kSame<S, T> ? 0 : s_.S, width_),
        projected_memory_(projects_ && !kSame<S, T> ? s_.S : 0, s_.P),
        gates_(kSame<S, T> ? static_cast<T*>(t_.grad_gates) : gates_memory_.data()),
        projected_(kSame<S, T> ? static_cast<T*>(t_.grad_projected) : projected_memory_.data()) {
    panels_.data = panel_memory_.data();
    projection_.data = projection_memory_.data();
  }

  void run() {
    panels_.pack(static_cast<const S*>(t_.weight_hh.data), t_.weight_hh.column, t_.weight_hh.row);
    if (projects_)
      projection_.pack(static_cast<const S*>(t_.weight_hr.data), t_.weight_hr.column,
                       t_.weight_hr.row);
    if (lstm_) copy_matrix<S>(carry_.data(), t_.grad_cn, s_.N, s_.H);
    if (gru_)
      for (int64_t i = 0; i < s_.N * s_.H; ++i) carry_.data()[i] = 0;
    through_time();
    first_state();
    if constexpr (!kSame<S, T>) round_results();
  }

 private:
  void through_time() {
    const RowGroups groups(s_.N, panels_.blocks(), most_rows(panels_.vectors), slices_);
    const RowGroups projected(s_.N, projection_.blocks(), most_rows(projection_.vectors), slices_);
    const int64_t tasks = panels_.blocks() * groups.count;
    const int64_t projections = projects_ ? projection_.blocks() * projected.count : 0;
    const int phases = projects_ ? 2 : 1;
    run_steps(s_.T * phases, larger(tasks, projections), slices_, [&](int64_t phase, int64_t task) {
      const int64_t t = time_.step(s_.T - 1 - phase / phases);
      if (phase % phases == 0 && task < tasks)
        columns(t, task / groups.count, task % groups.count * groups.size, groups.size);
      if (phase % phases == 1 && task < projections)
        unproject(t, task / projected.count, task % projected.count * projected.size,
                  projected.size);
    });
  }

  // The gradient by a block of h's columns, of the rows [begin, begin + size) of step t.
  void columns(int64_t t, int64_t block, int64_t begin, int64_t size) {
    const int64_t end = smaller(begin + size, time_.count(t));
    const int vectors = panels_.vectors_of(block);
    const int64_t at_once = most_rows(vectors);
    for (int64_t n = begin; n < end; n += at_once) {
      const int64_t count = smaller(at_once, end - n);
      const T* rows[kMostRows];
      int64_t going_on = 0;  // sequences are sorted: those with a step after this come first
      for (; going_on < count; ++going_on) {
        const int64_t row = time_.after(t, n + going_on);
        if (row < 0) break;
        rows[going_on] = gates_ + row * width_;
      }
      alignas(64) RecurrentSums<T> sums;
      if (going_on) multiply_panel(vectors, going_on, rows, panels_.block(block), G_ * s_.H, sums);
      for (int64_t m = 0; m < count; ++m)
        for (int v = 0; v < vectors; ++v) {
          const int64_t p = (block * panels_.vectors + v) * kLanes,
                        lanes = smaller(kLanes, s_.P - p);
          const V later = m < going_on ? V::load(sums + (m * vectors + v) * kLanes)
                                       : load_some(grad_hn_[n + m] + p, lanes);
          const int64_t row = time_.first(t) + n + m;
          const V grad = load_some(grad_output_[row] + p, lanes) + later;
          if (projects_)
            store_some(projected_ + row * s_.P + p, grad, lanes);
          else
            undo_cell(t, n + m, p, lanes, grad);
        }
    }
  }

  // The gradient by a block of o * tanh(c), from that by its projection.
  void unproject(int64_t t, int64_t block, int64_t begin, int64_t size) {
    const int64_t end = smaller(begin + size, time_.count(t));
    const int vectors = projection_.vectors_of(block);
    const int64_t at_once = most_rows(vectors);
    for (int64_t n = begin; n < end; n += at_once) {
      const int64_t count = smaller(at_once, end - n);
      const T* rows[kMostRows];
      for (int64_t m = 0; m < count; ++m) rows[m] = projected_ + (time_.first(t) + n + m) * s_.P;
      alignas(64) RecurrentSums<T> sums;
      multiply_panel(vectors, count, rows, projection_.block(block), s_.P, sums);
      for (int64_t m = 0; m < count; ++m)
        for (int v = 0; v < vectors; ++v) {
          const int64_t j = (block * projection_.vectors + v) * kLanes;
          undo_cell(t, n + m, j, smaller(kLanes, s_.H - j),
                    V::load(sums + (m * vectors + v) * kLanes));
        }
    }
  }

  // From the gradient by h of units j, j + 1, ... to those by their gates.
  FASTCONV_INLINE void undo_cell(int64_t t, int64_t n, int64_t j, int64_t lanes, V grad) {
    const int64_t row = time_.first(t) + n, before = time_.before(t, n);
    const V one = V::broadcast(1);
    T* const to = gates_ + row * width_ + j;
    if (lstm_) {
      const T* cell = before < 0 ? cx_[n] : saved_[before] + 4 * s_.H;
      undo_lstm(to, saved_[row] + j, cell + j, carry_.data() + n * s_.H + j, lanes, grad);
    } else if (gru_) {
      const T* state = before < 0 ? hx_[n] : output_[before];
      undo_gru(to, saved_[row] + j, state + j, carry_.data() + n * s_.H + j, lanes, grad);
    } else {
      const V h = load_some(output_[row] + j, lanes), zero = V::zero();
      if (s_.cell == Cell::kRnnTanh)
        store_some(to, grad * (one - h * h), lanes);
      else  // as torch's: a NaN lets the gradient through
        store_some(to, V{h.raw <= zero.raw ? zero.raw : grad.raw}, lanes);
    }
  }

  FASTCONV_INLINE void undo_lstm(T* to, const T* saved, const T* cell_before, T* carry,
                                 int64_t lanes, V grad) {
    const int64_t H = s_.H;
    const V one = V::broadcast(1);
    const V i = load_some(saved, lanes), f = load_some(saved + H, lanes),
            g = load_some(saved + 2 * H, lanes), o = load_some(saved + 3 * H, lanes);
    const V squashed = tanh(load_some(saved + 4 * H, lanes));
    const V by_c = load_some(carry, lanes) + grad * o * (one - squashed * squashed);
    store_some(carry, by_c * f, lanes);
    store_some(to, by_c * g * i * (one - i), lanes);
    store_some(to + H, by_c * load_some(cell_before, lanes) * f * (one - f), lanes);
    store_some(to + 2 * H, by_c * i * (one - g * g), lanes);
    store_some(to + 3 * H, grad * squashed * o * (one - o), lanes);
  }

  // The part of h's gradient that goes by z straight to the state before is carried.
  FASTCONV_INLINE void undo_gru(T* to, const T* saved, const T* before, T* carry, int64_t lanes,
                                V grad) {
    const int64_t H = s_.H;
    const V one = V::broadcast(1);
    const V r = load_some(saved, lanes), z = load_some(saved + H, lanes),
            n = load_some(saved + 2 * H, lanes), b = load_some(saved + 3 * H, lanes);
    const V all = grad + load_some(carry, lanes);
    const V by_n = all * (one - z) * (one - n * n);
    store_some(carry, all * z, lanes);
    store_some(to, by_n * b * r * (one - r), lanes);
    store_some(to + H, all * (load_some(before, lanes) - n) * z * (one - z), lanes);
    store_some(to + 2 * H, by_n * r, lanes);
    store_some(to + 3 * H, by_n, lanes);
  }

  void first_state() {
    const int64_t blocks = panels_.blocks();
    parallel_for(blocks, (int64_t{1} << 15) / (s_.N * G_ * s_.H * kLanes) + 1,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t block = begin; block < end; ++block)
                     for (int64_t n = 0; n < s_.N; ++n) first_state(block, n);
                 });
    if (lstm_)
      for (int64_t n = 0; n < s_.N; ++n)
        write_row(static_cast<S*>(t_.grad_cx) + n * s_.H, carry_.data() + n * s_.H, s_.H);
  }

  void first_state(int64_t block, int64_t n) {
    const int64_t row = time_.begin(n);
    const int vectors = panels_.vectors_of(block);
    alignas(64) RecurrentSums<T> sums;
    if (row >= 0) {
      const T* rows[] = {gates_ + row * width_};
      multiply_panel(vectors, 1, rows, panels_.block(block), G_ * s_.H, sums);
    }
    for (int v = 0; v < vectors; ++v) {
      const int64_t p = (block * panels_.vectors + v) * kLanes, lanes = smaller(kLanes, s_.P - p);
      V grad = row >= 0 ? V::load(sums + v * kLanes) : load_some(grad_hn_[n] + p, lanes);
      if (gru_) grad = grad + load_some(carry_.data() + n * s_.H + p, lanes);
      store_some_from_compute(static_cast<S*>(t_.grad_hx) + n * s_.P + p, grad, lanes);
    }
  }

  void round_results() {
    parallel_for(s_.S, (int64_t{1} << 14) / width_ + 1, [&](int64_t begin, int64_t end) {
      write_row(static_cast<S*>(t_.grad_gates) + begin * width_, gates_ + begin * width_,
                (end - begin) * width_);
      if (projects_)
        write_row(static_cast<S*>(t_.grad_projected) + begin * s_.P, projected_ + begin * s_.P,
                  (end - begin) * s_.P);
    });
  }

  const RecurrentShape& s_;
  const RecurrentBackward& t_;
  const int64_t G_, width_;
  const bool projects_, lstm_, gru_;
  const Timeline time_;
  const int64_t slices_;
  Panels<T> panels_, projection_;
  Scratch<T> panel_memory_, projection_memory_;
  const DenseRows<S> grad_output_, output_, grad_hn_, hx_, cx_;
  const DenseRows<T> saved_;
  Scratch<T> carry_;  // [N, H]: the gradient by c, or a gru's part by z
  Scratch<T> gates_memory_, projected_memory_;
  T *const gates_, *const projected_;
};

}  // namespace

void recurrent_backward(const RecurrentShape& shape, const RecurrentBackward& tensors) {
  with_storage_type(shape.dtype,
                    [&](auto zero) { Backward<decltype(zero)>(shape, tensors).run(); });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(recurrent_backward,
                  (const RecurrentShape& shape, const RecurrentBackward& tensors), (shape, tensors))
