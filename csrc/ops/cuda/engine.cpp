#include "engine.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>

#include "device.h"

namespace cyclip::cuda {

EngineChoice chosen_engine(int device) {
  const char* const variable = std::getenv("CYCLIP_CUDA_ENGINE");
  const std::string stated = variable == nullptr ? "" : variable;
  STD_TORCH_CHECK(stated.empty() || stated == "portable" || stated == "hopper",
                  "CYCLIP_CUDA_ENGINE must be portable or hopper, got ", stated);
  if (stated.empty()) return {0, "portable: CYCLIP_CUDA_ENGINE is not set, and hopper was not measured yet"};
  if (stated == "portable") return {0, "portable: set by CYCLIP_CUDA_ENGINE"};
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  if (major != 9 || minor != 0) {
    return {0, "portable: hopper needs compute capability 9.0, the device has " + std::to_string(major) + "." +
                   std::to_string(minor)};
  }
  if (!hopper_is_available()) return {0, "portable: hopper needs a driver for CUDA 12.0 or later"};
  return {attribute(cudaDevAttrMultiProcessorCount, device), "hopper: set by CYCLIP_CUDA_ENGINE"};
}

std::string cuda_engine(int64_t device) { return chosen_engine(static_cast<int>(device)).description; }

// Only this library has engines to choose from, so the schema is not in schemas.cpp.
STABLE_TORCH_LIBRARY_FRAGMENT(cyclip_ext, m) { m.def("cuda_engine(int device) -> str"); }
STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CompositeExplicitAutograd, m) {
  m.impl("cuda_engine", TORCH_BOX(&cuda_engine));
}

}  // namespace cyclip::cuda
