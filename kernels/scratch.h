// Scratch memory of the calling thread: taken and given back in the order of a stack, kept from
// call to call, so that no kernel allocates inside a loop. A block is 64-byte aligned and not
// initialised.
#pragma once
#include <cstdint>

namespace fastconv {

// Throws std::bad_alloc; so it does for a negative size, which is what too large ones are made of.
void* take_scratch(int64_t bytes);
void give_back_scratch(void* block);

// Always inlined, like everything that the files of one instruction set share: see cpu/isa.h.
template <class T>
class Scratch {
 public:
  // Several counts stand for their product.
  template <class... Count>
  __attribute__((always_inline)) explicit Scratch(Count... counts) {
    int64_t bytes = sizeof(T);
    const bool too_large = (__builtin_mul_overflow(bytes, int64_t{counts}, &bytes) || ...);
    data_ =
        too_large || bytes != 0 ? static_cast<T*>(take_scratch(too_large ? -1 : bytes)) : nullptr;
  }
  __attribute__((always_inline)) ~Scratch() {
    if (data_) give_back_scratch(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  __attribute__((always_inline)) T* data() const { return data_; }

 private:
  T* data_;
};

}  // namespace fastconv
