// The choice between the engines of the CUDA kernels.

#pragma once

#include <cstdint>
#include <string>

namespace cyclip::cuda {

struct EngineChoice {
  int64_t hopper_blocks;    // of Context
  std::string description;  // the engine and the reason
};

// Reads CYCLIP_CUDA_ENGINE: portable (the default) or hopper. Without a device of compute capability 9.0 and a
// driver that encodes tensor maps, the choice is portable. Raises an error for another value.
EngineChoice chosen_engine(int device);

}  // namespace cyclip::cuda
