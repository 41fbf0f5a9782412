// bfloat16 on the CPU: conversion to the words of its matrix products, and the table of its
// kernels.

#pragma once

#include "product.h"

namespace cyclip::cpu {

// The words of features [rows, d]. Missing elements of a pair are zero.

// Pairs adjacent elements of each row: [rows, ceil(d / 2)].
void pair_columns(const Bf16* x, int64_t rows, int64_t d, Bf16Pair* pairs);

// Pairs rows 2k and 2k + 1, in panels of `panel_cols` columns: column c of panel p is at
// pairs[p * panel_stride + k * panel_cols + c]. Columns from d on are zero.
void pair_rows(const Bf16* x, int64_t rows, int64_t d, int64_t panel_cols, int64_t panel_stride, Bf16Pair* pairs);

// Rounds a tile of float to bfloat16 and pairs it in both ways. Reads and writes whole vectors, so
// up to 31 columns beyond the last one.
struct RoundTile {
  const float* values;
  int64_t pitch;
  int64_t rows, cols;
  Bf16Pair* by_row;  // [rows, row_pitch], adjacent elements of a row
  int64_t row_pitch;
  Bf16Pair* by_column;  // [ceil(rows / 2), column_pitch], rows 2k and 2k + 1
  int64_t column_pitch;
};

struct Bf16Kernels {
  ProductKernel<Bf16Pair> product;
  void (*round_tile)(const RoundTile&);
  // As pair_rows, but rounds rows of float to bfloat16. Subnormal numbers become zero, as in products.
  void (*round_rows)(const float* x, int64_t rows, int64_t d, int64_t panel_cols, int64_t panel_stride,
                     Bf16Pair* pairs);
};

// Returns null if the processor has no instructions for bfloat16.
const Bf16Kernels* bf16_kernels();

}  // namespace cyclip::cpu
