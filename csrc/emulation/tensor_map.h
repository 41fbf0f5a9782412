// The emulator's counterparts of CUtensorMap and cuTensorMapEncodeTiled (CUDA driver API, "Tensor Map Object
// Management"), with the driver's names and values for those parameters that the kernels use.

#pragma once

#include <cstdint>

// NOLINTBEGIN: names of the driver
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_NONE = 0, CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };

struct alignas(64) CUtensorMap {
  uint64_t magic;  // kEncoded if the map was encoded
  const unsigned char* address;
  int64_t extent[2], pitch;  // elements along x and y, bytes from one y to the next
  int32_t box[2];
  CUtensorMapSwizzle swizzle;
  int32_t element_bytes;
  uint64_t unused[8];

  static constexpr uint64_t kEncoded = 0x7E4507'9A9'1C0DEDull;
};
static_assert(sizeof(CUtensorMap) == 128);

// Two dimensions of 16-bit elements only. Returns CUDA_ERROR_INVALID_VALUE in the cases that the driver documents.
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* address,
                                const uint64_t* extents, const uint64_t* strides, const uint32_t* box,
                                const uint32_t* element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill);
// NOLINTEND
