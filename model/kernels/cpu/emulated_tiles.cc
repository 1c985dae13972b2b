#include <stdio.h>

#include "model/kernels/cpu/tiles.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

[[noreturn]] void Refuse(const char* why) {
  fprintf(stderr, "emulated tiles: the processor would refuse this: %s\n", why);
  abort();
}

// AMX takes subnormal numbers for zeros, and makes such results zeros, of the same sign.
DDL_INLINE Floats Flushed(const Floats& value) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    const PartWords bits = reinterpret_cast<PartWords>(value.part[i]);
    const PartWords is_small = reinterpret_cast<PartWords>((bits & 0x7f800000u) == 0);
    result.part[i] = reinterpret_cast<PartFloats>(bits & ~(is_small & 0x7fffffffu));
  }
  return result;
}

// In one rounding on any processor.
DDL_INLINE Floats FusedMulAdd(const Floats& a, float b, const Floats& c) {
#if defined(__FMA__) || defined(__AVX512F__)
  return MulAdd(a, Broadcast(b), c);
#else
  Floats result;
  for (int i = 0; i < kParts; ++i) {
    for (int lane = 0; lane < kPartLanes; ++lane) {
      result.part[i][lane] = fmaf(a.part[i][lane], b, c.part[i][lane]);
    }
  }
  return result;
#endif
}

// One half of each of sixteen words, as float32.
DDL_INLINE Floats HalvesOf(const unsigned char* words, bool upper) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    PartWords bits;
    memcpy(&bits, words + i * sizeof(bits), sizeof(bits));
    result.part[i] = reinterpret_cast<PartFloats>(upper ? bits & 0xffff0000u : bits << 16);
  }
  return Flushed(result);
}

DDL_INLINE float FlushedOfBFloat16(const unsigned char* from) {
  BFloat16 value;
  memcpy(&value, from, sizeof(value));
  if ((value.bits & 0x7f80u) == 0) value.bits &= 0x8000u;
  return Load(&value);
}

}  // namespace

EmulatedTiles::EmulatedTiles(const TileConfig& config) : config_(config) {
  if (config.palette != 1) Refuse("a palette other than 1");
  for (const uint8_t byte : config.reserved) {
    if (byte != 0) Refuse("a reserved byte of the configuration that is not 0");
  }
  for (int tile = 0; tile < 16; ++tile) {
    const int rows = config.rows[tile], bytes = config.bytes[tile];
    if (tile >= kTiles && (rows != 0 || bytes != 0)) Refuse("a tile past the last");
    if (rows > kMaxTileRows || bytes > kMaxTileBytes) Refuse("a tile too large");
    if ((rows == 0) != (bytes == 0)) Refuse("a tile with rows or columns only");
  }
}

void EmulatedTiles::CheckShape(int tile) const {
  if (config_.rows[tile] == 0) Refuse("a tile without a shape");
}

void EmulatedTiles::CheckShapes(int c, int a, int b) const {
  CheckShape(a);
  CheckShape(b);
  CheckShape(c);
  if (a == b || a == c || b == c) Refuse("one tile twice in a product");
  if (config_.rows[a] != config_.rows[c]) Refuse("A and C of different rows");
  if (config_.bytes[b] != config_.bytes[c]) Refuse("B and C of different columns");
  if (config_.bytes[a] != config_.rows[b] * 4) Refuse("A's columns and B's rows differ");
}

void EmulatedTiles::ZeroTile(int tile) {
  CheckShape(tile);
  memset(tile_[tile], 0, sizeof(tile_[tile]));
}

void EmulatedTiles::LoadTile(int tile, const void* from, int64_t stride) {
  CheckShape(tile);
  memset(tile_[tile], 0, sizeof(tile_[tile]));
  for (int row = 0; row < config_.rows[tile]; ++row) {
    memcpy(tile_[tile][row], static_cast<const unsigned char*>(from) + row * stride,
           config_.bytes[tile]);
  }
}

void EmulatedTiles::StoreTile(int tile, void* to, int64_t stride) {
  CheckShape(tile);
  for (int row = 0; row < config_.rows[tile]; ++row) {
    memcpy(static_cast<unsigned char*>(to) + row * stride, tile_[tile][row], config_.bytes[tile]);
  }
}

// The first and the second members of the pairs are summed apart, one pair after another, then
// together, then with what was there: Intel's manual leaves the order open, and this one has the
// hardware's bits (tests/model/kernels/tiles_test.cc compares them where there is AMX).
void EmulatedTiles::MultiplyBFloat16(int c, int a, int b) {
  CheckShapes(c, a, b);
  for (int row = 0; row < config_.rows[c]; ++row) {
    Floats first = Broadcast(0.0f), second = first;
    for (int pair = 0; pair < config_.rows[b]; ++pair) {
      const unsigned char* x = tile_[a][row] + 4 * pair;
      const unsigned char* w = tile_[b][pair];
      first = Flushed(FusedMulAdd(HalvesOf(w, false), FlushedOfBFloat16(x), first));
      second = Flushed(FusedMulAdd(HalvesOf(w, true), FlushedOfBFloat16(x + 2), second));
    }
    float* sums = reinterpret_cast<float*>(tile_[c][row]);
    StoreVector(sums, Flushed(Flushed(LoadVector(sums)) + Flushed(first + second)));
    // Columns past the tile's are zeros, whatever 0 times infinity was.
    memset(tile_[c][row] + config_.bytes[c], 0, kMaxTileBytes - config_.bytes[c]);
  }
}

void EmulatedTiles::MultiplyInt8(int c, int a, int b) {
  CheckShapes(c, a, b);
  for (int row = 0; row < config_.rows[c]; ++row) {
    int32_t sums[kTileWords];
    memcpy(sums, tile_[c][row], sizeof(sums));
    for (int four = 0; four < config_.rows[b]; ++four) {
      const unsigned char* x = tile_[a][row] + 4 * four;
      const signed char* w = reinterpret_cast<const signed char*>(tile_[b][four]);
      for (int column = 0; column < kTileWords; ++column) {
        for (int i = 0; i < 4; ++i) sums[column] += x[i] * w[4 * column + i];
      }
    }
    memcpy(tile_[c][row], sums, sizeof(sums));
  }
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
