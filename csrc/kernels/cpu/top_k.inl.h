// Epilogue of the streaming top-k: each row keeps a sorted list of its best entries so far.

namespace cyclip::cpu::CYCLIP_ISA {

// Equal entries are ordered by column: columns arrive in order, so a new entry is inserted after
// its equals.
template <typename T>
inline void insert(T value, LaneInt<T> index, int64_t capacity, T* values, LaneInt<T>* indices) {
  int64_t place = 0, last = capacity - 1;  // the place is between these
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

// The largest entries of groups of columns, one group per lane.
template <typename T>
struct GroupMaxima {
  static constexpr int64_t kGroups = 64, kVectors = kGroups / kLanes<T>;
  Vec<T> maxima[kVectors];
  int64_t next = 0;

  GroupMaxima() {
    for (Vec<T>& group : maxima) group = splat(-static_cast<T>(__builtin_inf()));
  }

  void add(Vec<T> entries) {
    maxima[next] = maximum(entries, maxima[next]);
    next = (next + 1) % kVectors;
  }

  T largest() const {
    Vec<T> result = maxima[0];
    for (int64_t v = 1; v < kVectors; ++v) result = maximum(maxima[v], result);
    return largest_lane<T>(result);
  }

  // Returns a number that at least `count` entries reach: the smallest of the `count` largest
  // maxima.
  T reached_by(int64_t count) const {
    T least = -static_cast<T>(__builtin_inf());
    if (count > kGroups) return least;
    IntVec<T> larger[kVectors] = {};  // the number of larger maxima, negative
    for (const Vec<T>& group : maxima) {
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        for (int64_t v = 0; v < kVectors; ++v) larger[v] += splat(group[lane]) > maxima[v];
      }
    }
    Vec<T> smallest = splat(static_cast<T>(__builtin_inf()));
    for (int64_t v = 0; v < kVectors; ++v) {
      const IntVec<T> belongs = larger[v] > splat_int<T>(static_cast<LaneInt<T>>(-count));
      const Vec<T> candidate = belongs ? maxima[v] : smallest;
      smallest = candidate < smallest ? candidate : smallest;
    }
    for (int64_t lane = 1; lane < kLanes<T>; ++lane) {
      if (smallest[lane] < smallest[0]) smallest[0] = smallest[lane];
    }
    return smallest[0];
  }
};

// Computes the cosines of a row and their maximum first: once the lists are full, most rows of most
// tiles add nothing. Before that, entries that are smaller than `capacity` others of the tile are
// skipped, because an insertion costs more than a comparison.
template <typename T>
void top_k(const TopK<T>& args) {
  const Tile<T>& tile = args.tile;
  const Vec<T> lowest = splat(-static_cast<T>(__builtin_inf()));
  for (int64_t row = 0; row < tile.rows; ++row) {
    T* cosines = args.cosines;
    GroupMaxima<T> groups;
    for_each_vector<T>(tile.cols, -1, [&](int64_t col, auto mask) {
      const Vec<T> s = comparable_cosine(tile, row, col);
      store(cosines + col, s);
      groups.add(choose(mask, s, lowest));
    });
    T* values = args.values + row * args.capacity;
    LaneInt<T>* indices = args.indices + row * args.capacity;
    const T& least = values[args.capacity - 1];
    if (groups.largest() <= least) continue;
    const bool is_full = least == least;
    const T reached = is_full ? least : groups.reached_by(args.capacity);
    for (int64_t col = 0; col < tile.cols; ++col) {
      if (cosines[col] < reached || cosines[col] <= least) continue;
      insert(cosines[col], static_cast<LaneInt<T>>(tile.col_begin + col), args.capacity, values, indices);
    }
  }
}

}  // namespace cyclip::cpu::CYCLIP_ISA
