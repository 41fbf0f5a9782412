// How a block goes through the tiles of its region.

#pragma once

#include "cosines.cuh"
#include "engine.cuh"
#include "regions.cuh"

namespace cyclip::cuda {

// The epilogue's scratch lies over the pipeline's: a tile is out of shared memory when it comes to that.
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

  // Visits the tiles from left to right and then down. For each tile it calls on_positive(row, cosine) for the
  // positives in it, then on_tile(window, cosines), which may use the epilogue's shared memory. After each row
  // of tiles it calls on_strip(window).
  template <typename Epilogue, typename OnPositive, typename OnTile, typename OnStrip>
  __device__ void for_each(RegionStorage<Tile, Epilogue>& shared, const Place<Tile>& place,
                           const OnPositive& on_positive, const OnTile& on_tile, const OnStrip& on_strip) const {
    const int64_t n = image.lines, m = text.lines;
    for (int64_t row = regions.row_begin(); row < regions.row_end(n); row += Tile::kRows) {
      for (int64_t col = regions.col_begin(); col < regions.col_end(m); col += Tile::kCols) {
        const Window window = {n, m, row, col};
        typename Tile::Fragment values;
        Engine<Tile>::multiply(values, shared.engine, place, image, row, text, col, 0, image.depth);
        to_cosines(values, place, window, pairing, on_positive);
        block_barrier();  // from the pipeline's shared memory to the epilogue's
        on_tile(window, values);
      }
      on_strip(Window{n, m, row, 0});
    }
  }
};

}  // namespace cyclip::cuda
