// Tensor maps and the copies that they describe, by the driver's and the PTX manual's text
// ("Tensors", "Swizzling modes", "im2col mode").
#include <cuda_runtime.h>

#include <cstring>
#include <vector>

#include "asynchronous.h"
#include "device.h"

namespace emulator {

namespace {

constexpr int kMaxRank = 5;

// What a CUtensorMap holds here. Axis 0 is the innermost.
struct Map {
  uint32_t kind;  // kTiled or kIm2col; else it was never encoded
  uint16_t rank, element_bytes;
  uint16_t swizzle, steps[kMaxRank];
  unsigned char* data;
  uint32_t extents[kMaxRank];         // less one
  uint64_t strides_16[kMaxRank - 1];  // bytes / 16, of axes 1 and up
  union {
    uint16_t box[kMaxRank];
    struct {
      int8_t lower[2], upper[2];  // corners, axes 1 and 2
      uint16_t channels, pixels;
    } im2col;
  };
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap), "a tensor map is 128 bytes");
constexpr uint32_t kTiled = 0x74696c65, kIm2col = 0x696d3263;

int bytes_of(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
      return 4;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return 8;
  }
  return 0;
}

constexpr unsigned span_of(unsigned swizzle) { return swizzle == 0 ? 256 * 8 : 16u << swizzle; }

// What both kinds have in common; false: the driver refuses.
bool encode(Map& map, CUtensorMapDataType type, unsigned rank, void* data,
            const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* steps,
            CUtensorMapSwizzle swizzle) {
  map.rank = static_cast<uint16_t>(rank);
  map.element_bytes = static_cast<uint16_t>(bytes_of(type));
  map.swizzle = static_cast<uint16_t>(swizzle);
  map.data = static_cast<unsigned char*>(data);
  if (map.element_bytes == 0 || rank < 1 || rank > kMaxRank || data == nullptr ||
      reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    return false;
  }
  for (unsigned axis = 0; axis < rank; ++axis) {
    if (extents[axis] == 0 || extents[axis] > uint64_t{1} << 32 || steps[axis] == 0 ||
        steps[axis] > 8) {
      return false;
    }
    map.extents[axis] = static_cast<uint32_t>(extents[axis] - 1);
    map.steps[axis] = static_cast<uint16_t>(steps[axis]);
    if (axis + 1 == rank) continue;
    if (strides[axis] % 16 != 0 || strides[axis] >= uint64_t{1} << 40) return false;
    map.strides_16[axis] = strides[axis] / 16;
  }
  return true;
}

