// What the kernels behind torch's dispatcher share: its tensors as views, and results in its memory.
#pragma once
#include "operation.h"
#include "torch_shim.h"

namespace fastconv {

// Throws where torch's interface reports an error: "fastconv: torch could not <what>".
void check_torch(TorchError error, const char* what);

// What keeps a tensor of torch's from being a view of ours.
enum class Obstacle { kNone, kUndefined, kLayout, kDims, kDType, kDevice, kMemory };
Obstacle view_tensor(TorchTensor tensor, TensorView* view);

class TorchDoor : public Door {
 public:
  ~TorchDoor() override;
  TensorView empty_strided(int ndim, const int64_t* sizes, const int64_t* strides, DType dtype,
                           Device device) override;
  void* cuda_stream(Device device) override;
  // Hands out result i, in the order in which they were made.
  TorchTensor release(int i);

 private:
  TorchTensor results_[kMaxResults] = {};
  int count_ = 0;
  TorchDeviceGuard guard_ = nullptr;
};

}  // namespace fastconv
