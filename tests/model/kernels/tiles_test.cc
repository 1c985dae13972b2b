// The twin of AMX's tile instructions, against plain loops of what Intel's instructions were seen
// to compute, and against the processor where it has them; and the kernels that are made of them.

#include "model/kernels/cpu/tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/kernels/cpu/cpu_kernels.h"
#include "tests/model/kernels/kernel_case.h"

namespace ddl::kernels {
namespace {

using portable::EmulatedTiles;
using portable::kMaxTileRows;
using portable::kTileWords;
using portable::TileConfig;

float FloatOfBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
float Widened(uint16_t bits) { return FloatOfBits(static_cast<uint32_t>(bits) << 16); }
// Subnormal numbers count as zeros.
float Flushed(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}
// NaNs may differ in what else they say.
bool AreSame(float a, float b) {
  return BitsOf(a) == BitsOf(b) || (std::isnan(a) && std::isnan(b));
}

// Tile 0 [rows, columns] += tile 1 [rows, words] times tile 2 [words, columns].
struct Product {
  int rows, columns, words;
  alignas(64) uint16_t a[kMaxTileRows][2 * kTileWords] = {};
  alignas(64) uint16_t b[kTileWords][2 * kTileWords] = {};
  alignas(64) float c[kMaxTileRows][kTileWords] = {};

  TileConfig Config() const {
    TileConfig config;
    config.Set(0, rows, 4 * columns);
    config.Set(1, rows, 4 * words);
    config.Set(2, words, 4 * columns);
    return config;
  }
  template <typename Tiles>
  void Run(float (&result)[kMaxTileRows][kTileWords]) const {
    std::memcpy(result, c, sizeof(c));
    Tiles tiles(Config());
    tiles.template Load<0>(result, 64);
    tiles.template Load<1>(a, 64);
    tiles.template Load<2>(b, 64);
    tiles.template DotBFloat16<0, 1, 2>();
    tiles.template Store<0>(result, 64);
  }
  float Expected(int row, int column) const {
    float even = 0.0f, odd = 0.0f;
    for (int w = 0; w < words; ++w) {
      const auto at = [&](int i) {
        return std::pair(Flushed(Widened(a[row][2 * w + i])),
                         Flushed(Widened(b[w][2 * column + i])));
      };
      even = Flushed(std::fma(at(0).first, at(0).second, even));
      odd = Flushed(std::fma(at(1).first, at(1).second, odd));
    }
    return Flushed(Flushed(c[row][column]) + Flushed(even + odd));
  }
};

enum class Numbers { kOrdinary, kFarApart, kTiny, kAnything };
constexpr Numbers kNumbers[] = {Numbers::kOrdinary, Numbers::kFarApart, Numbers::kTiny,
                                Numbers::kAnything};

Product RandomProduct(std::mt19937_64& random, Numbers numbers) {
  Product product{.rows = 1 + static_cast<int>(random() % 16),
                  .columns = 1 + static_cast<int>(random() % 16),
                  .words = 1 + static_cast<int>(random() % 16)};
  std::normal_distribution<float> normal;
  const auto value = [&]() -> uint16_t {
    switch (numbers) {
      case Numbers::kAnything:  // NaNs, infinities, subnormals
        return static_cast<uint16_t>(random());
      case Numbers::kTiny:  // whose products underflow
        return static_cast<uint16_t>((random() & 0x80ff) | ((random() % 40 + 1) << 7 & 0x7f80));
      case Numbers::kFarApart:
        return static_cast<uint16_t>(
            BitsOf(normal(random) * std::exp2f(static_cast<float>(random() % 60) - 30)) >> 16);
      case Numbers::kOrdinary:
        break;
    }
    return static_cast<uint16_t>(BitsOf(normal(random)) >> 16);
  };
  for (auto& row : product.a) std::generate(std::begin(row), std::end(row), value);
  for (auto& row : product.b) std::generate(std::begin(row), std::end(row), value);
  for (auto& row : product.c) {
    for (float& sum : row) {
      sum = normal(random);
      if (numbers == Numbers::kTiny)
        sum = FloatOfBits(static_cast<uint32_t>(random()) & 0x80ffffffu);
      if (numbers == Numbers::kAnything) sum = FloatOfBits(static_cast<uint32_t>(random()));
    }
  }
  return product;
}

TEST(EmulatedTilesTest, MultipliesBFloat16AsTheHardwareWasSeenTo) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 2000; ++trial) {
    const Product product = RandomProduct(random, kNumbers[trial % 4]);
    float found[kMaxTileRows][kTileWords];
    product.Run<EmulatedTiles>(found);
    for (int row = 0; row < product.rows; ++row) {
      for (int column = 0; column < product.columns; ++column) {
        ASSERT_TRUE(AreSame(found[row][column], product.Expected(row, column)))
            << "trial " << trial << " [" << row << ", " << column << "]: " << found[row][column]
            << ", not " << product.Expected(row, column);
      }
    }
  }
}