CUresult encode_tiled(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* data,
                      const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Map map{};
  map.kind = kTiled;
  if (!encode(map, type, rank, data, extents, strides, steps, swizzle))
    return CUDA_ERROR_INVALID_VALUE;
  for (unsigned axis = 0; axis < rank; ++axis) {
    if (box[axis] == 0 || box[axis] > 256) return CUDA_ERROR_INVALID_VALUE;
    map.box[axis] = static_cast<uint16_t>(box[axis]);
  }
  const unsigned inner = box[0] * map.element_bytes;
  if (inner % 16 != 0 || inner > span_of(swizzle)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(to, &map, sizeof(map));
  return CUDA_SUCCESS;
}

CUresult encode_im2col(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* data,
                       const cuuint64_t* extents, const cuuint64_t* strides, const int* lower,
                       const int* upper, cuuint32_t channels, cuuint32_t pixels,
                       const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Map map{};
  map.kind = kIm2col;
  if (rank != 4 || !encode(map, type, rank, data, extents, strides, steps, swizzle))
    return CUDA_ERROR_INVALID_VALUE;
  for (int axis = 0; axis < 2; ++axis) {
    if (lower[axis] < -128 || lower[axis] > 127 || upper[axis] < -128 || upper[axis] > 127)
      return CUDA_ERROR_INVALID_VALUE;
    map.im2col.lower[axis] = static_cast<int8_t>(lower[axis]);
    map.im2col.upper[axis] = static_cast<int8_t>(upper[axis]);
  }
  const unsigned inner = channels * map.element_bytes;
  if (channels == 0 || channels > 256 || pixels == 0 || pixels > 1024 || inner % 16 != 0 ||
      inner > span_of(swizzle)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  map.im2col.channels = static_cast<uint16_t>(channels);
  map.im2col.pixels = static_cast<uint16_t>(pixels);
  std::memcpy(to, &map, sizeof(map));
  return CUDA_SUCCESS;
}

Map map_of(const CUtensorMap* from, uint32_t kind, int rank, const void* shared,
           const void* place) {
  if (reinterpret_cast<uintptr_t>(from) % 64 != 0)
    fail("tensor copy: the map is not aligned to 64 bytes", place);
  Map map;
  std::memcpy(&map, from, sizeof(map));
  if (map.kind != kind || map.rank != rank)
    fail("tensor copy: the map is of another kind or rank than the instruction", place);
  // A swizzle is a pattern of address bits, which starts anew every 8 lines of its span.
  const uintptr_t alignment = map.swizzle == 0 ? 128 : 128u << map.swizzle;
  if (reinterpret_cast<uintptr_t>(shared) % alignment != 0)
    fail("tensor copy: shared memory is not aligned to what the swizzle repeats after", place);
  return map;
}

// Exchanges 16-byte units: address bits 4.. are combined with bits 7.. (as many as the span has
// units, less the first power).
size_t swizzled(const void* base, size_t offset, unsigned swizzle) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(base) + offset;
  const uintptr_t mask = (uintptr_t{1} << swizzle) - 1;
  return (address ^ ((address >> 7 & mask) << 4)) - reinterpret_cast<uintptr_t>(base);
}

// Elements [first, first + count) of an innermost line that lie inside; where they start.
struct Line {
  unsigned char* from = nullptr;
  int first = 0, count = 0;
};

Line line_at(const Map& map, const int64_t* at, int length) {
  Line line;
  unsigned char* from = map.data;
  for (int axis = 1; axis < map.rank; ++axis) {
    if (at[axis] < 0 || at[axis] > map.extents[axis]) return line;
    from += static_cast<uint64_t>(at[axis]) * map.strides_16[axis - 1] * 16;
  }
  const int64_t begin = at[0] < 0 ? -at[0] : 0;
  const int64_t inside = int64_t{map.extents[0]} + 1 - at[0];
  const int64_t end = inside < length ? inside : length;
  if (begin >= end) return line;
  line.from = from + (at[0] + begin) * map.element_bytes;
  line.first = static_cast<int>(begin), line.count = static_cast<int>(end - begin);
  return line;
}

// Calls visit(number, line) for every innermost line of the box at these coordinates.
template <class Visit>
void visit_box(const Map& map, const int* at, const Visit& visit) {
  size_t lines = 1;
  for (int axis = 1; axis < map.rank; ++axis) lines *= map.box[axis];
  for (size_t number = 0; number < lines; ++number) {
    int64_t place[kMaxRank] = {at[0]};
    size_t rest = number;
    for (int axis = 1; axis < map.rank; ++axis) {
      place[axis] = at[axis] + static_cast<int64_t>(rest % map.box[axis]) * map.steps[axis];
      rest /= map.box[axis];
    }
    visit(number, line_at(map, place, map.box[0]));
  }
}

// Reads one line into its place of the image of shared memory.
void read_line(const Map& map, const void* shared, size_t number, size_t line_bytes,
               const Line& line, std::vector<unsigned char>& image, const void* place) {
  std::vector<unsigned char> whole(line_bytes, 0);
  if (line.count > 0) {
    const size_t bytes = static_cast<size_t>(line.count) * map.element_bytes;
    check_global(line.from, bytes, false, place);
    std::memcpy(whole.data() + line.first * map.element_bytes, line.from, bytes);
  }
  for (size_t unit = 0; unit < line_bytes; unit += 16) {
    std::memcpy(image.data() + swizzled(shared, number * line_bytes + unit, map.swizzle),
                whole.data() + unit, 16);
  }
}

size_t image_bytes(size_t lines, size_t line_bytes) { return lines * line_bytes; }

}  // namespace

