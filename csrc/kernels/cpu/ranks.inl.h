// Epilogues of retrieval ranks: the first finds the best own entry of each row and column, the
// second counts the foreign entries that reach it. Both compute bit-identical cosines, so ties are
// exact.

namespace cyclip::cpu::CYCLIP_ISA {

// For comparisons: NaN is worse than every number.
template <typename T>
inline Vec<T> comparable_cosine(const Tile<T>& tile, int64_t row, int64_t col) {
  const Vec<T> s = cosine(tile, row, col);
  return s == s ? s : splat(-static_cast<T>(__builtin_inf()));
}

template <typename T>
void own_best(const OwnBest<T>& args) {
  const Tile<T>& tile = args.tile;
  for (int64_t row = 0; row < tile.rows; ++row) {
    Vec<T> row_best = splat(args.row_best[row]);
    for_each_vector<T>(tile.cols, -1, [&](int64_t col, auto mask) {
      const Vec<T> s = comparable_cosine(tile, row, col);
      const IntVec<T> own = choose(mask, same_label(args.labels, row, col), IntVec<T>{});
      const Vec<T> col_best = load<Vec<T>>(args.col_best + col);
      // Not written as "greater", which would never replace NaN.
      row_best = own & ~(s <= row_best) ? s : row_best;
      store(args.col_best + col, own & ~(s <= col_best) ? s : col_best);
    });
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      const T best = row_best[lane];
      if (best == best && !(best <= args.row_best[row])) args.row_best[row] = best;
    }
  }
}

template <typename T>
void foreign_count(const ForeignCount<T>& args) {
  const Tile<T>& tile = args.tile;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const Vec<T> row_best = splat(args.row_best[row]);
    IntVec<T> row_count = {};
    for_each_vector<T>(tile.cols, -1, [&](int64_t col, auto mask) {
      const Vec<T> s = comparable_cosine(tile, row, col);
      const IntVec<T> foreign = choose(mask, ~same_label(args.labels, row, col), IntVec<T>{});
      const IntVec<T> col_count = load<IntVec<T>>(args.col_count + col);
      // True is -1. Without an own entry the best is NaN, and no entry reaches it.
      row_count -= foreign & (s >= row_best);
      store(args.col_count + col, col_count - (foreign & (s >= load<Vec<T>>(args.col_best + col))));
    });
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) args.row_count[row] += row_count[lane];
  }
}

}  // namespace cyclip::cpu::CYCLIP_ISA
