// Epilogue of the streaming top-k: each row keeps a sorted list of its best entries so far.

namespace cyclip::cpu::CYCLIP_ISA {

// Of equal entries the first comes first: columns arrive in order, so a new one goes behind its equals.
template <typename T>
inline void insert(T value, LaneInt<T> index, int64_t capacity, T* values, LaneInt<T>* indices) {
  int64_t place = 0, last = capacity - 1;  // the place lies in between
  while (place < last) {
    const int64_t middle = (place + last) / 2;
    if (value <= values[middle]) {
      place = middle + 1;
    } else {
      last = middle;
    }
  }
  const int64_t behind = capacity - 1 - place;
  __builtin_memmove(values + place + 1, values + place, behind * sizeof(T));
  __builtin_memmove(indices + place + 1, indices + place, behind * sizeof(LaneInt<T>));
  values[place] = value;
  indices[place] = index;
}

// Cosines and their largest first: once the lists are full, most rows of most tiles have nothing to add.
template <typename T>
void top_k(const TopK<T>& args) {
  const Tile<T>& tile = args.tile;
  const Vec<T> lowest = splat(-static_cast<T>(__builtin_inf()));
  for (int64_t row = 0; row < tile.rows; ++row) {
    T* cosines = args.cosines;
    Vec<T> largest = lowest;
    for_each_vector<T>(tile.cols, -1, [&](int64_t col, auto mask) {
      const Vec<T> s = comparable_cosine(tile, row, col);
      store(cosines + col, s);
      largest = maximum(choose(mask, s, lowest), largest);
    });
    T* values = args.values + row * args.capacity;
    LaneInt<T>* indices = args.indices + row * args.capacity;
    const T& least = values[args.capacity - 1];
    if (largest_lane<T>(largest) <= least) continue;
    for (int64_t col = 0; col < tile.cols; ++col) {
      if (cosines[col] <= least) continue;
      insert(cosines[col], static_cast<LaneInt<T>>(tile.col_begin + col), args.capacity, values, indices);
    }
  }
}

}  // namespace cyclip::cpu::CYCLIP_ISA
