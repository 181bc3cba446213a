// max_pool2d, backward: which of its ways is the shortest.
//
// max_pool2d_gather*.h add in each element of grad_input what the windows over it gave: where a few
// windows hold each. max_pool2d_scatter.h adds each output's gradient to the element that it took.
#include "max_pool2d_gather_channels.h"
#include "max_pool2d_gather_flat.h"
#include "max_pool2d_gather_pairs.h"
#include "max_pool2d_gather_pixels.h"
#include "max_pool2d_gather_planes.h"
#include "max_pool2d_scatter.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Windows over an element, beyond which comparing them all takes longer than scattering (one core of
// an EPYC of Zen 4, 2026-11: a gather of 25 takes 2.3 ns per element, a scatter 1.3 to 2).
constexpr int64_t kMostGathered = 16;

// Whether `where` tells the window's taps, and few windows hold each element.
bool is_gathered(const MaxPool2dShape& s) {
  const Window2d& w = s.window;
  if (w.R == 0 || w.R > kNoTap || w.S > kNoTap || w.R * w.S > kNoTap) return false;
  const int64_t rows = (w.R + w.stride_h - 1) / w.stride_h;
  const int64_t columns = (w.S + w.stride_w - 1) / w.stride_w;
  return rows * columns <= kMostGathered;
}

template <class S, class Where>
void backward(const MaxPool2dShape& shape, const void* grad_output, const void* where,
              void* grad_input) {
  const S* from = static_cast<const S*>(grad_output);
  const Where* at = static_cast<const Where*>(where);
  S* to = static_cast<S*>(grad_input);
  if (!is_gathered(shape)) return Scatter<S, Where>{shape, from, at, to}.run();
  if (GatherPixels<S, Where>::serves(shape))
    return GatherPixels<S, Where>{shape, from, at, to}.run();
  if (GatherChannels<S, Where>::serves(shape))
    return GatherChannels<S, Where>{shape, from, at, to}.run();
  if (GatherPairs<S, Where>::serves(shape)) return GatherPairs<S, Where>{shape, from, at, to}.run();
  if (GatherFlat<S, Where>::serves(shape)) return GatherFlat<S, Where>{shape, from, at, to}.run();
  GatherPlanes<S, Where>{shape, from, at, to}.run();
}

}  // namespace

void max_pool2d_backward(const MaxPool2dShape& shape, const void* grad_output, const void* where,
                         void* grad_input) {
  with_storage_type(shape.dtype, [&](auto zero) {
    using S = decltype(zero);
    if (shape.where == DType::kUInt8)
      backward<S, uint8_t>(shape, grad_output, where, grad_input);
    else
      backward<S, int64_t>(shape, grad_output, where, grad_input);
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(max_pool2d_backward,
                  (const MaxPool2dShape& shape, const void* grad_output, const void* where,
                   void* grad_input),
                  (shape, grad_output, where, grad_input))
