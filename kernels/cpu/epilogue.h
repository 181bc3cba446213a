// The epilogue of kernels/epilogue.h, register by register: between the last addition of a sum and
// its store.
#pragma once
#include "gemm.h"
#include "vector_math.h"

namespace fastconv::cpu::FASTCONV_ISA {

// scale, bias: [K] of the compute type, or null. The residual lies like the output, so that one
// distance leads from any element of the output to that of the residual.
template <class S>
struct Finish {
  using T = Compute<S>;
  using V = Vec<T>;

  const T* scale;
  const T* bias;
  bool has_residual;
  uintptr_t residual;  // in bytes, from the output
  Activation activation;

  // `scale_memory` takes the widened scale, if there is one; bias is widened already.
  Finish(const Epilogue& epilogue, const T* widened_bias, int64_t K, T* scale_memory,
         const S* output)
      : scale(epilogue.scale ? scale_memory : nullptr),
        bias(widened_bias),
        has_residual(epilogue.residual != nullptr),
        residual(reinterpret_cast<uintptr_t>(epilogue.residual) -
                 reinterpret_cast<uintptr_t>(output)),
        activation(epilogue.activation) {
    if (scale)
      copy_run(scale_memory, static_cast<const S*>(epilogue.scale), epilogue.scale_stride, K);
  }

  // Lanes are channels k, k + 1, ...; they go to `to`, `to + 1`, ...
  FASTCONV_INLINE V channels(V sum, int64_t k, int64_t lanes, const S* to) const {
    if (scale) sum = sum * load_some(scale + k, lanes);
    if (bias) sum = sum + load_some(bias + k, lanes);
    return end(sum, lanes, to);
  }

  // Lanes are pixels of channel k; they go to `to`, `to + 1`, ...
  FASTCONV_INLINE V pixels(V sum, int64_t k, int64_t lanes, const S* to) const {
    if (scale) sum = sum * V::broadcast(scale[k]);
    if (bias) sum = sum + V::broadcast(bias[k]);
    return end(sum, lanes, to);
  }

  // target[i * stride] = the finished sums[i] of channels k + i.
  void store_channels(S* to, int64_t stride, const T* sums, int64_t count, int64_t k) const {
    for (int64_t i = 0; i < count; i += step(stride)) {
      const int64_t lanes = smaller(step(stride), count - i);
      S* at = to + i * stride;
      store_some_from_compute(at, channels(load_some(sums + i, lanes), k + i, lanes, at), lanes);
    }
  }

  // target[i * stride] = the finished sums[i] of channel k.
  void store_pixels(S* to, int64_t stride, const T* sums, int64_t count, int64_t k) const {
    for (int64_t i = 0; i < count; i += step(stride)) {
      const int64_t lanes = smaller(step(stride), count - i);
      S* at = to + i * stride;
      store_some_from_compute(at, pixels(load_some(sums + i, lanes), k, lanes, at), lanes);
    }
  }

 private:
  // Elements that lie apart are finished one by one.
  FASTCONV_INLINE static int64_t step(int64_t stride) { return stride == 1 ? V::kLanes : 1; }

  FASTCONV_INLINE V end(V sum, int64_t lanes, const S* to) const {
    if (has_residual) {
      const auto* from = reinterpret_cast<const S*>(reinterpret_cast<uintptr_t>(to) + residual);
      sum = sum + load_some_as_compute(from, lanes);
    }
    return activate(sum, activation);
  }
};

}  // namespace fastconv::cpu::FASTCONV_ISA
