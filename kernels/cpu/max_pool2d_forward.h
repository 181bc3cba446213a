// max_pool2d, forward, of one storage type: which lanes, and which arrangement of them.
//
// max_pool2d_channels.h: lanes are channels. Else lanes are columns: max_pool2d_global.h pools whole
// planes, max_pool2d_stream.h and max_pool2d_taps.h find small windows in registers,
// max_pool2d_planes.h any in any layout.
#pragma once
#include "max_pool2d_channels.h"
#include "max_pool2d_global.h"
#include "max_pool2d_planes.h"
#include "max_pool2d_taps.h"

namespace fastconv::cpu::FASTCONV_ISA {

// max_pool2d_integers.cpp
void max_pool2d_integers(const MaxPool2dShape& shape, const void* input, void* output, void* where);

namespace {

template <class L, class S, class Where>
void run_planes(const MaxPool2dShape& shape, const S* input, S* output, Where* where) {
  constexpr auto& copies = kRowCopies<typename L::Storage, S>;
  Planes<L, Where>{shape, input, output, where, copies}.run();
}

// The number of a tap is as wide as a lane. Where that does not do, or in rare types, elements are
// compared as wider ones, copied row by row.
template <class S>
using WideElement = std::conditional_t<!std::is_integral_v<S>, Compute<S>,
                                       std::conditional_t<sizeof(S) == 8, int64_t, int32_t>>;

bool fits_places(const MaxPool2dShape& s, int64_t largest) {
  const ClippedAxis axes[] = {rows_of(s), columns_of(s)};
  for (const ClippedAxis& axis : axes)
    if (axis.taps + axis.first_tap(0) > largest) return false;
  return true;
}

template <class S, class Where>
void forward(const MaxPool2dShape& shape, const S* input, S* output, Where* where) {
  using Lanes = LanesOf<S>;
  constexpr bool kPlaces = !std::is_void_v<Where>;
  if constexpr (kPlaces && std::is_integral_v<S>) {
    run_planes<PlainLanes<WideElement<S>>, S>(shape, input, output, where);
  } else {
    if (kPlaces && sizeof(S) == 2 && !fits_places(shape, 0x7fff))
      return run_planes<PlainLanes<WideElement<S>>, S>(shape, input, output, where);
    if (Channels<Lanes, Where>::serves(shape))
      return Channels<Lanes, Where>{shape, input, output, where}.run();
    if (GlobalPlanes<Lanes, Where>::serves(shape))
      return GlobalPlanes<Lanes, Where>{shape, input, output, where}.run();
    if constexpr (!std::is_integral_v<S>) {
      using Small = std::conditional_t<kPlaces, TapPlanes<Lanes, Where>, StreamPlanes<Lanes>>;
      const Small small{shape, input, output, where};
      if (small.serves()) return small.run();
    }
    run_planes<Lanes, S>(shape, input, output, where);
  }
}

template <class S>
void forward(const MaxPool2dShape& shape, const void* input, void* output, void* where) {
  const S* from = static_cast<const S*>(input);
  S* to = static_cast<S*>(output);
  if (where == nullptr) return forward<S, void>(shape, from, to, nullptr);
  if constexpr (!std::is_integral_v<S>)  // taps serve the derivative
    if (shape.where == DType::kUInt8)
      return forward<S, uint8_t>(shape, from, to, static_cast<uint8_t*>(where));
  forward<S, int64_t>(shape, from, to, static_cast<int64_t*>(where));
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
