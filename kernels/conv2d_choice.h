// By which algorithm the CPU computes conv2d: names, and what the process allows. The rule itself is
// in cpu/conv2d_algorithm.h.
#pragma once
#include <cstdint>

#pragma GCC visibility push(default)
namespace fastconv {

enum class Conv2dAlgorithm : int32_t {
  kChannels,   // implicit matrix product, lanes are channels of the result
  kPixels,     // implicit matrix product, lanes are pixels of the result
  kShifted,    // the same without unfolding: rows of the source, shifted
  kWinograd,   // Winograd's F(4x4, 3x3)
  kDepthwise,  // a weighted sum of shifted images, channel by channel
  kGrouped,    // few channels per group: lanes are channels of several groups, or pixels
  kCount
};
const char* name_of(Conv2dAlgorithm algorithm);

// Whether Winograd's algorithm may be used: at first what the environment variable FASTCONV_WINOGRAD
// says (0: no), else yes.
bool winograd_is_allowed();
void allow_winograd(bool allowed);

// The algorithm to use wherever it can compute a call, kCount for none: at first the one named by the
// environment variable FASTCONV_ALGO. Throw std::invalid_argument for an unknown name; "auto" is none.
Conv2dAlgorithm forced_algorithm();
void force_algorithm(const char* name);

}  // namespace fastconv
#pragma GCC visibility pop
