// What the steps of a recurrent layer read and write: rows of a sequence and of a state.
#pragma once
#include "recurrent_product.h"

namespace fastconv::cpu::FASTCONV_ISA {

// Which rows belong to a step, and to the one before it.
class Timeline {
 public:
  explicit Timeline(const RecurrentShape& shape) : shape_(shape), first_(shape.T + 1) {
    int64_t row = 0;
    for (int64_t t = 0; t < shape.T; ++t) {
      first_.data()[t] = row;
      row += count(t);
    }
    first_.data()[shape.T] = row;
  }
  // Of the s-th step in the order of computation.
  int64_t step(int64_t s) const { return shape_.reverse ? shape_.T - 1 - s : s; }
  int64_t count(int64_t t) const { return shape_.batch_sizes ? shape_.batch_sizes[t] : shape_.N; }
  int64_t first(int64_t t) const { return first_.data()[t]; }

  // The row of sequence n in the step computed before t, or after it; -1 where there is none.
  int64_t before(int64_t t, int64_t n) const { return row(shape_.reverse ? t + 1 : t - 1, n); }
  int64_t after(int64_t t, int64_t n) const { return row(shape_.reverse ? t - 1 : t + 1, n); }
  // The row of the first and the last step of sequence n, as computed; -1 if it has none.
  int64_t begin(int64_t n) const { return shape_.reverse ? last_in_time(n) : row(0, n); }
  int64_t end(int64_t n) const { return shape_.reverse ? row(0, n) : last_in_time(n); }

 private:
  int64_t row(int64_t t, int64_t n) const {
    return t >= 0 && t < shape_.T && n < count(t) ? first(t) + n : -1;
  }
  int64_t last_in_time(int64_t n) const {
    int64_t t = shape_.T - 1;
    while (t >= 0 && n >= count(t)) --t;
    return row(t, n);
  }

  const RecurrentShape& shape_;
  Scratch<int64_t> first_;
};

template <class S>
static void copy_row(Compute<S>* to, const S* from, int64_t stride, int64_t count) {
  using V = Vec<Compute<S>>;
  if (stride == 1)
    for (int64_t i = 0; i < count; i += V::kLanes) {
      const int64_t lanes = smaller<int64_t>(V::kLanes, count - i);
      store_some(to + i, load_some_as_compute(from + i, lanes), lanes);
    }
  else
    for (int64_t i = 0; i < count; ++i) to[i] = to_compute(from[i * stride]);
}

template <class S>
static void write_row(S* to, const Compute<S>* from, int64_t count) {
  using V = Vec<Compute<S>>;
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int64_t lanes = smaller<int64_t>(V::kLanes, count - i);
    store_some_from_compute(to + i, load_some(from + i, lanes), lanes);
  }
}

template <class S>
static void copy_matrix(Compute<S>* to, const RecurrentMatrix& from, int64_t rows,
                        int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    copy_row(to + i * columns, static_cast<const S*>(from.data) + i * from.row, from.column,
             columns);
}

// Rows of the compute type whose elements are neighbours: the caller's own, or a copy.
template <class S>
class DenseRows {
  using T = Compute<S>;

 public:
  // A matrix; without data there are no rows.
  DenseRows(const RecurrentMatrix& from, int64_t rows, int64_t columns)
      : memory_(needs_copy(from.data, from.column) ? rows : 0, columns),
        data_(static_cast<const T*>(from.data)),
        row_(from.row) {
    if (!memory_.data()) return;
    copy_matrix<S>(memory_.data(), from, rows, columns);
    data_ = memory_.data(), row_ = columns;
  }
  // A sequence.
  DenseRows(const RecurrentInput& from, const RecurrentShape& shape, int64_t columns)
      : memory_(needs_copy(from.data, from.column) || !is_even(from, shape) ? shape.S : 0, columns),
        data_(static_cast<const T*>(from.data)),
        row_(from.row) {
    if (!memory_.data() || !from.data) return;
    const int64_t N = shape.batch_sizes ? 1 : shape.N;
    parallel_for(shape.S, (int64_t{1} << 14) / columns + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        copy_row(memory_.data() + i * columns,
                 static_cast<const S*>(from.data) +
                     (shape.batch_sizes ? i * from.row : i / N * from.step + i % N * from.row),
                 from.column, columns);
    });
    data_ = memory_.data(), row_ = columns;
  }
  const T* operator[](int64_t row) const { return data_ + row * row_; }

 private:
  static bool needs_copy(const void* data, int64_t column) {
    return data && (!kSame<S, T> || column != 1);
  }
  // Rows of all steps lie evenly apart.
  static bool is_even(const RecurrentInput& from, const RecurrentShape& shape) {
    return !from.data || shape.batch_sizes || from.step == shape.N * from.row || shape.T <= 1;
  }

  Scratch<T> memory_;
  const T* data_;
  int64_t row_;
};

// Threads that are worth their waiting for each other: so many products per step for each.
static inline int64_t slices_for(int64_t products_per_step) {
  constexpr int64_t kProductsPerThread = int64_t{1} << 15;
  return smaller<int64_t>(num_threads(), products_per_step / kProductsPerThread);
}

// Rows of a step in groups, so that few blocks of columns are enough work for every thread.
struct RowGroups {
  int64_t size, count;
  RowGroups(int64_t N, int64_t blocks, int rows_at_once, int64_t slices) {
    const int64_t wanted = blocks >= 4 * slices ? 1 : divide_up(4 * slices, blocks);
    size = divide_up(divide_up(N, wanted), int64_t{rows_at_once}) * rows_at_once;
    count = divide_up(N, size);
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
