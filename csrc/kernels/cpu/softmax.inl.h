// Epilogues of the contrastive term: statistics of the negatives, and the gradient panel.

namespace cyclip::cpu::CYCLIP_ISA {

// S_ij = <x_i, y_j> / (|x_i| |y_j|), multiplied in an order in which neither product can overflow first.
template <typename T>
inline Vec<T> cosine(const Tile<T>& tile, int64_t row, int64_t col) {
  const Vec<T> dot = load<Vec<T>>(tile.dots + row * tile.pitch + col);
  return dot * tile.row_inv_norms[row] * load<Vec<T>>(tile.col_inv_norms + col);
}

template <typename T>
inline T entry_cosine(const Tile<T>& tile, int64_t row, int64_t col) {
  return tile.dots[row * tile.pitch + col] * tile.row_inv_norms[row] * tile.col_inv_norms[col];
}

// First pass over one row: returns the row's largest z', and its largest cosine if kHardest, and
// updates the columns' largest z' (in column_scratch) and hardest negatives.
template <bool kHardest, typename T>
inline void maxima(const SoftmaxForward<T>& args, int64_t row, T* largest_logit, T* largest_cosine) {
  const Tile<T>& tile = args.tile;
  const NegativeStatistics<T>& columns = args.col_statistics;
  const LaneInt<T> row_index = static_cast<LaneInt<T>>(tile.row_begin + row);
  const Vec<T> lowest = splat(static_cast<T>(kNoShift));
  T* col_largest = args.column_scratch;
  Vec<T> row_logit = lowest, row_cosine = lowest;
  for_each_pair(tile, args.labels, row, [&](int64_t col, auto mask, auto same) {
    const Vec<T> s = cosine(tile, row, col);
    const auto is_negative = without(mask, same);
    const Vec<T> logit = choose(args.same_are_positives ? mask : is_negative, s * args.scale.hi, lowest);
    row_logit = maximum(logit, row_logit);
    store(col_largest + col, maximum(logit, load<Vec<T>>(col_largest + col)));
    if constexpr (!kHardest) return;
    const Vec<T> negative = choose(is_negative, s, lowest);
    row_cosine = maximum(negative, row_cosine);
    const Vec<T> hardest = load<Vec<T>>(columns.hardest + col);
    const IntVec<T> harder = negative > hardest;
    store(columns.hardest + col, harder ? negative : hardest);
    const IntVec<T> index = load<IntVec<T>>(columns.hardest_index + col);
    store(columns.hardest_index + col, harder ? splat_int<T>(row_index) : index);
  });
  *largest_logit = largest_lane<T>(row_logit);
  if constexpr (kHardest) *largest_cosine = largest_lane<T>(row_cosine);
}

// The first of several equal negatives counts. Tiles arrive in column order, so the comparison is
// strict.
template <typename T>
inline void update_row_hardest(const SoftmaxForward<T>& args, int64_t row, T candidate) {
  const Tile<T>& tile = args.tile;
  if (!(candidate > args.row_statistics.hardest[row])) return;
  const auto is_negative = [&](int64_t col) {
    const bool is_same = args.labels.row != nullptr && args.labels.row[row] == args.labels.col[col];
    return col != positive_column(tile, row) && !is_same;
  };
  int64_t col = 0;
  while (!is_negative(col) || entry_cosine(tile, row, col) != candidate) ++col;
  args.row_statistics.hardest[row] = candidate;
  args.row_statistics.hardest_index[row] = static_cast<LaneInt<T>>(tile.col_begin + col);
}

template <typename T>
inline LaneInt<T> raise_shift(LaneInt<T>* shift, double* sum, LaneInt<T> candidate) {
  if (candidate > *shift) {
    // An empty sum stays zero at every distance.
    *sum = *sum == 0 ? 0 : __builtin_ldexp(*sum, static_cast<int>(*shift - candidate));
    *shift = candidate;
  }
  return *shift;
}

// Updates row and column statistics with one tile. Takes two passes over the tile, which is in the
// cache: the first computes the maxima, so that no exponential can overflow, the second one
// exponential per entry for both softmaxes.
template <typename T>
void softmax_forward(const SoftmaxForward<T>& args) {
  const Tile<T>& tile = args.tile;
  const NegativeStatistics<T>& rows = args.row_statistics;
  const NegativeStatistics<T>& columns = args.col_statistics;
  T* col_largest = args.column_scratch;
  T* col_sum = args.column_scratch + padded(tile.cols);
  for (int64_t col = 0; col < padded(tile.cols); ++col) {
    col_largest[col] = static_cast<T>(kNoShift);
    col_sum[col] = 0;
  }

  for (int64_t row = 0; row < tile.rows; ++row) {
    T largest_logit, largest_cosine;
    if (args.needs_hardest) {
      maxima<true>(args, row, &largest_logit, &largest_cosine);
      update_row_hardest(args, row, largest_cosine);
    } else {
      maxima<false>(args, row, &largest_logit, &largest_cosine);
    }
    if (largest_logit > static_cast<T>(kNoShift)) {
      const LaneInt<T> shift = nearest_integer<T>(splat(largest_logit))[0];
      raise_shift<T>(rows.shift + row, rows.sum + row, shift);
    }
    const int64_t positive = positive_column(tile, row);
    if (in_tile(tile, positive)) args.positive[row] = entry_cosine(tile, row, positive);
  }
  for (int64_t col = 0; col < tile.cols; ++col) {
    if (!(col_largest[col] > static_cast<T>(kNoShift))) continue;
    const LaneInt<T> shift = nearest_integer<T>(splat(col_largest[col]))[0];
    raise_shift<T>(columns.shift + col, columns.sum + col, shift);
  }

  const Labels<T> masked = args.same_are_positives ? Labels<T>{} : args.labels;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const IntVec<T> row_shift = splat_int<T>(rows.shift[row]);
    Vec<T> row_sum = splat(T(0));
    for_each_negative(tile, masked, row, [&](int64_t col, auto mask) {
      const Vec<T> s = cosine(tile, row, col);
      const Base2<T> z = exp2_split<T>(s, args.scale.hi, args.scale.lo);
      const IntVec<T> col_shift = load<IntVec<T>>(columns.shift + col);
      const Vec<T> zero = splat(T(0));
      row_sum += choose(mask, z.fraction * power_of_two<T>(wrapping_subtract<T>(z.exponent, row_shift)), zero);
      const Vec<T> to_column =
          choose(mask, z.fraction * power_of_two<T>(wrapping_subtract<T>(z.exponent, col_shift)), zero);
      store(col_sum + col, load<Vec<T>>(col_sum + col) + to_column);
    });
    rows.sum[row] += sum_lanes<T>(row_sum);
  }
  for (int64_t col = 0; col < tile.cols; ++col) columns.sum[col] += static_cast<double>(col_sum[col]);
}

