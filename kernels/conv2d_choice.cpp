#include "conv2d_choice.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastconv {
namespace {

constexpr const char* kNames[] = {"channels", "pixels",    "shifted",
                                  "winograd", "depthwise", "grouped"};
static_assert(sizeof(kNames) / sizeof(*kNames) == static_cast<size_t>(Conv2dAlgorithm::kCount));

Conv2dAlgorithm algorithm_of(const char* name) {
  int i = 0;
  std::string all = "auto";
  for (const char* known : kNames) {
    if (std::strcmp(name, known) == 0) return static_cast<Conv2dAlgorithm>(i);
    all += std::string(", ") + known;
    ++i;
  }
  if (std::strcmp(name, "auto") != 0)
    throw std::invalid_argument("FASTCONV_ALGO: expected one of " + all + ", got '" + name + "'");
  return Conv2dAlgorithm::kCount;
}

std::atomic<bool>& allowed() {
  static std::atomic<bool> value{[] {
    const char* setting = std::getenv("FASTCONV_WINOGRAD");
    return !(setting && std::strcmp(setting, "0") == 0);
  }()};
  return value;
}

std::atomic<Conv2dAlgorithm>& forced() {
  static std::atomic<Conv2dAlgorithm> value{[] {
    const char* setting = std::getenv("FASTCONV_ALGO");
    return algorithm_of(setting && *setting ? setting : "auto");
  }()};
  return value;
}

}  // namespace

const char* name_of(Conv2dAlgorithm algorithm) { return kNames[static_cast<int>(algorithm)]; }

bool winograd_is_allowed() { return allowed().load(std::memory_order_relaxed); }
void allow_winograd(bool value) { allowed().store(value, std::memory_order_relaxed); }

Conv2dAlgorithm forced_algorithm() { return forced().load(std::memory_order_relaxed); }
void force_algorithm(const char* name) {
  forced().store(algorithm_of(name), std::memory_order_relaxed);
}

}  // namespace fastconv
