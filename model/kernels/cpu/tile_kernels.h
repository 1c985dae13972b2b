#ifndef DDL_MODEL_KERNELS_CPU_TILE_KERNELS_H_
#define DDL_MODEL_KERNELS_CPU_TILE_KERNELS_H_

#include "model/kernels/cpu/matmul.h"
#include "model/kernels/cpu/tiles.h"

// What an instruction set with tiles computes by them, for Tiles = HardwareTiles or EmulatedTiles.
// All the rest is the Implementation's.

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

// Words of a row of W or x in whole tiles.
constexpr int64_t TiledWords(WeightType type, int64_t k) {
  return (Words(type, k) + kTileWords - 1) / kTileWords * kTileWords;
}

// ---- One panel

// What two tiles add to a third.
struct BFloat16Dot {
  using Sums = Floats;
  template <int kC, int kA, int kB, typename Tiles>
  static DDL_INLINE void Add(Tiles& tiles) {
    tiles.template DotBFloat16<kC, kA, kB>();
  }
};
struct Int8Dot {
  using Sums = Ints;
  template <int kC, int kA, int kB, typename Tiles>
  static DDL_INLINE void Add(Tiles& tiles) {
    tiles.template DotInt8<kC, kA, kB>();
  }
};

// Rows of x that MultiplyPanel takes at once, at most.
constexpr int64_t kBlockRows = 2 * kMaxTileRows;

// Where `rows` rows of x are laid for it: so many, zeros in those past the last, so many bytes
// apart. The line between two keeps those of a tile from sharing a set of the cache.
constexpr int64_t TiledRowCount(int64_t rows) {
  return rows <= kMaxTileRows ? rows : (rows + kMaxTileRows - 1) / kMaxTileRows * kMaxTileRows;
}
constexpr int64_t TiledRowStride(int64_t words) { return words * kWordBytes + kMaxTileBytes; }

// The tiles that it uses: 0 to 3 of C, 4 and 5 of A, with as many rows as there are, 6 and 7 of B.
inline TileConfig PanelConfig(int64_t rows) {
  TileConfig config;
  const int64_t tile_rows = rows < kMaxTileRows ? rows : kMaxTileRows;
  for (int tile = 0; tile < 6; ++tile) config.Set(tile, tile_rows, kMaxTileBytes);
  for (int tile = 6; tile < 8; ++tile) config.Set(tile, kTileWords, kMaxTileBytes);
  return config;
}

// kBlocks tiles of rows of x by `words` of a panel, both multiples of a tile's; the sums to `sums`,
// [16 kBlocks, kPanelWidth] aligned to 64 bytes.
template <typename Dot, int kBlocks, bool kPrefetches, typename Tiles>
DDL_INLINE void MultiplyPanel(Tiles& tiles, const unsigned char* x, int64_t stride, int64_t words,
                              const Word* panel, Prefetch prefetch, Word* sums) {
  constexpr int64_t kPanelBytes = kPanelWidth * kWordBytes;
  tiles.template Zero<0>();
  tiles.template Zero<1>();
  if constexpr (kBlocks == 2) {
    tiles.template Zero<2>();
    tiles.template Zero<3>();
  }
  for (int64_t w = 0; w < words; w += kTileWords) {
    if constexpr (kPrefetches) {
      const char* const end = prefetch.line + kTileWords * prefetch.step;
      for (; prefetch.line < end; prefetch.line += kLineBytes)
        __builtin_prefetch(prefetch.line, 0, 2);
    }
    tiles.template Load<6>(panel + w * kPanelWidth, kPanelBytes);
    tiles.template Load<7>(panel + w * kPanelWidth + kTileWords, kPanelBytes);
    tiles.template Load<4>(x + w * kWordBytes, stride);
    Dot::template Add<0, 4, 6>(tiles);
    Dot::template Add<1, 4, 7>(tiles);
    if constexpr (kBlocks == 2) {
      tiles.template Load<5>(x + kMaxTileRows * stride + w * kWordBytes, stride);
      Dot::template Add<2, 5, 6>(tiles);
      Dot::template Add<3, 5, 7>(tiles);
    }
  }
  tiles.template Store<0>(sums, kPanelBytes);
  tiles.template Store<1>(sums + kTileWords, kPanelBytes);
  if constexpr (kBlocks == 2) {
    tiles.template Store<2>(sums + kMaxTileRows * kPanelWidth, kPanelBytes);
    tiles.template Store<3>(sums + kMaxTileRows * kPanelWidth + kTileWords, kPanelBytes);
  }
}

// ---- The kernels

// kBFloat16 and kInt8, packed with TiledWords(type, k) for each row of W.
template <typename Tiles>
void MatMulByTiles(const Executor& executor, int64_t rows, const MatMulArgs& args);

// Of kBFloat16.
template <typename Tiles>
void PagedAttentionByTiles(const Executor& executor, const Batch& batch,
                           const PagedAttentionArgs& args);

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_TILE_KERNELS_H_
