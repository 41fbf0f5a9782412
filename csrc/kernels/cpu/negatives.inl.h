// The roles of the entries of a tile: the positive of each row, and pairs of equal labels.

namespace cyclip::cpu::CYCLIP_ISA {

// The column of the positive of `row`, relative to the tile; outside [0, cols) if it is in another
// tile.
template <typename T>
inline int64_t positive_column(const Tile<T>& tile, int64_t row) {
  return tile.row_begin + row + tile.offset - tile.col_begin;
}

template <typename T>
inline bool in_tile(const Tile<T>& tile, int64_t col) {
  return col >= 0 && col < tile.cols;
}

// Compares the label of `row` with the labels of the columns from `col` on: -1 if they are equal,
// else 0.
template <typename T>
inline IntVec<T> same_label(const Labels<T>& labels, int64_t row, int64_t col) {
  return load<IntVec<T>>(labels.col + col) == splat_int<T>(labels.row[row]);
}

// Whether columns other than that of the positive have the label of `row`.
template <typename T>
inline bool has_same_label(const Tile<T>& tile, const Labels<T>& labels, int64_t row) {
  if (labels.row == nullptr) return false;
  IntVec<T> counts = {};
  for (int64_t col = 0; col < tile.cols; col += kLanes<T>) counts -= same_label(labels, row, col);
  LaneInt<T> count = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) count += counts[lane];
  const int64_t positive = positive_column(tile, row);
  return count > (in_tile(tile, positive) && labels.col[positive] == labels.row[row]);
}

// Calls step(first column, mask, same) for each vector of a row. The mask is off past the end and at
// the positive; `same` is on where labels are equal. Rows of most tiles share no label, and take the
// path of rows without labels: `same` is then NoLanes.
template <typename T, typename Step>
inline void for_each_pair(const Tile<T>& tile, const Labels<T>& labels, int64_t row, Step&& step) {
  const int64_t positive = positive_column(tile, row);
  if (!has_same_label(tile, labels, row)) {
    return for_each_vector<T>(tile.cols, positive, [&](int64_t col, auto mask) { step(col, mask, NoLanes{}); });
  }
  for (int64_t col = 0; col < tile.cols; col += kLanes<T>) {
    step(col, lanes_except<T>(col, tile.cols, positive), same_label(labels, row, col));
  }
}

inline AllLanes without(AllLanes, NoLanes) { return {}; }
template <typename M>
inline M without(M mask, NoLanes) {
  return mask;
}
template <typename M>
inline M without(M mask, M same) {
  return mask & ~same;
}

// Calls step(first column, mask) for each vector of a row. The mask is on for the negatives.
template <typename T, typename Step>
inline void for_each_negative(const Tile<T>& tile, const Labels<T>& labels, int64_t row, Step&& step) {
  for_each_pair(tile, labels, row, [&](int64_t col, auto mask, auto same) { step(col, without(mask, same)); });
}

}  // namespace cyclip::cpu::CYCLIP_ISA
