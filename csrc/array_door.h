// Door 1's way with arrays: NumPy arrays are read in place, others through DLPack; results are of
// the first array's kind.
#pragma once
#include <pybind11/pybind11.h>

#include <vector>

#include "check.h"
#include "dlpack.h"

namespace fastconv {

// A result on its way to the package that made the arguments, for that package's from_dlpack.
struct Exporter {
  TensorView view;
  pybind11::object memory;

  pybind11::capsule dlpack() const;
};

class ArrayDoor : public Door {
 public:
  // Results are of the kind of `first`, the first argument.
  explicit ArrayDoor(pybind11::handle first)
      : kind_(pybind11::reinterpret_borrow<pybind11::object>(first)) {}
  ~ArrayDoor() override;

  // Describes an array; false if the object is none. The door keeps it alive.
  bool read(const char* operation, pybind11::handle object, TensorView& view);

  // Runs the operation, without Python's lock where it takes long.
  void run(const Operation& operation, Call& call);

  pybind11::object take(int i) { return std::move(results_[i]); }

  TensorView empty_strided(int ndim, const int64_t* sizes, const int64_t* strides, DType dtype,
                           Device device) override;
  void* cuda_stream(Device device) override;

 private:
  void read_numpy(const char* operation, pybind11::handle object, TensorView& view);
  void read_dlpack(const char* operation, pybind11::handle object, TensorView& view);

  const char* operation_ = "fastconv";  // whose arguments are read
  std::vector<pybind11::object>
      kept_;  // copies that stand in for arrays that cannot be read in place
  std::vector<dlpack::ManagedTensor*> borrowed_;  // given back at the end
  pybind11::object kind_;                         // what results are like
  pybind11::object results_[kMaxResults];
  int count_ = 0;
  int64_t bytes_ = 0;         // of all arrays read
  int previous_device_ = -1;  // to return to, after a call on CUDA
};

}  // namespace fastconv
