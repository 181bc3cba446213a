// Products of a warpgroup (four warps whose first is a multiple of four) that go on while its
// threads do: wgmma, of sm_90a alone.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions
//
// The order that the hardware asks for: fence_products, one or more products, commit_products,
// wait_products; only then may a thread touch the sums, or the registers of A. Shared memory that
// was written by ordinary stores needs fence_asynchronous_proxy in front.
#pragma once
#include "kernels/cuda/device.cuh"

namespace fastconv {
namespace cuda {

// A thread's share of 64 x kColumns float32 sums. With  group = lane / 4,  pair = lane % 4:
//   sums[i] = [16 * warp + i / 2 % 2 * 8 + group][i / 4 * 8 + 2 * pair + i % 2]
// Indices must be known to the compiler, so that they are registers.
template <int kColumns>
class WarpgroupSums {
 public:
  WarpgroupSums() = default;
  WarpgroupSums(const WarpgroupSums&) = delete;
  __device__ __forceinline__ float& operator[](int i) { return values[i]; }

  float values[kColumns / 2];
};

// Keeps the compiler, for which sums are ordinary registers, from moving accesses across.
template <int kColumns>
__device__ __forceinline__ void pin(WarpgroupSums<kColumns>& sums) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) asm volatile("" : "+f"(sums.values[i])::"memory");
}

// wgmma.fence: before the first product into these sums, and after other accesses to them.
template <int... kColumns>
__device__ __forceinline__ void fence_products(WarpgroupSums<kColumns>&... sums) {
  (pin(sums), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most the kMost youngest groups are at work; `sums` are those of the groups that ended.
template <int kMost, int... kColumns>
__device__ __forceinline__ void wait_products(WarpgroupSums<kColumns>&... sums) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kMost) : "memory");
  (pin(sums), ...);
}

// Which of a matrix' axes has its neighbours side by side: terms, or rows of A (columns of B).
enum class Major { kTerms = 0, kRows = 1 };

#define FASTCONV_SUMS_8(i)                                                          \
  "+f"(sums.values[i]), "+f"(sums.values[i + 1]), "+f"(sums.values[i + 2]),         \
      "+f"(sums.values[i + 3]), "+f"(sums.values[i + 4]), "+f"(sums.values[i + 5]), \
      "+f"(sums.values[i + 6]), "+f"(sums.values[i + 7])
#define FASTCONV_SUMS_32(i) \
  FASTCONV_SUMS_8(i), FASTCONV_SUMS_8(i + 8), FASTCONV_SUMS_8(i + 16), FASTCONV_SUMS_8(i + 24)
#define FASTCONV_SUMS_OF_64 FASTCONV_SUMS_32(0)
#define FASTCONV_NAMES_OF_64                                              \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define FASTCONV_SUMS_OF_128 FASTCONV_SUMS_32(0), FASTCONV_SUMS_32(32)
#define FASTCONV_NAMES_OF_128                                                        \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"            \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define FASTCONV_SUMS_OF_256 \
  FASTCONV_SUMS_32(0), FASTCONV_SUMS_32(32), FASTCONV_SUMS_32(64), FASTCONV_SUMS_32(96)
#define FASTCONV_NAMES_OF_256                                                                    \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"                        \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"             \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"             \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"             \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127}"

// Operands behind the sums: from shared memory  a, b, accumulate;  A from registers  4 of them, b,
// accumulate. wgmma takes "accumulate" as a predicate: where false, sums are overwritten.
#define FASTCONV_PRODUCT(columns, type, accumulate, operands)           \
  "{\n"                                                                 \
  ".reg .pred accumulate;\n"                                            \
  "setp.ne.b32 accumulate, " accumulate                                 \
  ", 0;\n"                                                              \
  "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type \
  " " FASTCONV_NAMES_OF_##columns ", " operands                         \
                                  ";\n"                                 \
                                  "}"
#define FASTCONV_PRODUCT_OF(columns, type, kElement, d0, d1, d2, d3, d4, d5, d6, d7)               \
  template <Major kA, Major kB>                                                                    \
  __device__ __forceinline__ void multiply_matrices(WarpgroupSums<columns>& sums, uint64_t a,      \
                                                    uint64_t b, int accumulate, kElement) {        \
    asm volatile(FASTCONV_PRODUCT(columns, type, d2, d0 ", " d1 ", accumulate, 1, 1, " d3 ", " d4) \
                 : FASTCONV_SUMS_OF_##columns                                                      \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(static_cast<int>(kA)),                     \
                   "n"(static_cast<int>(kB)));                                                     \
  }                                                                                                \
  template <Major kB>                                                                              \
  __device__ __forceinline__ void multiply_registers(                                              \
      WarpgroupSums<columns>& sums, const uint32_t(&a)[4], uint64_t b, int accumulate, kElement) { \
    asm volatile(                                                                                  \
        FASTCONV_PRODUCT(columns, type, d5,                                                        \
                         "{" d0 ", " d1 ", " d2 ", " d3 "}, " d4 ", accumulate, 1, 1, " d6)        \
        : FASTCONV_SUMS_OF_##columns                                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),                     \
          "n"(static_cast<int>(kB)));                                                              \
  }

namespace wgmma {

FASTCONV_PRODUCT_OF(64, "f16", __half, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39")
FASTCONV_PRODUCT_OF(64, "bf16", __nv_bfloat16, "%32", "%33", "%34", "%35", "%36", "%37", "%38",
                    "%39")
FASTCONV_PRODUCT_OF(128, "f16", __half, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71")
FASTCONV_PRODUCT_OF(128, "bf16", __nv_bfloat16, "%64", "%65", "%66", "%67", "%68", "%69", "%70",
                    "%71")
FASTCONV_PRODUCT_OF(256, "f16", __half, "%128", "%129", "%130", "%131", "%132", "%133", "%134",
                    "%135")
FASTCONV_PRODUCT_OF(256, "bf16", __nv_bfloat16, "%128", "%129", "%130", "%131", "%132", "%133",
                    "%134", "%135")

}  // namespace wgmma

#undef FASTCONV_PRODUCT_OF
#undef FASTCONV_PRODUCT
#undef FASTCONV_NAMES_OF_64
#undef FASTCONV_SUMS_OF_64
#undef FASTCONV_NAMES_OF_128
#undef FASTCONV_SUMS_OF_128
#undef FASTCONV_NAMES_OF_256
#undef FASTCONV_SUMS_OF_256
#undef FASTCONV_SUMS_32
#undef FASTCONV_SUMS_8

// wgmma.mma_async.m64nNk16: sums[64 x kColumns] = [sums +] a[64 x 16] * b[kColumns x 16]^T, 16-bit
// factors. Descriptors: matrix_descriptor.cuh. All threads of the warpgroup call it alike.
template <class T, Major kA = Major::kTerms, Major kB = Major::kTerms, int kColumns>
__device__ __forceinline__ void multiply_add_warpgroup(WarpgroupSums<kColumns>& sums, uint64_t a,
                                                       uint64_t b, bool accumulate) {
  wgmma::multiply_matrices<kA, kB>(sums, a, b, accumulate, T());
}

// The same with A from registers: each warp's 16 rows as mma.m16n8k16 takes them (device.cuh).
template <class T, Major kB = Major::kTerms, int kColumns>
__device__ __forceinline__ void multiply_add_warpgroup(WarpgroupSums<kColumns>& sums,
                                                       const uint32_t (&a)[4], uint64_t b,
                                                       bool accumulate) {
  wgmma::multiply_registers<kB>(sums, a, b, accumulate, T());
}

}  // namespace cuda
}  // namespace fastconv
