#include <torch/csrc/stable/library.h>

#include <string>

#include "../../kernels/cpu/isa.h"

namespace cyclip::cpu {

std::string cpu_isa() { return chosen_isa().description; }

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }

}  // namespace cyclip::cpu
