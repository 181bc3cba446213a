// How a block of threads brings elements of a tensor into registers, 16 bytes per thread and slot.
//
// A Reader names the element at spot (n, i, j), tap (a, b) and channel c:
//
//   element = data[n, c, h, w]   h = first_h + i * step_h + a * move_h, w likewise;
//   0 outside [0,H) x [0,W)
//
// TapGather walks the sum over (a, b, c), c fastest, with the spots of its rows fixed: one slot =
// kLanes terms of a row. SpotGather walks the sum over (n, i, j), j fastest, with (a, b, c) of its
// rows fixed: one slot = kLanes rows of a term. `vectors` says that kLanes neighbouring channels
// are 16 aligned bytes, and that a tap has a multiple of kLanes of them.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/numeric.cuh"

namespace fastconv {
namespace cuda {

constexpr int kOutside = -(1 << 30);  // a coordinate that no tap brings back inside

template <class T>
struct Reader {
  const T* data;
  int64_t along_n, along_c, along_h, along_w;  // strides
  int H, W;
  int first_h, step_h, move_h;
  int first_w, step_w, move_w;
  int taps_h, taps_w, channels;
  bool vectors;
};

// A tap and a channel; counts c fastest.
struct TapPlace {
  int a, b, c;

  template <class T>
  __device__ __forceinline__ void advance(const Reader<T>& reader, int steps) {
    c += steps;
    if (c < reader.channels) return;
    b += c / reader.channels;
    c %= reader.channels;
    if (b < reader.taps_w) return;
    a += b / reader.taps_w;
    b %= reader.taps_w;
  }
};

// A spot; counts j fastest.
struct SpotPlace {
  int n, i, j;

  __device__ __forceinline__ void advance(int height, int width, int steps) {
    j += steps;
    if (j < width) return;
    i += j / width;
    j %= width;
    if (i < height) return;
    n += i / height;
    i %= height;
  }
};

__device__ __forceinline__ SpotPlace spot_at(int64_t index, int height, int width) {
  const int64_t row = index / width;
  return {static_cast<int>(row / height), static_cast<int>(row % height),
          static_cast<int>(index - row * width)};
}

template <class T>
__device__ __forceinline__ bool is_inside(const Reader<T>& reader, int h, int w) {
  return static_cast<unsigned>(h) < static_cast<unsigned>(reader.H) &&
         static_cast<unsigned>(w) < static_cast<unsigned>(reader.W);
}

template <class T, int kRows, int kStage, int kThreads>
struct TapGather {
  static constexpr int kLanes = kVectorLanes<T>;
  static constexpr int kGroups = kStage / kLanes;  // slots of one row
  static constexpr int kSlots =
      kRows * kGroups / kThreads;  // slots of one thread: rows apart, same terms
  static_assert(kSlots * kThreads == kRows * kGroups && kThreads % kGroups == 0,
                "slots cover the tile once");

  int64_t base[kSlots];
  int h[kSlots], w[kSlots];
  TapPlace tap;

  // Neighbouring threads take neighbouring channels where these are neighbours in memory, else
  // neighbouring rows.
  __device__ __forceinline__ static int row_of(bool vectors, int slot) {
    constexpr int kRowsPerSlot = kRows / kSlots;
    const int thread = threadIdx.x;
    return (vectors ? thread / kGroups : thread % kRowsPerSlot) + slot * kRowsPerSlot;
  }
  __device__ __forceinline__ static int term_of(bool vectors) {
    const int thread = threadIdx.x;
    return (vectors ? thread % kGroups : thread / (kRows / kSlots)) * kLanes;
  }

  // Rows are spots [first, spots) of images of height x width.
  __device__ __forceinline__ void start(const Reader<T>& reader, int64_t first, int64_t spots,
                                        int height, int width) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int64_t index = first + row_of(reader.vectors, slot);
      const SpotPlace spot = spot_at(index < spots ? index : 0, height, width);
      h[slot] = index < spots ? reader.first_h + spot.i * reader.step_h : kOutside;
      w[slot] = reader.first_w + spot.j * reader.step_w;
      base[slot] = spot.n * reader.along_n;
    }
    tap = {0, 0, 0};
    tap.advance(reader, term_of(reader.vectors));
  }

