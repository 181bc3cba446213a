// kernels/cuda/info.cu and launch.h on a machine whose calls fail as asked: ../test_cuda_faults.py.
#include "kernels/cuda/info.h"
#include "kernels/cuda/launch.h"

Machine machine;

namespace {
struct Nothing {};
void kernel(const Nothing) {}
}  // namespace

extern "C" {
void fault_machine(const Machine* is) { machine = *is; }
int fault_current() { return machine.current; }
int fault_last() { return machine.last; }
int fault_mode() { return machine.mode; }
long long fault_blocks() { return machine.blocks; }
const char* fault_launch(long long blocks, int shared_bytes) {
  return fastconv::cuda::launch(kernel, blocks, 32, shared_bytes, nullptr, Nothing{});
}
const char* fault_probe(int device) { return fastconv::cuda::probe(device); }
int fault_count() { return fastconv::cuda::device_count(); }
int fault_set_device(int device) { return fastconv::cuda::set_device(device); }
}
