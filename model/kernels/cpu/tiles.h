#ifndef DDL_MODEL_KERNELS_CPU_TILES_H_
#define DDL_MODEL_KERNELS_CPU_TILES_H_

#include "model/kernels/cpu/vector.h"

// The tile registers of AMX behind a few functions: the processor's (HardwareTiles), or their twin
// (EmulatedTiles), which has the same bits on any processor and refuses what the hardware would.
//
// A tile has up to 16 rows of up to 64 bytes. A product takes the rows of A [M, K words], the words
// of B [K, N words], and adds to C [M, N] float32 or int32; a word is a pair of bfloat16 or four
// int8 neighbours in the row of A, or in the column of B.

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

constexpr int kMaxTileRows = 16;
constexpr int kMaxTileBytes = 64;  // of a row
constexpr int kTileWords = 16;     // of a row
constexpr int kTiles = 8;

// The shape of each tile, in the layout that the processor reads (Intel SDM, LDTILECFG).
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};

  void Set(int tile, int64_t tile_rows, int64_t row_bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    bytes[tile] = static_cast<uint16_t>(row_bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

#if defined(__x86_64__)
// The calling thread's tiles, from the constructor to the destructor: one at a time in a thread.
// The instructions are written out, as GCC's intrinsics take the numbers of tiles as text only.
class HardwareTiles {
 public:
  explicit HardwareTiles(const TileConfig& config) {
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  // Or every change of the thread would save them.
  ~HardwareTiles() { asm volatile("tilerelease" : : : "memory"); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  template <int kTile>
  DDL_INLINE void Zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  DDL_INLINE void Load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  DDL_INLINE void Store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  // C += A B of pairs of bfloat16.
  template <int kC, int kA, int kB>
  DDL_INLINE void DotBFloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
  // C += A B of fours of int8: A without a sign, B with one.
  template <int kC, int kA, int kB>
  DDL_INLINE void DotInt8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};
#endif

// The same by ordinary instructions. What the processor would refuse aborts the process: a tile
// without a shape, shapes that do not fit one another.
class EmulatedTiles {
 public:
  explicit EmulatedTiles(const TileConfig& config);
  EmulatedTiles(const EmulatedTiles&) = delete;
  EmulatedTiles& operator=(const EmulatedTiles&) = delete;

  template <int kTile>
  void Zero() {
    ZeroTile(kTile);
  }
  template <int kTile>
  void Load(const void* from, int64_t stride) {
    LoadTile(kTile, from, stride);
  }
  template <int kTile>
  void Store(void* to, int64_t stride) {
    StoreTile(kTile, to, stride);
  }
  template <int kC, int kA, int kB>
  void DotBFloat16() {
    MultiplyBFloat16(kC, kA, kB);
  }
  template <int kC, int kA, int kB>
  void DotInt8() {
    MultiplyInt8(kC, kA, kB);
  }

 private:
  void ZeroTile(int tile);
  void LoadTile(int tile, const void* from, int64_t stride);
  void StoreTile(int tile, void* to, int64_t stride);
  void MultiplyBFloat16(int c, int a, int b);
  void MultiplyInt8(int c, int a, int b);
  void CheckShape(int tile) const;
  void CheckShapes(int c, int a, int b) const;

  TileConfig config_;
  alignas(64) unsigned char tile_[kTiles][kMaxTileRows][kMaxTileBytes] = {};
};

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_TILES_H_
