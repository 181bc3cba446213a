#include "probes.h"

#include <cstring>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_map.h"

extern const NamedProbe kCopyProbes[], kProductProbes[], kPlantedAsynchronous[], kPlantedWarps[],
    kWarpProbes[];

namespace {

const NamedProbe* find(const char* name) {
  for (const NamedProbe* probe :
       {kCopyProbes, kProductProbes, kPlantedAsynchronous, kPlantedWarps, kWarpProbes}) {
    for (; probe->name != nullptr; ++probe) {
      if (std::strcmp(probe->name, name) == 0) return probe;
    }
  }
  return nullptr;
}

}  // namespace

extern "C" {

const char* emulate_probe(const char* name, const void* from, void* to, const int64_t* numbers,
                          const CUtensorMap* map) {
  const NamedProbe* found = find(name);
  if (found == nullptr) return "no such probe";
  Probe probe{};
  probe.from = static_cast<const unsigned char*>(from);
  probe.to = static_cast<unsigned char*>(to);
  if (numbers != nullptr) std::memcpy(probe.numbers, numbers, sizeof(probe.numbers));
  if (map != nullptr) std::memcpy(&probe.map, map, sizeof(probe.map));
  constexpr size_t kSharedBytes = 64 * 1024;
  const auto start =
      found->together ? fastconv::cuda::launch_together<Probe> : fastconv::cuda::launch<Probe>;
  return start(found->kernel, found->blocks, found->threads, kSharedBytes, nullptr, probe);
}

const char* emulate_tiled_map(CUtensorMap* map, int dtype, void* data, int rank,
                              const uint64_t* extents, const uint64_t* strides, const uint32_t* box,
                              int swizzle) {
  fastconv::cuda::TiledTensor tensor{};
  tensor.dtype = static_cast<fastconv::DType>(dtype);
  tensor.data = data, tensor.rank = rank;
  for (int axis = 0; axis < rank; ++axis) {
    tensor.extents[axis] = extents[axis], tensor.box[axis] = box[axis];
    if (axis + 1 < rank) tensor.strides[axis] = strides[axis];
  }
  tensor.swizzle = static_cast<CUtensorMapSwizzle>(swizzle);
  return fastconv::cuda::make_tensor_map(*map, tensor);
}

const char* emulate_window_map(CUtensorMap* map, int dtype, void* data, const uint64_t* extents,
                               const uint64_t* strides, const int* corners, const uint32_t* steps,
                               unsigned channels, unsigned pixels, int swizzle) {
  fastconv::cuda::WindowTensor tensor{};
  tensor.dtype = static_cast<fastconv::DType>(dtype);
  tensor.data = data;
  std::memcpy(tensor.extents, extents, sizeof(tensor.extents));
  std::memcpy(tensor.strides, strides, sizeof(tensor.strides));
  std::memcpy(tensor.lower, corners, sizeof(tensor.lower));
  std::memcpy(tensor.upper, corners + 2, sizeof(tensor.upper));
  std::memcpy(tensor.steps, steps, sizeof(tensor.steps));
  tensor.channels = channels, tensor.pixels = pixels;
  tensor.swizzle = static_cast<CUtensorMapSwizzle>(swizzle);
  return fastconv::cuda::make_tensor_map(*map, tensor);
}

}  // extern "C"