TEST(EmulatedTilesTest, HasTheBitsOfTheHardware) {
  const std::string why = WhyUnsupported(InstructionSet::kAmx);
  if (!why.empty()) GTEST_SKIP() << why;
#if defined(__x86_64__)
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 20000; ++trial) {
    const Product product = RandomProduct(random, kNumbers[trial % 4]);
    float emulated[kMaxTileRows][kTileWords], hardware[kMaxTileRows][kTileWords];
    product.Run<EmulatedTiles>(emulated);
    product.Run<portable::HardwareTiles>(hardware);
    for (int row = 0; row < product.rows; ++row) {
      for (int column = 0; column < product.columns; ++column) {
        ASSERT_TRUE(AreSame(emulated[row][column], hardware[row][column]))
            << "trial " << trial << " [" << row << ", " << column << "]";
      }
    }
  }
#endif
}

// Fours of int8, A without a sign and B with one, at their limits.
TEST(EmulatedTilesTest, MultipliesInt8) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const int rows = 1 + static_cast<int>(random() % 16),
              words = 1 + static_cast<int>(random() % 16);
    uint8_t a[kMaxTileRows][4 * kTileWords];
    int8_t b[kTileWords][4 * kTileWords];
    int32_t c[kMaxTileRows][kTileWords], found[kMaxTileRows][kTileWords];
    for (auto& row : a) {
      for (uint8_t& x : row) x = trial == 0 ? 255 : static_cast<uint8_t>(random());
    }
    for (auto& row : b) {
      for (int8_t& x : row) x = trial == 0 ? -128 : static_cast<int8_t>(random());
    }
    for (auto& row : c) {
      for (int32_t& x : row) x = static_cast<int32_t>(random() % 1000) - 500;
    }
    TileConfig config;
    config.Set(3, rows, 64);
    config.Set(4, rows, 4 * words);
    config.Set(7, words, 64);
    EmulatedTiles tiles(config);
    tiles.Load<3>(c, sizeof(c[0]));
    tiles.Load<4>(a, sizeof(a[0]));
    tiles.Load<7>(b, sizeof(b[0]));
    tiles.DotInt8<3, 4, 7>();
    tiles.Store<3>(found, sizeof(found[0]));
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < kTileWords; ++column) {
        int32_t want = c[row][column];
        for (int i = 0; i < 4 * words; ++i) want += a[row][i] * b[i / 4][4 * column + i % 4];
        ASSERT_EQ(found[row][column], want) << trial << " [" << row << ", " << column << "]";
      }
    }
  }
}

TEST(EmulatedTilesTest, RefusesWhatTheHardwareWould) {
  struct Row {
    const char* why;
    void (*change)(TileConfig& config);
  };
  const Row rows[] = {
      {"palette", [](TileConfig& c) { c.palette = 2; }},
      {"reserved", [](TileConfig& c) { c.reserved[3] = 1; }},
      {"too large", [](TileConfig& c) { c.rows[1] = 17; }},
      {"too large", [](TileConfig& c) { c.bytes[1] = 68; }},
      {"rows or columns only", [](TileConfig& c) { c.rows[5] = 3; }},
      {"past the last", [](TileConfig& c) { c.Set(8, 1, 4); }},
      {"without a shape", [](TileConfig& c) { c.Set(2, 0, 0); }},
      {"different rows", [](TileConfig& c) { c.Set(1, 4, 64); }},
      {"different columns", [](TileConfig& c) { c.Set(2, 16, 60); }},
      {"B's rows differ", [](TileConfig& c) { c.Set(2, 15, 64); }},
  };
  for (const Row& row : rows) {
    TileConfig config;
    config.Set(0, 5, 64);
    config.Set(1, 5, 64);
    config.Set(2, 16, 64);
    row.change(config);
    EXPECT_DEATH((EmulatedTiles(config).DotBFloat16<0, 1, 2>()), row.why);
  }
  TileConfig config;
  config.Set(0, 16, 64);
  config.Set(1, 16, 64);
  EXPECT_DEATH((EmulatedTiles(config).DotBFloat16<0, 1, 1>()), "twice");
}

