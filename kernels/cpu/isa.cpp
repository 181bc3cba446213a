#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastconv::cpu {
namespace {

constexpr Isa kIsas[] = {
#define FASTCONV_ISA_ITEM(isa, unused) Isa::isa,
    FASTCONV_FOR_EACH_ISA(FASTCONV_ISA_ITEM, )
#undef FASTCONV_ISA_ITEM
};

#if defined(__x86_64__)
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

Isa fastest_available() {
  Isa best = Isa::scalar;
  for (Isa isa : kIsas)
    if (is_available(isa)) best = isa;
  return best;
}

std::string names_of_available() {
  std::string names;
  for (Isa isa : kIsas)
    if (is_available(isa)) names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
  return names;
}

Isa parse(const char* name) {
  for (Isa isa : kIsas)
    if (!std::strcmp(name, name_of(isa)) && is_available(isa)) return isa;
  throw std::invalid_argument("FASTCONV_ISA: expected an instruction set of this machine (" +
                              names_of_available() + "), got '" + name + "'");
}

std::atomic<int> g_active{-1};

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
#define FASTCONV_ISA_NAME(isa, unused) \
  case Isa::isa:                       \
    return #isa;
    FASTCONV_FOR_EACH_ISA(FASTCONV_ISA_NAME, )
#undef FASTCONV_ISA_NAME
    case Isa::count:
      break;
  }
  return "unknown";
}

// The builtins ask the operating system too whether it saves the wide registers.
bool is_available(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#if defined(FASTCONV_SIMULATE_ISA)
  const bool avx512 = avx2, avx512_bf16 = avx2;  // compiled from instructions of avx2
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512_bf16:
      return avx512_bf16;
    case Isa::count:
      break;
  }
  return false;
#else
  return isa != Isa::count;  // NEON is part of every aarch64
#endif
}

Isa active_isa() {
  int isa = g_active.load(std::memory_order_relaxed);
  if (isa < 0) {
    const char* asked = std::getenv("FASTCONV_ISA");
    isa = static_cast<int>(asked && *asked ? parse(asked) : fastest_available());
    g_active.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void set_isa(const char* name) {
  g_active.store(static_cast<int>(parse(name)), std::memory_order_relaxed);
}

}  // namespace fastconv::cpu
