// The loop of a block over the tiles of its region.

#pragma once

#include "cosines.cuh"
#include "engine.cuh"
#include "regions.cuh"

namespace cyclip::cuda {

// The epilogue's scratch overlaps the pipeline's storage: the tile is in registers when the
// epilogue starts.
template <typename Tile, typename Epilogue>
union RegionStorage {
  typename Engine<Tile>::Storage engine;
  Epilogue epilogue;
};

template <typename Tile>
struct RegionTiles {
  using T = typename Tile::Accumulator;

  Operand<typename Tile::Element> image, text;
  Pairing<T> pairing;
  Regions regions;

  // Goes from left to right and then down. Calls on_tile(window, cosines) for each tile, when the
  // epilogue may use shared memory, and on_strip(window) after each row of tiles. Before on_tile,
  // calls on_positive(row, cosine) for the positives in the tile.
  template <typename Epilogue, typename OnPositive, typename OnTile, typename OnStrip>
  __device__ void for_each(RegionStorage<Tile, Epilogue>& shared, const Place<Tile>& place,
                           const OnPositive& on_positive, const OnTile& on_tile, const OnStrip& on_strip) const {
    const int64_t n = image.lines, m = text.lines;
    for (int64_t row = regions.row_begin(); row < regions.row_end(n); row += Tile::kRows) {
      Window window = {n, m, row, regions.col_begin()};
      while (window.col_begin < regions.col_end(m)) {
        typename Tile::Fragment values[Tile::kAcross];
        Engine<Tile>::multiply(values, shared.engine, place, image, row, text, window.col_begin, 0, image.depth);
        CYCLIP_NO_UNROLL
        while (true) {
          to_cosines(values[0], place, window, pairing, on_positive);
          block_barrier();  // the epilogue reuses the shared memory of the pipeline or of the tile before
          on_tile(window, values[0]);
          window.col_begin += Tile::kCols;
          if (Tile::kAcross == 1 || window.col_begin % (2 * Tile::kCols) == 0 || window.col_begin >= m) break;
          copy_last<Tile>(values);
        }
      }
      on_strip(Window{n, m, row, 0});
    }
  }
};

}  // namespace cyclip::cuda