// ---- Kernels

// y of the kernels is what the instruction gives, sixteen words of W after another.
TEST(TileKernelsTest, MatMulSumsSixteenWordsAtATime) {
  struct Row {
    int64_t rows, n, k;
  };
  constexpr Row kRows[] = {{1, 1, 1},    {1, 40, 64},  {3, 31, 33},   {16, 32, 32},  {17, 33, 31},
                           {32, 64, 96}, {33, 65, 70}, {50, 96, 257}, {70, 40, 3000}};
  Random random;
  for (const InstructionSet set : {InstructionSet::kAmxEmulated, InstructionSet::kAmx}) {
    if (!WhyUnsupported(set).empty()) continue;
    const auto kernels = MakeCpuKernels(set, {});
    for (const auto [rows, n, k] : kRows) {
      Buffer w(Type::kBFloat16, random.Values(n * k, 0.5f, Type::kBFloat16));
      Buffer x(Type::kBFloat16, random.Values(rows * k, 1.0f, Type::kBFloat16));
      Buffer y(Type::kFloat32, rows * n);
      std::vector<uint32_t> packed(
          kernels->PackedBytes(WeightType::kBFloat16, n, k) / sizeof(uint32_t) + 16);
      void* aligned = packed.data();
      size_t space = packed.size() * sizeof(uint32_t);
      std::align(64, space - 64, aligned, space);
      MatMulArgs args;
      args.weight = {WeightType::kBFloat16, n, k, aligned, nullptr, nullptr};
      const WeightRows part = {w.data(), n};
      kernels->Pack(&part, 1, args.weight);
      args.x = x.data();
      args.y_type = Type::kFloat32;
      args.y = y.data();
      kernels->MatMul(rows, args);
      const std::vector<float> found = y.Floats(), x_values = x.Floats(), w_values = w.Floats();
      for (int64_t i = 0; i < rows * n; ++i) {
        const float* const x_row = x_values.data() + i / n * k;
        const float* const w_row = w_values.data() + i % n * k;
        float sum = 0.0f;
        for (int64_t first = 0; first < k; first += 2 * kTileWords) {
          float part_sums[2] = {};
          for (int64_t j = first; j < std::min(k, first + 2 * kTileWords); ++j) {
            float& part_sum = part_sums[j % 2];
            part_sum = Flushed(std::fma(Flushed(x_row[j]), Flushed(w_row[j]), part_sum));
          }
          sum = Flushed(sum + Flushed(part_sums[0] + part_sums[1]));
        }
        ASSERT_EQ(BitsOf(found[i]), BitsOf(sum))
            << Name(set) << " " << rows << " x " << n << " x " << k << ", element " << i;
      }
    }
  }
}

TEST(TileKernelsTest, AttentionHasTheBitsOfTheHardware) {
  const std::string why = WhyUnsupported(InstructionSet::kAmx);
  if (!why.empty()) GTEST_SKIP() << why;
  Random random;
  for (const int64_t head_dim : {16, 48, 64, 72, 128}) {
    for (const int64_t block_size : {16, 5}) {
      const RaggedBatch ragged({{0, 1}, {37, 1}, {0, 70}, {100, 33}, {31, 2}}, block_size);
      constexpr int64_t kHeads = 2;
      const int64_t width = kHeads * head_dim, cache = ragged.blocks() * block_size * width;
      Buffer q(Type::kBFloat16, random.Values(ragged.batch.tokens * width, 1.0f, Type::kBFloat16));
      Buffer k(Type::kBFloat16, random.Values(cache, 1.0f, Type::kBFloat16));
      Buffer v(Type::kBFloat16, random.Values(cache, 1.0f, Type::kBFloat16));
      std::vector<std::vector<float>> found;
      for (const InstructionSet set : {InstructionSet::kAmx, InstructionSet::kAmxEmulated}) {
        Buffer y(Type::kBFloat16, ragged.batch.tokens * width);
        PagedAttentionArgs args;
        args.type = Type::kBFloat16;
        args.heads = kHeads;
        args.head_dim = head_dim;
        args.q = q.data();
        args.q_stride = width;
        args.cache = {k.data(), v.data(), block_size};
        args.y = y.data();
        MakeCpuKernels(set, {})->PagedAttention(ragged.batch, args);
        found.push_back(y.Floats());
      }
      EXPECT_EQ(found[0], found[1]) << head_dim << " " << block_size;
    }
  }
}

}  // namespace
}  // namespace ddl::kernels
