// The choice of an instruction set, made once per process.

#pragma once

#include <string>

// Tile registers require permission from the operating system. Compilers without support for them
// lack the header.
#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define CYCLIP_HAS_AMX
#endif

namespace cyclip::cpu {

// Each instruction set includes the preceding ones of the same architecture.
enum class Isa { kBaseline, kNeon, kAvx2, kAvx512, kAvx512Bf16, kAmx };

struct IsaChoice {
  Isa isa;
  std::string description;  // the name of the instruction set and the reason for it
};

// Returns the best instruction set that this processor supports and that `limit` allows. `limit` is the name of an
// instruction set, or null or empty for no limit. Throws std::invalid_argument for any other name.
IsaChoice choose_isa(const char* limit);

// Returns the choice for this process, limited by the environment variable CYCLIP_CPU_ISA.
const IsaChoice& chosen_isa();

}  // namespace cyclip::cpu