__attribute__((noinline)) void load_tile(void* shared, const CUtensorMap* from, void* barrier,
                                         int rank, const int* at) {
  const void* place = __builtin_return_address(0);
  const Map map = map_of(from, kTiled, rank, shared, place);
  if (map.steps[0] != 1) fail("the emulator knows no step along the innermost axis", place);
  const size_t line_bytes = size_t{map.box[0]} * map.element_bytes;
  size_t lines = 1;
  for (int axis = 1; axis < rank; ++axis) lines *= map.box[axis];
  std::vector<unsigned char> image(image_bytes(lines, line_bytes));
  visit_box(map, at, [&](size_t number, const Line& line) {
    read_line(map, shared, number, line_bytes, line, image, place);
  });
  begin_load(shared, std::move(image), barrier_of(barrier, place), place);
}

// Pixels follow each other through the bounding box: along w, then h, then n. What is read lies at
// an offset from the pixel, which may leave the box, and the tensor.
__attribute__((noinline)) void load_im2col(void* shared, const CUtensorMap* from, void* barrier,
                                           const int (&at)[4], const uint16_t (&offsets)[2]) {
  const void* place = __builtin_return_address(0);
  const Map map = map_of(from, kIm2col, 4, shared, place);
  const auto& window = map.im2col;
  if (offsets[0] > 255 || offsets[1] > 255)
    fail("tensor copy: an offset of im2col mode, in four dimensions, has 8 bits", place);
  const size_t line_bytes = size_t{window.channels} * map.element_bytes;
  std::vector<unsigned char> image(image_bytes(window.pixels, line_bytes));
  int64_t w = at[1], h = at[2], n = at[3];
  for (size_t pixel = 0; pixel < window.pixels; ++pixel) {
    const int64_t spot[kMaxRank] = {at[0], w + offsets[0], h + offsets[1], n};
    read_line(map, shared, pixel, line_bytes, line_at(map, spot, window.channels), image, place);
    w += map.steps[1];
    if (w <= int64_t{map.extents[1]} + window.upper[0]) continue;
    w = window.lower[0];
    h += map.steps[2];
    if (h <= int64_t{map.extents[2]} + window.upper[1]) continue;
    h = window.lower[1];
    ++n;
  }
  begin_load(shared, std::move(image), barrier_of(barrier, place), place);
}

__attribute__((noinline)) void store_tile(const CUtensorMap* to, const void* shared, int rank,
                                          const int* at) {
  const void* place = __builtin_return_address(0);
  const Map map = map_of(to, kTiled, rank, shared, place);
  if (map.steps[0] != 1) fail("the emulator knows no step along the innermost axis", place);
  const size_t line_bytes = size_t{map.box[0]} * map.element_bytes;
  size_t lines = 1;
  for (int axis = 1; axis < rank; ++axis) lines *= map.box[axis];
  begin_store(shared, image_bytes(lines, line_bytes), place);
  const auto* image = static_cast<const unsigned char*>(shared);
  visit_box(map, at, [&](size_t number, const Line& line) {
    std::vector<unsigned char> whole(line_bytes);
    for (size_t unit = 0; unit < line_bytes; unit += 16) {
      std::memcpy(whole.data() + unit,
                  image + swizzled(shared, number * line_bytes + unit, map.swizzle), 16);
    }
    if (line.count == 0) return;
    const size_t bytes = static_cast<size_t>(line.count) * map.element_bytes;
    check_global(line.from, bytes, true, place);
    std::memcpy(line.from, whole.data() + line.first * map.element_bytes, bytes);
  });
}

}  // namespace emulator

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *entry = nullptr;
  if (std::strcmp(name, "cuTensorMapEncodeTiled") == 0)
    *entry = reinterpret_cast<void*>(emulator::encode_tiled);
  if (std::strcmp(name, "cuTensorMapEncodeIm2col") == 0)
    *entry = reinterpret_cast<void*>(emulator::encode_im2col);
  *found = *entry == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
