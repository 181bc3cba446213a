// What the compiler's instrumentation calls: -fsanitize=kernel-address before every access,
// -fsanitize=alignment where an address does not fit its type, -fsanitize=bounds-strict where an index
// leaves an array whose type tells its length, be it of shared memory, of a struct there, or local.
#include "memory.h"

extern "C" {

#define EMULATED_ACCESS(size)                                                  \
  void __asan_load##size##_noabort(const void* address) {                      \
    emulator::check_access(address, size, false, __builtin_return_address(0)); \
  }                                                                            \
  void __asan_store##size##_noabort(const void* address) {                     \
    emulator::check_access(address, size, true, __builtin_return_address(0));  \
  }
EMULATED_ACCESS(1)
EMULATED_ACCESS(2)
EMULATED_ACCESS(4)
EMULATED_ACCESS(8)
EMULATED_ACCESS(16)
#undef EMULATED_ACCESS
void __asan_loadN_noabort(const void* address, size_t bytes) {
  emulator::check_access(address, bytes, false, __builtin_return_address(0));
}
void __asan_storeN_noabort(const void* address, size_t bytes) {
  emulator::check_access(address, bytes, true, __builtin_return_address(0));
}
void __asan_handle_no_return() {}

void __ubsan_handle_type_mismatch_v1(const void*, const void*) {
  if (emulator::is_running())
    emulator::fail("access not aligned to its type", __builtin_return_address(0));
}
void __ubsan_handle_out_of_bounds(const void*, const void*) {
  if (emulator::is_running())
    emulator::fail("index out of the bounds of an array", __builtin_return_address(0));
}

}  // extern "C"
