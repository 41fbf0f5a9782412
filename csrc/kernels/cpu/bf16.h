// bfloat16 on the CPU: making the words of its matrix products, and the table of its kernels.

#pragma once

#include "product.h"

namespace cyclip::cpu {

// Words from features that are bfloat16 already, widened to float. What is missing in a pair is zero.

// Neighbours along a row: [rows, ceil(d / 2)].
void pair_columns(const float* x, int64_t rows, int64_t d, Bf16Pair* pairs);

// Rows 2k and 2k + 1: [ceil(rows / 2), pitch], columns beyond d zero.
void pair_rows(const float* x, int64_t rows, int64_t d, int64_t pitch, Bf16Pair* pairs);

// A tile of float, rounded to bfloat16 and paired in both ways. Whole vectors are read and written, so up to
// 31 columns behind the last one.
struct RoundTile {
  const float* values;
  int64_t pitch;
  int64_t rows, cols;
  Bf16Pair* by_row;  // [rows, row_pitch], neighbours along a row
  int64_t row_pitch;
  Bf16Pair* by_column;  // [ceil(rows / 2), column_pitch], rows 2k and 2k + 1
  int64_t column_pitch;
};

struct Bf16Kernels {
  ProductKernel<Bf16Pair> product;
  void (*round_tile)(const RoundTile&);
};

// Null where the processor has no instructions for it.
const Bf16Kernels* bf16_kernels();

}  // namespace cyclip::cpu
