// Which CUDA devices there are, and whether our kernels can run on them. Nothing here throws or
// needs a driver.
#pragma once

// The doors call these from outside of the kernel library.
#pragma GCC visibility push(default)
namespace fastconv {
namespace cuda {

// 0 without a driver or a device.
int device_count();

// Null when kernels can run on `device`; else "expected <law>, got <value>", valid until this
// thread's next error. Creates the device's context.
const char* probe(int device);

// Makes `device` current for this thread. Returns the device that was current, or the CUDA error
// code negated.
int set_device(int device);

// What the cudaError_t says to a caller: "expected <law>, got <value>" where the caller can do
// something about it, else CUDA's own text. Valid until this thread's next error. Takes the error
// off the thread, so that a later call does not find it.
const char* error_text(int code);

}  // namespace cuda
}  // namespace fastconv
#pragma GCC visibility pop