  __device__ __forceinline__ void fetch(const Reader<T>& reader,
                                        Vector<T, kLanes> (&slots)[kSlots]) const {
    if (reader.vectors) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const int y = h[slot] + tap.a * reader.move_h, x = w[slot] + tap.b * reader.move_w;
        slots[slot] = Vector<T, kLanes>{};
        if (tap.a < reader.taps_h && is_inside(reader, y, x)) {
          slots[slot] = load_vector<T, kLanes>(reader.data + base[slot] + y * reader.along_h +
                                               x * reader.along_w + tap.c);
        }
      }
      return;
    }
    TapPlace at = tap;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const int y = h[slot] + at.a * reader.move_h, x = w[slot] + at.b * reader.move_w;
        slots[slot].lane[lane] = at.a < reader.taps_h && is_inside(reader, y, x)
                                     ? reader.data[base[slot] + y * reader.along_h +
                                                   x * reader.along_w + at.c * reader.along_c]
                                     : T(0);
      }
      at.advance(reader, 1);
    }
  }

  __device__ __forceinline__ void advance(const Reader<T>& reader) { tap.advance(reader, kStage); }

  template <class Operand>
  __device__ __forceinline__ void store(const Reader<T>& reader, Operand& operand,
                                        const Vector<T, kLanes> (&slots)[kSlots]) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      operand.store_terms(row_of(reader.vectors, slot), term_of(reader.vectors), slots[slot]);
    }
  }
};

template <class T, int kRows, int kStage, int kThreads>
struct SpotGather {
  static constexpr int kLanes = kVectorLanes<T>;
  static constexpr int kGroups = kRows / kLanes;  // slots of one term
  static constexpr int kSlots =
      kStage * kGroups / kThreads;  // slots of one thread: terms apart, same rows
  static_assert(kSlots * kThreads == kStage * kGroups && kThreads % kGroups == 0,
                "slots cover the tile once");

  TapPlace row;
  SpotPlace spot[kSlots];

  // Neighbouring threads take neighbouring channels where these are neighbours in memory, else
  // neighbouring spots.
  __device__ __forceinline__ static int row_of(bool vectors) {
    const int thread = threadIdx.x;
    return (vectors ? thread % kGroups : thread / (kStage / kSlots)) * kLanes;
  }
  __device__ __forceinline__ static int term_of(bool vectors, int slot) {
    constexpr int kTermsPerSlot = kStage / kSlots;
    const int thread = threadIdx.x;
    return (vectors ? thread / kGroups : thread % kTermsPerSlot) + slot * kTermsPerSlot;
  }

  // Rows are (a, b, c), counted from `first`; the sum starts at spot 0 of images of height x width.
  __device__ __forceinline__ void start(const Reader<T>& reader, int first, int height, int width) {
    row = {0, 0, 0};
    row.advance(reader, first + row_of(reader.vectors));
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      spot[slot] = {0, 0, 0};
      spot[slot].advance(height, width, term_of(reader.vectors, slot));
    }
  }

  __device__ __forceinline__ void fetch(const Reader<T>& reader, int images,
                                        Vector<T, kLanes> (&slots)[kSlots]) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const bool exists = spot[slot].n < images;
      const int h = exists ? reader.first_h + spot[slot].i * reader.step_h : kOutside;
      const int w = reader.first_w + spot[slot].j * reader.step_w;
      const T* image = reader.data + spot[slot].n * reader.along_n;
      TapPlace at = row;
      if (reader.vectors) {
        const int y = h + at.a * reader.move_h, x = w + at.b * reader.move_w;
        slots[slot] = Vector<T, kLanes>{};
        if (at.a < reader.taps_h && is_inside(reader, y, x)) {
          slots[slot] =
              load_vector<T, kLanes>(image + y * reader.along_h + x * reader.along_w + at.c);
        }
        continue;
      }
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const int y = h + at.a * reader.move_h, x = w + at.b * reader.move_w;
        slots[slot].lane[lane] =
            at.a < reader.taps_h && is_inside(reader, y, x)
                ? image[y * reader.along_h + x * reader.along_w + at.c * reader.along_c]
                : T(0);
        at.advance(reader, 1);
      }
    }
  }

  __device__ __forceinline__ void advance(int height, int width) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) spot[slot].advance(height, width, kStage);
  }

  template <class Operand>
  __device__ __forceinline__ void store(const Reader<T>& reader, Operand& operand,
                                        const Vector<T, kLanes> (&slots)[kSlots]) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      operand.store_rows(row_of(reader.vectors), term_of(reader.vectors, slot), slots[slot]);
    }
  }
};

}  // namespace cuda
}  // namespace fastconv
