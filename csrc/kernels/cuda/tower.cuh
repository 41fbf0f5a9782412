// One tower's features, ready for the tile engine.

#pragma once

#include "host.h"
#include "operand_tile.cuh"

namespace cyclip::cuda {

// Rows are 16-byte aligned and, in their last chunk, zero beyond d. They are not normalized: the
// epilogues apply the norms.
template <typename Math>
struct Tower {
  using Element = typename Math::Element;
  using Accumulator = typename Math::Accumulator;

  const Element* data;
  int64_t rows, d, pitch;
  const double* norms;           // max(|x_i|, 1e-12)
  const Accumulator* inv_norms;  // rounded once, from the double norm

  Operand<Element> by_rows() const { return {data, rows, d, pitch}; }     // lines: rows
  Operand<Element> by_columns() const { return {data, d, rows, pitch}; }  // lines: features
  // Only some rows.
  Operand<Element> by_rows(int64_t begin, int64_t end) const {
    return {data + begin * pitch, end - begin, d, pitch};
  }
  Operand<Element> by_columns(int64_t begin, int64_t end) const {
    return {data + begin * pitch, d, end - begin, pitch};
  }
};

// Computes the norms, and copies features that cannot be used in place: rows that are not aligned
// to 16 bytes or end within a chunk, types that Math does not read, and floats that must be rounded
// to TF32.
template <typename Math>
Error prepare_tower(const Features& features, const Context& context, Tower<Math>* tower);

}  // namespace cyclip::cuda
