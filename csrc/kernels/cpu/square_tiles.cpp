#include "square_tiles.h"

#include "cycle_rows.h"

namespace cyclip::cpu {

namespace {

static_assert(kDirections == 2);

inline double entry(const LowRank& m, int64_t n, int64_t i, int64_t j) {
  return (m.directions[i] * m.rows[j] + m.cols[i] * m.directions[j]) +
         (m.directions[n + i] * m.rows[n + j] + m.cols[n + i] * m.directions[n + j]);
}

// A copy of a tile of a matrix, with zeros outside the matrix.
struct SquareTile {
  double entries[kSquareTile][kSquareTile];

  template <typename T>
  void load(const T* matrix, int64_t n, int64_t row, int64_t col) {
    if (row + kSquareTile <= n && col + kSquareTile <= n) {
      for (int64_t i = 0; i < kSquareTile; ++i) {
        for (int64_t j = 0; j < kSquareTile; ++j) entries[i][j] = matrix[(row + i) * n + col + j];
      }
      return;
    }
    for (int64_t i = 0; i < kSquareTile; ++i) {
      for (int64_t j = 0; j < kSquareTile; ++j) {
        entries[i][j] = row + i < n && col + j < n ? matrix[(row + i) * n + col + j] : T{0};
      }
    }
  }

  template <typename T>
  void store(T* matrix, int64_t n, int64_t row, int64_t col) const {
    const int64_t rows = n - row < kSquareTile ? n - row : kSquareTile;
    const int64_t cols = n - col < kSquareTile ? n - col : kSquareTile;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) matrix[(row + i) * n + col + j] = static_cast<T>(entries[i][j]);
    }
  }
};

// Calls visit(row, col) with the corners of the tiles up to the diagonal.
template <typename Visit>
void for_each_lower_tile(int64_t begin, int64_t end, const Visit& visit) {
  for (int64_t row = begin; row < end; row += kSquareTile) {
    for (int64_t col = 0; col <= row; col += kSquareTile) visit(row, col);
  }
}

// Calls step(i, j) for the entries of a tile.
template <typename Step>
inline void for_each_entry(const Step& step) {
  for (int64_t i = 0; i < kSquareTile; ++i) {
    for (int64_t j = 0; j < kSquareTile; ++j) step(i, j);
  }
}

}  // namespace

void mirror_lower(double* matrix, int64_t n, int64_t begin, int64_t end) {
  for_each_lower_tile(begin, end, [&](int64_t row, int64_t col) {
    SquareTile tile, mirror;
    tile.load(matrix, n, row, col);
    for_each_entry([&](int64_t i, int64_t j) { mirror.entries[j][i] = tile.entries[i][j]; });
    if (row == col) {
      for_each_entry([&](int64_t i, int64_t j) {
        if (j < i) mirror.entries[i][j] = tile.entries[i][j];
      });
    }
    mirror.store(matrix, n, col, row);
  });
}

void add_low_rank(double* matrix, int64_t n, const LowRank& low_rank, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j < n; ++j) matrix[i * n + j] += entry(low_rank, n, i, j);
  }
}

template <typename T>
void symmetrize(const double* from, int64_t n, const LowRank* low_rank, int64_t begin, int64_t end, T* out) {
  for_each_lower_tile(begin, end, [&](int64_t row, int64_t col) {
    SquareTile forth, back, mirror;
    forth.load(from, n, row, col);
    back.load(from, n, col, row);
    for_each_entry([&](int64_t i, int64_t j) { forth.entries[i][j] += back.entries[j][i]; });
    if (low_rank != nullptr) {
      for_each_entry([&](int64_t i, int64_t j) {
        if (row + i < n && col + j < n) forth.entries[i][j] -= entry(*low_rank, n, row + i, col + j);
      });
    }
    for_each_entry([&](int64_t i, int64_t j) { mirror.entries[j][i] = forth.entries[i][j]; });
    forth.store(out, n, row, col);
    if (row != col) mirror.store(out, n, col, row);
  });
}

template <typename T>
void subtract_low_rank(const double* from, int64_t n, const LowRank* low_rank, int64_t begin, int64_t end,
                       T* out) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double along = low_rank == nullptr ? 0 : entry(*low_rank, n, i, j);
      out[i * n + j] = static_cast<T>(from[i * n + j] - along);
    }
  }
}

// The sums run over pairs of mirror images; |(W + W')/2|^2 is a quarter of that of W + W'.
template <typename T>
CycleSums cycle_pair_sums(const T* w, int64_t n, int64_t begin, int64_t end) {
  CycleSums result;
  for_each_lower_tile(begin, end, [&](int64_t row, int64_t col) {
    SquareTile forth, back;
    forth.load(w, n, row, col);
    back.load(w, n, col, row);
    double sums[kSquareTile] = {}, differences[kSquareTile] = {};  // independent chains
    for_each_entry([&](int64_t i, int64_t j) {
      const double sum = forth.entries[i][j] + back.entries[j][i];
      const double difference = forth.entries[i][j] - back.entries[j][i];
      sums[j] += sum * sum;
      differences[j] += difference * difference;
    });
    const double weight = row == col ? 0.25 : 0.5;
    for (const double sum : sums) result.in_modal += weight * sum;
    for (const double difference : differences) result.cross_modal += weight * difference;
  });
  return result;
}

template <typename T>
void cycle_pair_gradients(const T* w, int64_t n, const CycleSums& grads, int64_t begin, int64_t end, T* out) {
  for_each_lower_tile(begin, end, [&](int64_t row, int64_t col) {
    SquareTile forth, back, mirror;
    forth.load(w, n, row, col);
    back.load(w, n, col, row);
    for_each_entry([&](int64_t i, int64_t j) {
      const double sum = grads.in_modal * (forth.entries[i][j] + back.entries[j][i]);
      const double difference = grads.cross_modal * (forth.entries[i][j] - back.entries[j][i]);
      forth.entries[i][j] = sum + difference;
      mirror.entries[j][i] = sum - difference;
    });
    forth.store(out, n, row, col);
    if (row != col) mirror.store(out, n, col, row);
  });
}

#define CYCLIP_INSTANTIATE(T)                                                                       \
  template void symmetrize<T>(const double*, int64_t, const LowRank*, int64_t, int64_t, T*);        \
  template void subtract_low_rank<T>(const double*, int64_t, const LowRank*, int64_t, int64_t, T*); \
  template CycleSums cycle_pair_sums<T>(const T*, int64_t, int64_t, int64_t);                       \
  template void cycle_pair_gradients<T>(const T*, int64_t, const CycleSums&, int64_t, int64_t, T*);

CYCLIP_INSTANTIATE(float)
CYCLIP_INSTANTIATE(double)

}  // namespace cyclip::cpu
