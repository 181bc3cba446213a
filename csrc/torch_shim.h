// The functions of libtorch's C interface that fastconv calls, declared by hand: a C ABI that
// torch 2.10 and every later version exports. No header of torch is needed to build, and one
// library serves every version.
//
// Every function returns 0, or another value after an error. Handles that a kernel finds on its
// stack, or that a function returns, are owned by whoever got them.
#pragma once
#include <cstddef>
#include <cstdint>

using TorchError = int32_t;
// one argument or result: an integer, or a pointer to what the schema says
using TorchValue = uint64_t;
struct TorchTensorOpaque;
using TorchTensor = TorchTensorOpaque*;
struct TorchListOpaque;
using TorchList = TorchListOpaque*;
struct TorchLibraryOpaque;
using TorchLibrary = TorchLibraryOpaque*;
struct TorchDeviceGuardOpaque;
using TorchDeviceGuard = TorchDeviceGuardOpaque*;
using TorchKernel = void (*)(TorchValue* stack, uint64_t inputs, uint64_t outputs);

// 2.10.0: which conventions the values follow
constexpr uint64_t kTorchBuildVersion = 0x020a000000000000;

extern "C" {
TorchError aoti_torch_library_init_impl(const char* library, const char* dispatch_key,
                                        const char* file, uint32_t line, TorchLibrary* result);
TorchError torch_library_impl(TorchLibrary library, const char* name, TorchKernel kernel,
                              uint64_t build_version);
TorchError aoti_torch_delete_library_object(TorchLibrary library);
// Takes the arguments on the stack and leaves the results there.
TorchError torch_call_dispatcher(const char* operation, const char* overload, TorchValue* stack,
                                 uint64_t build_version);

TorchError aoti_torch_get_dim(TorchTensor tensor, int64_t* result);
TorchError aoti_torch_get_sizes(TorchTensor tensor, int64_t** result);
TorchError aoti_torch_get_strides(TorchTensor tensor, int64_t** result);
TorchError aoti_torch_get_dtype(TorchTensor tensor, int32_t* result);
TorchError aoti_torch_get_device_type(TorchTensor tensor, int32_t* result);
TorchError aoti_torch_get_device_index(TorchTensor tensor, int32_t* result);
TorchError aoti_torch_get_layout(TorchTensor tensor, int32_t* result);
TorchError aoti_torch_is_defined(TorchTensor tensor, bool* result);
TorchError torch_get_const_data_ptr(TorchTensor tensor, const void** result);
TorchError torch_get_mutable_data_ptr(TorchTensor tensor, void** result);
TorchError aoti_torch_empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides,
                                    int32_t dtype, int32_t device_type, int32_t device_index,
                                    TorchTensor* result);
TorchError aoti_torch_new_tensor_handle(TorchTensor tensor, TorchTensor* result);
TorchError aoti_torch_new_uninitialized_tensor(TorchTensor* result);
TorchError aoti_torch_delete_tensor_object(TorchTensor tensor);

TorchError torch_new_list_reserve_size(size_t size, TorchList* result);
TorchError torch_list_push_back(TorchList list, TorchValue item);
TorchError torch_list_size(TorchList list, size_t* result);
TorchError torch_list_get_item(TorchList list, size_t index, TorchValue* result);
TorchError torch_delete_list(TorchList list);

TorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                              void (*body)(int64_t, int64_t, void*), void* context);
TorchError torch_get_num_threads(uint32_t* result);

TorchError aoti_torch_create_device_guard(int32_t device_index, TorchDeviceGuard* result);
TorchError aoti_torch_delete_device_guard(TorchDeviceGuard guard);
// From torch 2.13 on: what the last error said.
__attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
// Only builds of torch with CUDA have it.
__attribute__((weak)) TorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                    void** result);

int32_t aoti_torch_device_type_cpu();
int32_t aoti_torch_device_type_cuda();
int32_t aoti_torch_layout_strided();
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_uint8();
int32_t aoti_torch_dtype_int8();
int32_t aoti_torch_dtype_int16();
int32_t aoti_torch_dtype_int32();
int32_t aoti_torch_dtype_int64();
}
