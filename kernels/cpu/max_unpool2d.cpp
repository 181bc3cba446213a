// max_unpool2d, forward and backward: elements move as they are, whatever their type.
//
// A task is a plane, or of channels_last kBlock channels, which share cache lines. Forward clears the
// task's part of the output and scatters into it while it is in the cache; backward gathers.
// Cost: every byte once.
#include "../max_unpool2d.h"

#include "../parallel.h"
#include "simd.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kBlock = 16;
constexpr int64_t kTaskElements = int64_t{1} << 14;  // that are worth a thread

// Where the first wrong index is, in row-major order of all tasks.
struct First {
  int64_t position = INT64_MAX;

  void keep(int64_t at) {
    int64_t least = __atomic_load_n(&position, __ATOMIC_RELAXED);
    while (at < least && !__atomic_compare_exchange_n(&position, &least, at, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
    }
  }
};

// B: bytes of an element, as an unsigned integer.
template <class B>
struct Unpool {
  const MaxUnpool2dShape& s;
  const int64_t* indices;
  First& mistake;

  const bool channels_last = s.C > 1 && s.output.s[1] == 1;
  const int64_t block = channels_last ? smaller(kBlock, s.C) : 1;

  template <class Body>
  void for_planes(const Body& body) const {
    const int64_t blocks = (s.C + block - 1) / block;
    const int64_t elements = block * (s.P * s.Q + s.H * s.W);
    parallel_for(s.N * blocks, kTaskElements / elements + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = i % blocks * block;
        body(i / blocks, c, smaller(block, s.C - c));
      }
    });
  }

  // Calls move(small, place) with the offsets of an element and of its place, in row-major order.
  template <class Move>
  FASTCONV_INLINE void for_places(int64_t n, int64_t c, int64_t channels, const Move& move) const {
    const auto plane = static_cast<uint64_t>(s.H * s.W);
    const bool dense = s.output.s[2] == s.W * s.output.s[3];
    for (int64_t p = 0; p < s.P; ++p)
      for (int64_t q = 0; q < s.Q; ++q)
        for (int64_t i = c; i < c + channels; ++i) {
          const int64_t index = indices[n * s.indices.s[0] + i * s.indices.s[1] +
                                        p * s.indices.s[2] + q * s.indices.s[3]];
          if (static_cast<uint64_t>(index) >= plane) {
            mistake.keep(((n * s.C + i) * s.P + p) * s.Q + q);
            continue;
          }
          const int64_t place = dense ? index * s.output.s[3]
                                      : index / s.W * s.output.s[2] + index % s.W * s.output.s[3];
          move(n * s.input.s[0] + i * s.input.s[1] + p * s.input.s[2] + q * s.input.s[3],
               n * s.output.s[0] + i * s.output.s[1] + place);
        }
  }

  void clear(B* output, int64_t n, int64_t c, int64_t channels) const {
    B* to = output + n * s.output.s[0] + c * s.output.s[1];
    if (channels == 1 && s.output.s[3] == 1 && s.output.s[2] == s.W) {
      __builtin_memset(to, 0, static_cast<unsigned long>(s.H * s.W) * sizeof(B));
      return;
    }
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t w = 0; w < s.W; ++w) {
        B* pixel = to + h * s.output.s[2] + w * s.output.s[3];
        for (int64_t i = 0; i < channels; ++i) pixel[i * s.output.s[1]] = 0;
      }
  }

  void forward(const B* input, B* output) const {
    for_planes([&](int64_t n, int64_t c, int64_t channels) {
      clear(output, n, c, channels);
      for_places(n, c, channels,
                 [&](int64_t small, int64_t place) { output[place] = input[small]; });
    });
  }

  void backward(const B* grad_output, B* grad_input) const {
    for_planes([&](int64_t n, int64_t c, int64_t channels) {
      for_places(n, c, channels,
                 [&](int64_t small, int64_t place) { grad_input[small] = grad_output[place]; });
    });
  }
};

template <class Body>
void with_bytes(DType dtype, const Body& body) {
  switch (size_of(dtype)) {
    case 2:
      return body(uint16_t{});
    case 4:
      return body(uint32_t{});
    default:
      return body(uint64_t{});
  }
}

void tell(const MaxUnpool2dShape& s, const First& first, const int64_t* indices,
          MaxUnpool2dMistake* mistake) {
  if (first.position == INT64_MAX) return;
  const int64_t q = first.position % s.Q, p = first.position / s.Q % s.P;
  const int64_t nc = first.position / s.Q / s.P;
  mistake->found = true;
  mistake->index = indices[nc / s.C * s.indices.s[0] + nc % s.C * s.indices.s[1] +
                           p * s.indices.s[2] + q * s.indices.s[3]];
}

}  // namespace

void max_unpool2d_forward(const MaxUnpool2dShape& shape, const void* input, const int64_t* indices,
                          void* output, MaxUnpool2dMistake* mistake) {
  First first;
  with_bytes(shape.dtype, [&](auto zero) {
    using B = decltype(zero);
    Unpool<B>{shape, indices, first}.forward(static_cast<const B*>(input), static_cast<B*>(output));
  });
  tell(shape, first, indices, mistake);
}

void max_unpool2d_backward(const MaxUnpool2dShape& shape, const void* grad_output,
                           const int64_t* indices, void* grad_input, MaxUnpool2dMistake* mistake) {
  First first;
  with_bytes(shape.dtype, [&](auto zero) {
    using B = decltype(zero);
    Unpool<B>{shape, indices, first}.backward(static_cast<const B*>(grad_output),
                                              static_cast<B*>(grad_input));
  });
  tell(shape, first, indices, mistake);
}

}  // namespace fastconv::cpu::FASTCONV_ISA

FASTCONV_DISPATCH(max_unpool2d_forward,
                  (const MaxUnpool2dShape& shape, const void* input, const int64_t* indices,
                   void* output, MaxUnpool2dMistake* mistake),
                  (shape, input, indices, output, mistake))
FASTCONV_DISPATCH(max_unpool2d_backward,
                  (const MaxUnpool2dShape& shape, const void* grad_output, const int64_t* indices,
                   void* grad_input, MaxUnpool2dMistake* mistake),
                  (shape, grad_output, indices, grad_input, mistake))
