// Which instruction sets the CPU kernels are compiled for, and which one runs.
//
// Every other file of this folder is compiled once per instruction set, with FASTCONV_ISA defined
// to its name, and puts all its code into namespace fastconv::cpu::FASTCONV_ISA. Such a file must
// not use containers or inline templates of the standard library: the linker keeps one copy of a
// weak symbol, and that may be the AVX-512 one.
#pragma once

#if defined(__x86_64__)
#define FASTCONV_FOR_EACH_ISA(X, ...) \
  X(scalar, __VA_ARGS__) X(avx2, __VA_ARGS__) X(avx512, __VA_ARGS__) X(avx512_bf16, __VA_ARGS__)
#elif defined(__aarch64__)
#define FASTCONV_FOR_EACH_ISA(X, ...) X(scalar, __VA_ARGS__) X(neon, __VA_ARGS__)
#else
#define FASTCONV_FOR_EACH_ISA(X, ...) X(scalar, __VA_ARGS__)
#endif

#pragma GCC visibility push(default)
namespace fastconv::cpu {

// From the most portable to the fastest.
enum class Isa {
#define FASTCONV_ISA_ENUMERATOR(isa, unused) isa,
  FASTCONV_FOR_EACH_ISA(FASTCONV_ISA_ENUMERATOR, )
#undef FASTCONV_ISA_ENUMERATOR
      count
};

const char* name_of(Isa isa);
bool is_available(Isa isa);  // this machine and its operating system can run it

// The one in use: the fastest available, or what the environment variable FASTCONV_ISA or set_isa
// asked for. Throws std::invalid_argument when that name is unknown here or not available on this
// machine.
Isa active_isa();
void set_isa(const char* name);

}  // namespace fastconv::cpu
#pragma GCC visibility pop

// Defines fastconv::cpu::name, which hands its call to the copy that was compiled for the active
// instruction set. Stands once behind each entry point; only the scalar build, which every machine
// can run, turns it into code.
#ifdef FASTCONV_ISA_BASELINE
#define FASTCONV_DECLARE_FOR_ISA(isa, name, parameters, arguments) \
  namespace isa {                                                  \
  void name parameters;                                            \
  }
#define FASTCONV_CASE_FOR_ISA(isa, name, parameters, arguments) \
  case Isa::isa:                                                \
    return isa::name arguments;
#define FASTCONV_DISPATCH(name, parameters, arguments)                          \
  namespace fastconv::cpu {                                                     \
  FASTCONV_FOR_EACH_ISA(FASTCONV_DECLARE_FOR_ISA, name, parameters, arguments)  \
  void name parameters {                                                        \
    switch (active_isa()) {                                                     \
      FASTCONV_FOR_EACH_ISA(FASTCONV_CASE_FOR_ISA, name, parameters, arguments) \
      case Isa::count:                                                          \
        break;                                                                  \
    }                                                                           \
  }                                                                             \
  }
#else
#define FASTCONV_DISPATCH(name, parameters, arguments)
#endif
