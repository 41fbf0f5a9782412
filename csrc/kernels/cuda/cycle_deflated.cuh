// The Gram route of the cycle terms with products in float32, for GPUs whose float64 is slow. P and M lose their
// parts along the main directions of both towers before they are multiplied (deflation, docs/cycle.md); sums over
// rows and the parts along these directions stay in double.

#pragma once

#include "cycle_factors.cuh"

namespace cyclip::cuda {

// As launch_cycle_grams_forward and _backward, for features that are not float64.
Error launch_cycle_grams_deflated_forward(const CycleGramsForward& args, const Context& context);
Error launch_cycle_grams_deflated_backward(const CycleGramsBackward& args, const Context& context);

}  // namespace cyclip::cuda
