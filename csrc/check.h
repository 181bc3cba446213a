// What the checks of every operation need: messages, layouts, results.
#pragma once
#include <string>

#include "kernels/window.h"
#include "operation.h"

#pragma GCC visibility push(default)
namespace fastconv {

// "<operation>: expected <law>, got <value>"
[[noreturn]] void fail(const char* operation, const std::string& law, const std::string& got,
                       ErrorKind kind = ErrorKind::kRuntime);

std::string text_of(int count, const int64_t* values);  // "[1, 2, 3]"
std::string sizes_of(const TensorView& tensor);
std::string text_of(Device device);  // "cpu", "cuda:0"

// All tensors of a call have one dtype, one device.
void check_same_dtype(const char* operation, const TensorView& first, const char* first_name,
                      const TensorView& other, const char* other_name);
void check_same_device(const char* operation, const TensorView& first, const char* first_name,
                       const TensorView& other, const char* other_name);
[[noreturn]] void fail_dtype(const char* operation, const char* law, DType got);

// A list of one or two values as a pair.
struct Pair {
  int64_t h, w;
};
Pair pair_of(const char* operation, const char* name, const Value& value);

// Every value of a window and every extent stays below 2^31 x 2^31 products and sums in 64 bits;
// larger ones are refused.
constexpr int64_t kLargestParameter = int64_t{1} << 40;
void check_range(const char* operation, const char* name, const Pair& pair, int64_t least);

// Refuses extents whose product reaches 2^48: more elements than any memory holds, though not more
// than an expanded view may claim.
void check_counts(const char* operation, std::initializer_list<int64_t> extents,
                  const int64_t* sizes);

// A batched or unbatched image tensor as 4-d: an unbatched one gets N = 1, with the stride that
// torch's unsqueeze gives.
TensorView batched(const TensorView& tensor);

// c10::is_channels_last_strides_2d: the rule by which torch says that a 4-d tensor is
// channels_last.
bool is_channels_last(const TensorView& tensor);

Strides4 strides_of(const TensorView& tensor);
bool is_empty(const TensorView& tensor);

// The strides of a new tensor of 4 sizes, contiguous or channels_last.
Strides4 new_strides(const int64_t (&sizes)[4], bool channels_last);

// A new tensor of 4 sizes, contiguous or channels_last; `unbatched` drops the batch axis of what
// the caller sees.
TensorView new_tensor(const char* operation, Call& call, const int64_t (&sizes)[4],
                      bool channels_last, bool unbatched, DType dtype, Device device);

// A new tensor of any dense strides.
TensorView new_strided_tensor(const char* operation, Call& call, int ndim, const int64_t* sizes,
                              const int64_t* strides, DType dtype, Device device);

// A launch on a CUDA device, or cuda::probe, gave this text, null for none.
void check_cuda(const char* operation, const char* error);

}  // namespace fastconv
#pragma GCC visibility pop

// Runs cuda::kernel(arguments..., stream) on the caller's stream, where the build has CUDA.
#ifdef FASTCONV_HAS_CUDA
#define FASTCONV_LAUNCH_CUDA(operation, call, device, kernel, ...) \
  check_cuda(operation, cuda::kernel(__VA_ARGS__, (call).door.cuda_stream(device)))
#else
#define FASTCONV_LAUNCH_CUDA(operation, call, device, kernel, ...) \
  fail(operation, "CPU tensors, for this fastconv was built without CUDA", text_of(device))
#endif
