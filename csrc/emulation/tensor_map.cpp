#include "tensor_map.h"

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* address,
                                const uint64_t* extents, const uint64_t* strides, const uint32_t* box,
                                const uint32_t* element_strides, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  constexpr uint64_t kElementBytes = 2, kMostExtent = uint64_t{1} << 32, kMostStride = uint64_t{1} << 40;
  const uint64_t row_bytes = box[0] * kElementBytes;
  bool is_valid = reinterpret_cast<uintptr_t>(map) % 64 == 0 && rank == 2 && address != nullptr &&
                  reinterpret_cast<uintptr_t>(address) % 16 == 0 && strides[0] % 16 == 0 &&
                  strides[0] < kMostStride && strides[0] >= extents[0] * kElementBytes && row_bytes % 16 == 0 &&
                  (swizzle == CU_TENSOR_MAP_SWIZZLE_NONE || row_bytes <= 128);
  is_valid = is_valid && (type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
  for (int i = 0; i < 2; ++i) {
    is_valid = is_valid && extents[i] >= 1 && extents[i] <= kMostExtent && box[i] >= 1 && box[i] <= 256 &&
               element_strides[i] == 1;
  }
  if (!is_valid) return CUDA_ERROR_INVALID_VALUE;
  *map = {CUtensorMap::kEncoded,
          static_cast<const unsigned char*>(address),
          {static_cast<int64_t>(extents[0]), static_cast<int64_t>(extents[1])},
          static_cast<int64_t>(strides[0]),
          {static_cast<int32_t>(box[0]), static_cast<int32_t>(box[1])},
          swizzle,
          kElementBytes,
          {}};
  return CUDA_SUCCESS;
}