// Turns a tile of dot products into H, with one exponential per entry, and accumulates dL/ds.
template <typename T>
void softmax_backward(const SoftmaxBackward<T>& args) {
  const Tile<T>& tile = args.tile;
  const SoftmaxWeights<T>& weights = args.weights;
  const T scale = static_cast<T>(args.scale);
  for (int64_t row = 0; row < tile.rows; ++row) {
    T* gradient = args.gradient.values + row * args.gradient.pitch;
    const IntVec<T> row_shift = splat_int<T>(weights.row_shift[row]);
    const T row_weight = weights.row_weight[row];
    Vec<T> row_dot = splat(T(0));
    for_each_negative(tile, args.labels, row, [&](int64_t col, auto mask) {
      const Vec<T> s = cosine(tile, row, col);
      const Base2<T> z = exp2_split<T>(s, args.scale_base2.hi, args.scale_base2.lo);
      const IntVec<T> col_shift = load<IntVec<T>>(weights.col_shift + col);
      const Vec<T> by_row = row_weight * power_of_two<T>(wrapping_subtract<T>(z.exponent, row_shift));
      const Vec<T> by_col =
          load<Vec<T>>(weights.col_weight + col) * power_of_two<T>(wrapping_subtract<T>(z.exponent, col_shift));
      const Vec<T> zero = splat(T(0));
      const Vec<T> w = choose(mask, z.fraction * (by_row + by_col), zero);
      row_dot += choose(mask, w * s, zero);
      const Vec<T> inv_norm = load<Vec<T>>(tile.col_inv_norms + col);
      store(gradient + col, choose(mask, w * scale * tile.row_inv_norms[row] * inv_norm, zero));
    });
    args.scalars->scale += sum_lanes<T>(row_dot);
  }
}

}  // namespace cyclip::cpu::CYCLIP_ISA
