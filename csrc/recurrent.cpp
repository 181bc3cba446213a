// lstm, gru, rnn_tanh and rnn_relu, one layer in one direction, and what their gradients begin with:
// what is legal, what the results look like, which kernel runs.
#include "kernels/recurrent.h"

#include <vector>

#include "check.h"

namespace fastconv {
namespace {

constexpr const char* kNames[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
constexpr const char* kBackwardNames[] = {"lstm_backward", "gru_backward", "rnn_tanh_backward",
                                          "rnn_relu_backward"};

// One call's checks: its operation's name, and the tensor that the others must match.
struct Checker {
  const char* name;
  const TensorView& first;
  const char* first_name;

  void size(const TensorView& tensor, const char* what,
            std::initializer_list<int64_t> wanted) const {
    bool same = tensor.ndim == static_cast<int>(wanted.size());
    for (int d = 0; same && d < tensor.ndim; ++d) same = tensor.sizes[d] == wanted.begin()[d];
    if (!same)
      fail(name, std::string(what) + " of size " + text_of(wanted.size(), wanted.begin()),
           sizes_of(tensor));
  }
  void alike(const TensorView& tensor, const char* what) const {
    check_same_dtype(name, first, first_name, tensor, what);
    check_same_device(name, first, first_name, tensor, what);
  }
  RecurrentMatrix matrix(const TensorView& tensor, const char* what, int64_t rows,
                         int64_t columns) const {
    size(tensor, what, {rows, columns});
    alike(tensor, what);
    return {tensor.data, tensor.strides[0], tensor.strides[1]};
  }
  RecurrentMatrix vector(const TensorView* tensor, const char* what, int64_t count) const {
    if (!tensor) return {};
    size(*tensor, what, {count});
    alike(*tensor, what);
    return {tensor->data, tensor->strides[0], 0};
  }
  // [T, N, columns], or [S, columns] where batch_sizes says what belongs together.
  RecurrentInput sequence(const TensorView& tensor, const char* what, const RecurrentShape& s,
                          int64_t columns) const {
    if (s.batch_sizes)
      size(tensor, what, {s.S, columns});
    else
      size(tensor, what, {s.T, s.N, columns});
    alike(tensor, what);
    const int64_t* strides = tensor.strides;
    return s.batch_sizes ? RecurrentInput{tensor.data, 0, strides[0], strides[1]}
                         : RecurrentInput{tensor.data, strides[0], strides[1], strides[2]};
  }
};

void check_rank(const char* name, const TensorView& tensor, const char* what, int ndim) {
  if (tensor.ndim != ndim)
    fail(name, std::string(what) + " of " + std::to_string(ndim) + " axes",
         "size " + sizes_of(tensor));
}

// The sequence's extents, T, N and S; `sizes` keeps its batch sizes.
void describe_sequence(const char* name, const TensorView& sequence, const TensorView* batch_sizes,
                       const char* what, int64_t N, RecurrentShape& s,
                       std::vector<int64_t>& sizes) {
  check_rank(name, sequence, what, batch_sizes ? 2 : 3);
  s.N = N;
  if (!batch_sizes) {
    s.T = sequence.sizes[0], s.S = s.T * sequence.sizes[1];
    if (sequence.sizes[1] != N)
      fail(name, std::string(what) + " of " + std::to_string(N) + " sequences, as the state",
           "size " + sizes_of(sequence));
    return;
  }
  if (batch_sizes->device.type != DeviceType::kCpu || batch_sizes->dtype != DType::kInt64)
    fail(name, "batch_sizes of dtype int64 on the CPU",
         std::string(name_of(batch_sizes->dtype)) + " on " + text_of(batch_sizes->device));
  check_rank(name, *batch_sizes, "batch_sizes", 1);
  s.T = batch_sizes->sizes[0];
  const auto* data = static_cast<const int64_t*>(batch_sizes->data);
  int64_t least = N;
  for (int64_t t = 0; t < s.T; ++t) {
    const int64_t size = data[t * batch_sizes->strides[0]];
    if (size < 1 || size > least || (t == 0 && size != N))
      fail(name,
           "batch_sizes that begin with " + std::to_string(N) +
               ", as the state, are >= 1 and never increase",
           std::to_string(size) + " at " + std::to_string(t));
    sizes.push_back(size);
    s.S += size, least = size;
  }
  if (s.S != sequence.sizes[0])
    fail(name,
         std::string(what) + " of as many rows as batch_sizes sum up to, " + std::to_string(s.S),
         "size " + sizes_of(sequence));
  s.batch_sizes = sizes.data();
  if (s.T == 0) fail(name, "batch_sizes of at least one step", "none");
}

void check_element_type(const char* name, const TensorView& tensor) {
  if (!is_floating(tensor.dtype))
    fail_dtype(name, "float32, float64, float16 or bfloat16", tensor.dtype);
  if (tensor.device.type != DeviceType::kCpu)
    fail(name, "CPU tensors, for which alone it has kernels", text_of(tensor.device));
}

DType saved_type(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// Sizes of a state and its gates, from weight_hh [G*H, P]; with weight_hr [P, H].
void describe_weights(const char* name, const TensorView& weight_hh, const TensorView* weight_hr,
                      RecurrentShape& s) {
  check_rank(name, weight_hh, "weight_hh", 2);
  const int64_t gates = gates_of(s.cell);
  s.P = weight_hh.sizes[1], s.H = weight_hh.sizes[0] / gates;
  if (weight_hh.sizes[0] % gates != 0 || (!weight_hr && s.H != s.P) || s.H < 1 || s.P < 1)
    fail(name, "weight_hh of size [" + std::to_string(gates) + " * hidden_size, size of the state]",
         sizes_of(weight_hh));
}

void check_extents(const char* name, const RecurrentShape& s) {
  const int64_t extents[] = {s.S, s.I, s.H, s.P};
  for (int64_t extent : extents)
    if (extent > kLargestParameter) fail(name, "extents of at most 2^40", text_of(4, extents));
}

// A new tensor of 2 or 3 sizes, contiguous.
TensorView new_dense(const char* name, Call& call, std::initializer_list<int64_t> sizes,
                     DType dtype, Device device) {
  int64_t strides[3], stride = 1;
  const int ndim = static_cast<int>(sizes.size());
  for (int d = ndim - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes.begin()[d] > 0 ? sizes.begin()[d] : 1;
  }
  return new_strided_tensor(name, call, ndim, sizes.begin(), strides, dtype, device);
}

TensorView new_sequence(const char* name, Call& call, const RecurrentShape& s, int64_t columns,
                        DType dtype, Device device) {
  return s.batch_sizes ? new_dense(name, call, {s.S, columns}, dtype, device)
                       : new_dense(name, call, {s.T, s.N, columns}, dtype, device);
}

void forward(Call& call, Cell cell) {
  const char* const name = kNames[static_cast<int>(cell)];
  const bool lstm = cell == Cell::kLstm;
  int i = 0;
  const TensorView &input = call.tensor(i++), &hx = call.tensor(i++);
  const TensorView* cx = lstm ? &call.tensor(i++) : nullptr;
  const TensorView &weight_ih = call.tensor(i++), &weight_hh = call.tensor(i++);
  const TensorView *bias_ih = call.optional_tensor(i++), *bias_hh = call.optional_tensor(i++);
  const TensorView* weight_hr = lstm ? call.optional_tensor(i++) : nullptr;
  const TensorView* batch_sizes = call.optional_tensor(i++);
  const bool reverse = call.integer(i++), save = call.integer(i++);

  RecurrentShape s{};
  std::vector<int64_t> sizes;
  s.dtype = input.dtype, s.cell = cell, s.reverse = reverse;
  check_element_type(name, input);
  check_rank(name, hx, "hx", 2);
  describe_weights(name, weight_hh, weight_hr, s);
  describe_sequence(name, input, batch_sizes, "input", hx.sizes[0], s, sizes);
  s.I = input.sizes[input.ndim - 1];
  check_extents(name, s);
  const Checker check{name, input, "input"};
  const int64_t columns = gates_of(cell) * s.H;
  RecurrentForward t{};
  t.input = check.sequence(input, "input", s, s.I);
  t.hx = check.matrix(hx, "hx", s.N, s.P);
  if (cx) t.cx = check.matrix(*cx, "cx", s.N, s.H);
  t.weight_ih = check.matrix(weight_ih, "weight_ih", columns, s.I);
  t.weight_hh = check.matrix(weight_hh, "weight_hh", columns, s.P);
  if (weight_hr) t.weight_hr = check.matrix(*weight_hr, "weight_hr", s.P, s.H);
  t.bias_ih = check.vector(bias_ih, "bias_ih", columns);
  t.bias_hh = check.vector(bias_hh, "bias_hh", columns);

  int result = 0;
  const auto keep = [&](const TensorView& tensor) {
    call.results[result++] = tensor;
    return tensor.data;
  };
  t.output = keep(new_sequence(name, call, s, s.P, s.dtype, input.device));
  t.hn = keep(new_dense(name, call, {s.N, s.P}, s.dtype, input.device));
  if (lstm) t.cn = keep(new_dense(name, call, {s.N, s.H}, s.dtype, input.device));
  const int64_t saved = save ? saved_of(cell) * s.H : 0;
  void* memory =
      keep(new_dense(name, call, {saved ? s.S : 0, saved}, saved_type(s.dtype), input.device));
  t.saved = saved ? memory : nullptr;
  if (s.N > 0) cpu::recurrent_forward(s, t);
}

// Arguments in order: grad_output, grad_hn, then lstm: grad_cn, saved, cx; gru: saved, output, hx;
// rnn: output; then weight_hh, lstm: weight_hr; batch_sizes, reverse.
void backward(Call& call, Cell cell) {
  const char* const name = kBackwardNames[static_cast<int>(cell)];
  const bool lstm = cell == Cell::kLstm, gru = cell == Cell::kGru;
  int i = 0;
  const TensorView &grad_output = call.tensor(i++), &grad_hn = call.tensor(i++);
  const TensorView* grad_cn = lstm ? &call.tensor(i++) : nullptr;
  const TensorView* saved = lstm || gru ? &call.tensor(i++) : nullptr;
  const TensorView* cx = lstm ? &call.tensor(i++) : nullptr;
  const TensorView* output = lstm ? nullptr : &call.tensor(i++);
  const TensorView* hx = gru ? &call.tensor(i++) : nullptr;
  const TensorView& weight_hh = call.tensor(i++);
  const TensorView* weight_hr = lstm ? call.optional_tensor(i++) : nullptr;
  const TensorView* batch_sizes = call.optional_tensor(i++);
  const bool reverse = call.integer(i++);

  RecurrentShape s{};
  std::vector<int64_t> sizes;
  s.dtype = grad_output.dtype, s.cell = cell, s.reverse = reverse;
  check_element_type(name, grad_output);
  check_rank(name, grad_hn, "grad_hn", 2);
  describe_weights(name, weight_hh, weight_hr, s);
  describe_sequence(name, grad_output, batch_sizes, "grad_output", grad_hn.sizes[0], s, sizes);
  check_extents(name, s);
  const Checker check{name, grad_output, "grad_output"};
  RecurrentBackward t{};
  t.grad_output = check.sequence(grad_output, "grad_output", s, s.P);
  t.grad_hn = check.matrix(grad_hn, "grad_hn", s.N, s.P);
  if (grad_cn) t.grad_cn = check.matrix(*grad_cn, "grad_cn", s.N, s.H);
  if (cx) t.cx = check.matrix(*cx, "cx", s.N, s.H);
  if (output) t.output = check.sequence(*output, "output", s, s.P);
  if (hx) t.hx = check.matrix(*hx, "hx", s.N, s.P);
  if (saved) {
    check.size(*saved, "saved", {s.S, saved_of(cell) * s.H});
    check_same_device(name, grad_output, "grad_output", *saved, "saved");
    if (saved->dtype != saved_type(s.dtype))
      fail(name, std::string("saved of dtype ") + name_of(saved_type(s.dtype)),
           name_of(saved->dtype));
    t.saved = {saved->data, saved->strides[0], saved->strides[1]};
  }
  t.weight_hh = check.matrix(weight_hh, "weight_hh", gates_of(cell) * s.H, s.P);
  if (weight_hr) t.weight_hr = check.matrix(*weight_hr, "weight_hr", s.P, s.H);

  const Device device = grad_output.device;
  int result = 0;
  const auto keep = [&](const TensorView& tensor) {
    call.results[result++] = tensor;
    return tensor.data;
  };
  t.grad_gates = keep(new_dense(name, call, {s.S, grad_gates_of(cell) * s.H}, s.dtype, device));
  t.grad_hx = keep(new_dense(name, call, {s.N, s.P}, s.dtype, device));
  if (lstm) {
    t.grad_cx = keep(new_dense(name, call, {s.N, s.H}, s.dtype, device));
    void* projected = keep(new_dense(name, call, {weight_hr ? s.S : 0, s.P}, s.dtype, device));
    t.grad_projected = weight_hr ? projected : nullptr;
  }
  if (s.N > 0) cpu::recurrent_backward(s, t);
}

constexpr const char* kLstmForward =
    "lstm(Tensor input, Tensor hx, Tensor cx, Tensor weight_ih, Tensor weight_hh, "
    "Tensor? bias_ih=None, Tensor? bias_hh=None, Tensor? weight_hr=None, "
    "Tensor? batch_sizes=None, bool reverse=False, bool save=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)";
constexpr const char* kLstmBackward =
    "lstm_backward(Tensor grad_output, Tensor grad_hn, Tensor grad_cn, Tensor saved, Tensor cx, "
    "Tensor weight_hh, Tensor? weight_hr=None, Tensor? batch_sizes=None, bool reverse=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)";
#define FASTCONV_ARGUMENTS                                                                   \
  "(Tensor input, Tensor hx, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih=None, "     \
  "Tensor? bias_hh=None, Tensor? batch_sizes=None, bool reverse=False, bool save=False) -> " \
  "(Tensor, Tensor, Tensor)"
#define FASTCONV_RNN_BACKWARD_ARGUMENTS                                            \
  "(Tensor grad_output, Tensor grad_hn, Tensor output, Tensor weight_hh, Tensor? " \
  "batch_sizes=None, bool reverse=False) -> (Tensor, Tensor)"

const RegisterOperation kOperations[] = {
    {kLstmForward, [](Call& call) { forward(call, Cell::kLstm); }},
    {kLstmBackward, [](Call& call) { backward(call, Cell::kLstm); }},
    {"gru" FASTCONV_ARGUMENTS, [](Call& call) { forward(call, Cell::kGru); }},
    {"gru_backward(Tensor grad_output, Tensor grad_hn, Tensor saved, Tensor output, Tensor hx, "
     "Tensor weight_hh, Tensor? batch_sizes=None, bool reverse=False) -> (Tensor, Tensor)",
     [](Call& call) { backward(call, Cell::kGru); }},
    {"rnn_tanh" FASTCONV_ARGUMENTS, [](Call& call) { forward(call, Cell::kRnnTanh); }},
    {"rnn_tanh_backward" FASTCONV_RNN_BACKWARD_ARGUMENTS,
     [](Call& call) { backward(call, Cell::kRnnTanh); }},
    {"rnn_relu" FASTCONV_ARGUMENTS, [](Call& call) { forward(call, Cell::kRnnRelu); }},
    {"rnn_relu_backward" FASTCONV_RNN_BACKWARD_ARGUMENTS,
     [](Call& call) { backward(call, Cell::kRnnRelu); }},
};

}  // namespace
}  // namespace fastconv
