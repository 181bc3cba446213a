// Recurrent layers: one layer in one direction over a sequence, forward and backward through time.
//
//   of step t and sequence n, h and c being those of the step before (first those that are given):
//   all cells  a[g,j] = bias_ih[g,j] + sum_i weight_ih[g,j,i] * input[t,n,i]
//              b[g,j] = bias_hh[g,j] + sum_p weight_hh[g,j,p] * h[p]
//   lstm       i, f, o = sigmoid(a + b),  g = tanh(a + b)          gates in the order i f g o
//              c = f * c + i * g,  h = o * tanh(c)
//              and with a projection  h[p] = sum_j weight_hr[p,j] * o[j] * tanh(c[j])
//   gru        r, z = sigmoid(a + b),  n = tanh(a + r * b)         gates in the order r z n
//              h = (1 - z) * n + z * h
//   rnn_tanh   h = tanh(a + b)          rnn_relu   h = max(a + b, 0)
//
// T steps; N sequences; I input size; H hidden size; P size of h: H, or that of the projection; G
// gates; S rows of a sequence, step by step: row_t + n is that of step t and sequence n.
// Sequences may differ in length: batch_sizes[t] of them, the first ones, have a step t; they never
// increase with t, and S is their sum. Backwards in time (`reverse`) each sequence begins at its own
// end.
// float16 and bfloat16 are computed in float32, h and c of all steps included, and rounded once, where
// they are written. The order of every sum depends on the shape and the instruction set alone.
#pragma once
#include "dtype.h"

namespace fastconv {

enum class Cell : int32_t { kLstm, kGru, kRnnTanh, kRnnRelu };

static inline constexpr int64_t gates_of(Cell cell) {
  return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1;
}
// Per unit, what forward keeps for backward: lstm i f g o c, gru r z n b[n].
static inline constexpr int64_t saved_of(Cell cell) {
  return cell == Cell::kLstm ? 5 : cell == Cell::kGru ? 4 : 0;
}
// Per unit, what backward gives: the gradients by a + b; of a gru by r, z, b[n] and a[n].
static inline constexpr int64_t grad_gates_of(Cell cell) {
  return cell == Cell::kGru ? 4 : gates_of(cell);
}

struct RecurrentShape {
  DType dtype;
  Cell cell;
  int64_t T, N, I, H, P, S;
  const int64_t* batch_sizes;  // [T], or null: N each
  bool reverse;
};

// Any strides, in elements; data is null where there is none.
struct RecurrentMatrix {
  const void* data;
  int64_t row, column;
};
// A sequence: element i of step t and sequence n. Of a packed one only `row` counts: t is 0, n a row.
struct RecurrentInput {
  const void* data;
  int64_t step, row, column;
};

struct RecurrentForward {
  RecurrentInput input;
  RecurrentMatrix hx, cx;                           // [N, P], [N, H]
  RecurrentMatrix weight_ih, weight_hh, weight_hr;  // [G*H, I], [G*H, P], [P, H] or null
  RecurrentMatrix bias_ih, bias_hh;                 // [G*H] each, `row` apart; or null
  void *output, *hn, *cn;                           // [S, P], [N, P], [N, H], contiguous
  void* saved;  // [S, saved_of * H] of the compute type, or null: not needed
};

struct RecurrentBackward {
  RecurrentInput grad_output;        // [S, P]
  RecurrentMatrix grad_hn, grad_cn;  // [N, P], [N, H]
  RecurrentMatrix saved;             // [S, saved_of * H] of the compute type
  RecurrentInput output;             // [S, P]; of gru and rnn
  RecurrentMatrix hx, cx;            // of gru, of lstm
  RecurrentMatrix weight_hh, weight_hr;
  void* grad_gates;      // [S, grad_gates_of * H]
  void* grad_projected;  // [S, P], by h before weight_hr is undone; null without a projection
  void *grad_hx, *grad_cx;
};

// Nothing that is written overlaps what is read. May throw std::bad_alloc; then the results are
// unspecified. N, H and P are not zero; T may be.
namespace cpu {
void recurrent_forward(const RecurrentShape& shape, const RecurrentForward& tensors);
void recurrent_backward(const RecurrentShape& shape, const RecurrentBackward& tensors);
}  // namespace cpu

}  // namespace fastconv
