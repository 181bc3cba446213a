// attention and its gradients: what is legal, what the results look like, which kernel runs.
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "check.h"

namespace fastconv {
namespace {

constexpr int64_t kFar = int64_t{1} << 60;  // beyond every key

// The arguments from attn_mask on, which every operation here has.
enum Rest { kMask, kSlopes, kSeed, kDropout, kCausal, kScale, kLeft, kRight, kSoftcap };

void check_rank(const char* operation, const char* name, const TensorView& tensor, int rank) {
  if (tensor.ndim != rank)
    fail(operation, std::string(name) + " of " + std::to_string(rank) + " dimensions",
         std::to_string(tensor.ndim) + " (" + sizes_of(tensor) + ")");
}

void check_sizes(const char* operation, const char* name, const TensorView& tensor,
                 std::initializer_list<int64_t> sizes) {
  check_rank(operation, name, tensor, static_cast<int>(sizes.size()));
  if (!std::equal(sizes.begin(), sizes.end(), tensor.sizes))
    fail(operation,
         std::string(name) + " of shape " + text_of(static_cast<int>(sizes.size()), sizes.begin()),
         sizes_of(tensor));
}

void check_alike(const char* operation, const TensorView& query, const TensorView& other,
                 const char* name) {
  check_same_dtype(operation, query, "query", other, name);
  check_same_device(operation, query, "query", other, name);
}

// Strides of a tensor whose axes of size 1 stand for as many elements as are asked for.
int64_t broadcast_stride(const TensorView& tensor, int axis) {
  return tensor.sizes[axis] == 1 ? 0 : tensor.strides[axis];
}

void describe_mask(const char* operation, const TensorView& mask, const TensorView& query,
                   AttentionShape& s) {
  check_rank(operation, "attn_mask", mask, 4);
  check_same_device(operation, query, "query", mask, "attn_mask");
  if (mask.dtype != DType::kUInt8 && mask.dtype != DType::kFloat32 && mask.dtype != query.dtype)
    fail(operation, std::string("attn_mask of uint8, float32 or ") + name_of(query.dtype),
         name_of(mask.dtype));
  const int64_t extents[] = {s.B, s.H, s.L, s.S};
  for (int axis = 0; axis < 4; ++axis) {
    if (mask.sizes[axis] != 1 && mask.sizes[axis] != extents[axis])
      fail(operation, "attn_mask that broadcasts to " + text_of(4, extents), sizes_of(mask));
    s.mask.s[axis] = broadcast_stride(mask, axis);
  }
  s.mask_dtype = mask.dtype;
}

void describe_slopes(const char* operation, const TensorView& slopes, const TensorView& query,
                     AttentionShape& s) {
  check_rank(operation, "alibi_slopes", slopes, 2);
  check_same_device(operation, query, "query", slopes, "alibi_slopes");
  if (!is_floating(slopes.dtype))
    fail_dtype(operation, "alibi_slopes of a floating dtype", slopes.dtype);
  if ((slopes.sizes[0] != 1 && slopes.sizes[0] != s.B) || slopes.sizes[1] != s.H)
    fail(operation,
         "alibi_slopes of shape [1 or " + std::to_string(s.B) + ", " + std::to_string(s.H) + "]",
         sizes_of(slopes));
  s.slopes[0] = broadcast_stride(slopes, 0), s.slopes[1] = slopes.strides[1];
  s.slopes_dtype = slopes.dtype;
}

int64_t window_of(const char* operation, const char* name, int64_t window) {
  if (window < -1 || window >= kLargestParameter)
    fail(operation, std::string(name) + " in [-1, 2^40)", std::to_string(window));
  return window;
}

void describe_rules(const char* operation, const Call& call, int rest, AttentionShape& s) {
  s.dropout_p = call.number(rest + kDropout), s.softcap = call.number(rest + kSoftcap);
  if (!(s.dropout_p >= 0 && s.dropout_p <= 1))
    fail(operation, "dropout_p in [0, 1]", std::to_string(s.dropout_p));
  if (!(s.softcap >= 0)) fail(operation, "softcap >= 0", std::to_string(s.softcap));
  const double* scale = call.optional_number(rest + kScale);
  s.scale = scale ? *scale : s.D ? 1 / std::sqrt(static_cast<double>(s.D)) : 0;
  const int64_t left = window_of(operation, "window_left", call.integer(rest + kLeft));
  const int64_t right = window_of(operation, "window_right", call.integer(rest + kRight));
  s.first = left < 0 ? -kFar : s.S - s.L - left;
  s.last = right < 0 ? kFar : s.S - s.L + right;
  if (call.integer(rest + kCausal)) s.last = std::min(s.last, int64_t{0});
}

// The call's first tensor is argument `query`, the arguments from attn_mask on begin at `rest`.
AttentionShape describe(const char* operation, const Call& call, int first, int rest,
                        AttentionInputs& inputs) {
  const TensorView &query = call.tensor(first), &key = call.tensor(first + 1),
                   &value = call.tensor(first + 2);
  check_rank(operation, "query", query, 4);
  check_rank(operation, "key", key, 4);
  check_rank(operation, "value", value, 4);
  if (!is_floating(query.dtype))
    fail_dtype(operation, "float32, float64, float16 or bfloat16 query", query.dtype);
  check_alike(operation, query, key, "key");
  check_alike(operation, query, value, "value");
  AttentionShape s{};
  s.dtype = query.dtype;
  s.B = query.sizes[0], s.H = query.sizes[1], s.L = query.sizes[2], s.D = query.sizes[3];
  s.G = key.sizes[1], s.S = key.sizes[2], s.E = value.sizes[3];
  check_sizes(operation, "key", key, {s.B, s.G, s.S, s.D});
  check_sizes(operation, "value", value, {s.B, s.G, s.S, s.E});
  if (s.H ? s.G < 1 || s.H % s.G : s.G != 0)
    fail(operation, "heads of key that divide those of query, " + std::to_string(s.H),
         std::to_string(s.G));
  for (const TensorView* each : {&query, &key, &value})
    check_counts(operation, {each->sizes[0], each->sizes[1], each->sizes[2], each->sizes[3]},
                 each->sizes);
  const int64_t output[] = {s.B, s.H, s.L, s.E}, scores[] = {s.B, s.H, s.L, s.S};
  check_counts(operation, {s.B, s.H, s.L, s.E}, output);
  check_counts(operation, {s.B, s.H, s.L, s.S}, scores);
  s.query = strides_of(query), s.key = strides_of(key), s.value = strides_of(value);
  inputs = {query.data, key.data, value.data, nullptr, nullptr, nullptr};

  describe_rules(operation, call, rest, s);
  if (const TensorView* mask = call.optional_tensor(rest + kMask)) {
    describe_mask(operation, *mask, query, s);
    inputs.mask = mask->data;
  }
  if (const TensorView* slopes = call.optional_tensor(rest + kSlopes)) {
    describe_slopes(operation, *slopes, query, s);
    inputs.slopes = slopes->data;
  }
  if (const TensorView* seed = call.optional_tensor(rest + kSeed)) {
    check_sizes(operation, "dropout_seed", *seed, {1});
    check_same_device(operation, query, "query", *seed, "dropout_seed");
    if (seed->dtype != DType::kInt64)
      fail(operation, "dropout_seed of int64", name_of(seed->dtype));
    inputs.dropout_seed = static_cast<const int64_t*>(seed->data);
  } else if (s.dropout_p > 0) {
    fail(operation, "a dropout_seed with dropout_p > 0", "none");
  }
  return s;
}

// A new tensor like a query, key or value: in memory too, as far as that is heads before rows or rows
// before heads.
TensorView new_like(const char* operation, Call& call, const TensorView& like, int64_t features) {
  const bool heads_last = like.strides[1] < like.strides[2];
  const int64_t* n = like.sizes;
  if (!heads_last)
    return new_tensor(operation, call, {n[0], n[1], n[2], features}, false, false, like.dtype,
                      like.device);
  const int64_t sizes[4] = {n[0], n[2], n[1], features};
  const Strides4 strides = new_strides(sizes, false);
  const int64_t asked[] = {n[0], n[1], n[2], features},
                order[] = {strides.s[0], strides.s[2], strides.s[1], strides.s[3]};
  return new_strided_tensor(operation, call, 4, asked, order, like.dtype, like.device);
}

DType lse_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

void expect_cpu(const char* operation, const TensorView& tensor) {
  if (tensor.device.type != DeviceType::kCpu)
    fail(operation, "CPU tensors, for there is no CUDA kernel of it yet", text_of(tensor.device));
}

void forward(Call& call) {
  constexpr const char* kName = "attention";
  AttentionInputs inputs;
  AttentionShape s = describe(kName, call, 0, 3, inputs);
  const TensorView& query = call.tensor(0);
  expect_cpu(kName, query);
  const TensorView output = new_like(kName, call, query, s.E);
  call.results[0] = output;
  const int64_t sizes[] = {s.B, s.H, s.L},
                strides[] = {std::max(s.H, int64_t{1}) * std::max(s.L, int64_t{1}),
                             std::max(s.L, int64_t{1}), 1};
  const TensorView lse =
      new_strided_tensor(kName, call, 3, sizes, strides, lse_dtype(s.dtype), query.device);
  call.results[1] = lse;
  if (is_empty(lse)) return;
  s.output = strides_of(output);
  cpu::attention_forward(s, inputs, output.data, lse.data);
}

// What both gradients are given: grad_output, query, key, value, output, lse, and the rest.
AttentionGradShape describe_gradient(const char* operation, const Call& call,
                                     AttentionGradInputs& inputs) {
  AttentionGradShape s{};
  s.forward = describe(operation, call, 1, 6, inputs.forward);
  const AttentionShape& f = s.forward;
  const TensorView &grad = call.tensor(0), &query = call.tensor(1), &output = call.tensor(4),
                   &lse = call.tensor(5);
  expect_cpu(operation, query);
  check_sizes(operation, "grad_output", grad, {f.B, f.H, f.L, f.E});
  check_sizes(operation, "output", output, {f.B, f.H, f.L, f.E});
  check_sizes(operation, "lse", lse, {f.B, f.H, f.L});
  check_alike(operation, query, grad, "grad_output");
  check_alike(operation, query, output, "output");
  check_same_device(operation, query, "query", lse, "lse");
  if (lse.dtype != lse_dtype(f.dtype))
    fail(operation, std::string("lse of ") + name_of(lse_dtype(f.dtype)), name_of(lse.dtype));
  s.grad_output = strides_of(grad), s.forward.output = strides_of(output);
  std::copy(lse.strides, lse.strides + 3, s.lse);
  inputs.grad_output = grad.data, inputs.output = output.data, inputs.lse = lse.data;
  return s;
}

// Zeros, where there is nothing to sum.
void clear(const TensorView& tensor) {
  int64_t bytes = size_of(tensor.dtype);
  for (int axis = 0; axis < tensor.ndim; ++axis) bytes *= tensor.sizes[axis];
  if (bytes) std::memset(tensor.data, 0, static_cast<size_t>(bytes));
}

void backward(Call& call) {
  constexpr const char* kName = "attention_backward";
  AttentionGradInputs inputs;
  AttentionGradShape s = describe_gradient(kName, call, inputs);
  const AttentionShape& f = s.forward;
  for (int i = 0; i < 3; ++i)
    call.results[i] = new_like(kName, call, call.tensor(i + 1), call.tensor(i + 1).sizes[3]);
  s.grad_query = strides_of(call.results[0]), s.grad_key = strides_of(call.results[1]);
  s.grad_value = strides_of(call.results[2]);
  if (f.B == 0 || f.H == 0 || f.L == 0 || f.S == 0)
    for (int i = 0; i < 3; ++i) clear(call.results[i]);
  else
    cpu::attention_backward(s, inputs, call.results[0].data, call.results[1].data,
                            call.results[2].data);
}

void mask_grad(Call& call) {
  constexpr const char* kName = "attention_mask_grad";
  AttentionGradInputs inputs;
  const AttentionGradShape s = describe_gradient(kName, call, inputs);
  const AttentionShape& f = s.forward;
  const TensorView* mask = call.optional_tensor(6);
  if (!mask) fail(kName, "an attn_mask", "none");
  if (!is_floating(mask->dtype)) fail_dtype(kName, "attn_mask of a floating dtype", mask->dtype);
  const int64_t* n = mask->sizes;
  call.results[0] =
      new_tensor(kName, call, {n[0], n[1], n[2], n[3]}, false, false, mask->dtype, mask->device);
  if (is_empty(call.results[0])) return;
  if (f.B == 0 || f.H == 0 || f.L == 0 || f.S == 0)
    clear(call.results[0]);
  else
    cpu::attention_mask_grad(s, inputs, n, call.results[0].data);
}

#define FASTCONV_ATTENTION_REST                                                          \
  "Tensor? attn_mask=None, Tensor? alibi_slopes=None, Tensor? dropout_seed=None, float " \
  "dropout_p=0.0, bool is_causal=False, float? scale=None, int window_left=-1, int "     \
  "window_right=-1, float softcap=0.0)"
#define FASTCONV_ATTENTION_GRADIENT                                                    \
  "Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor " \
  "lse, " FASTCONV_ATTENTION_REST

const RegisterOperation kOperations[] = {
    {"attention(Tensor query, Tensor key, Tensor value, " FASTCONV_ATTENTION_REST
     " -> (Tensor, Tensor)",
     forward},
    {"attention_backward(" FASTCONV_ATTENTION_GRADIENT " -> (Tensor, Tensor, Tensor)", backward},
    {"attention_mask_grad(" FASTCONV_ATTENTION_GRADIENT " -> Tensor", mask_grad},
};

}  // namespace
}  // namespace fastconv
