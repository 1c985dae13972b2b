// y = x W^T by vectors, with weights in float32 or bfloat16, or quantized to int8.
//
// A panel is kPanelWidth rows of W, packed so that one pass over it reads memory in order. Tiles of
// rows of x take it in turn: the first brings it from memory, the others find it in the cache. A
// sum has one order whatever the tile, words one after another, so that a row of y has the same
// bits alone and beside any others.

#include "model/kernels/cpu/matmul.h"

#include "model/kernels/cpu/implementation.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

constexpr int kVectors = static_cast<int>(kVectorsOfPanel);
// Rows of a tile at most: their sums stay in registers, kVectors * kParts for each.
constexpr int kMaxRows = kParts == 1 ? 8 : (kParts == 2 ? 2 : 1);

struct VectorOfWords {
  PartWords part[kParts];
};

DDL_INLINE VectorOfWords LoadWords(const Word* p) {
  VectorOfWords words;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    memcpy(&words.part[i], p + i * kPartLanes, sizeof(PartWords));
  }
  return words;
}

DDL_INLINE float FloatOfBits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// What a word of weights adds to a lane's sum with a word of x.
struct Float32Words {
  using Sums = Floats;
  static DDL_INLINE Sums Zero() { return Broadcast(0.0f); }
  static DDL_INLINE Sums Add(const Sums& sums, const VectorOfWords& w, Word x) {
    Sums result;
    const PartFloats factors = PartFloats{} + FloatOfBits(x);
    DDL_UNROLL for (int i = 0; i < kParts; ++i) {
      result.part[i] = MulAdd(reinterpret_cast<PartFloats>(w.part[i]), factors, sums.part[i]);
    }
    return result;
  }
};

struct BFloat16Words {  // two of each; the first is the lower half
  using Sums = Floats;
  static DDL_INLINE Sums Zero() { return Broadcast(0.0f); }
  static DDL_INLINE Sums Add(const Sums& sums, const VectorOfWords& w, Word x) {
    Sums result;
    DDL_UNROLL for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512BF16__)
      const __m512i factors = _mm512_set1_epi32(static_cast<int32_t>(x));
      result.part[i] = _mm512_dpbf16_ps(sums.part[i], reinterpret_cast<__m512bh>(w.part[i]),
                                        reinterpret_cast<__m512bh>(factors));
#else
      const PartFloats first = PartFloats{} + FloatOfBits(x << 16);
      const PartFloats second = PartFloats{} + FloatOfBits(x & 0xffff0000u);
      result.part[i] = MulAdd(reinterpret_cast<PartFloats>(w.part[i] << 16), first, sums.part[i]);
      result.part[i] =
          MulAdd(reinterpret_cast<PartFloats>(w.part[i] & 0xffff0000u), second, result.part[i]);
#endif
    }
    return result;
  }
};

struct Int8Words {  // four of each; x is not negative, the weights have a sign
  using Sums = Ints;
  static DDL_INLINE Sums Zero() { return {}; }
  static DDL_INLINE Sums Add(const Sums& sums, const VectorOfWords& w, Word x) {
    Sums result;
    DDL_UNROLL for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512VNNI__)
      result.part[i] = reinterpret_cast<PartInts>(_mm512_dpbusd_epi32(
          reinterpret_cast<__m512i>(sums.part[i]), _mm512_set1_epi32(static_cast<int32_t>(x)),
          reinterpret_cast<__m512i>(w.part[i])));
#else
      result.part[i] = sums.part[i];
      DDL_UNROLL for (int byte = 0; byte < 4; ++byte) {
        const PartInts weights = reinterpret_cast<PartInts>(w.part[i] << (24 - 8 * byte)) >> 24;
        result.part[i] += weights * static_cast<int32_t>(x >> (8 * byte) & 0xffu);
      }
#endif
    }
    return result;
  }
};

// x: rows of words, of which `words` are whole and follow one another; a last one may be half.
struct Rows {
  const unsigned char* data = nullptr;
  int64_t stride = 0;  // bytes
  int64_t words = 0;
  bool half = false;
};

// One place in each row of a tile. A pointer for each would take more registers than there are, and
// the compiler would then keep sums in memory: two pointers, and multiples of the stride.
class Column {
 public:
  DDL_INLINE Column(const Rows& x, int64_t first)
      : low_(x.data + first * x.stride),
        high_(low_ + 6 * x.stride),
        stride_(x.stride),
        three_(3 * x.stride),
        five_(5 * x.stride) {
    // As numbers of their own, not to be made from one another again.
    asm("" : "+r"(low_), "+r"(high_), "+r"(stride_), "+r"(three_), "+r"(five_));
  }
  DDL_INLINE void Advance() {
    low_ += sizeof(Word);
    high_ += sizeof(Word);
  }
  template <typename Stored>
  DDL_INLINE Word Of(int row) const {
    Stored word;
    memcpy(&word, row < 6 ? low_ + Times(row) : high_ + Times(row - 6), sizeof(word));
    return word;
  }

 private:
  DDL_INLINE int64_t Times(int n) const { return n == 5 ? five_ : (n == 3 ? three_ : n * stride_); }
  const unsigned char* low_;
  const unsigned char* high_;
  int64_t stride_, three_, five_;
};

// kRows rows of x from `first` by one panel; result(row, j, sums) takes the sums of sixteen
// columns.
template <typename W, int kRows, bool kPrefetches, typename Result>
__attribute__((noinline)) void Tile(const Rows& x, int64_t first, const Word* panel,
                                    Prefetch prefetch, const Result& result) {
  typename W::Sums sums[kRows][kVectors];
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) sums[r][j] = W::Zero();
  }
  const auto step = [&](const Word* weights, auto factors) __attribute__((always_inline)) {
    VectorOfWords w[kVectors];
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) { w[j] = LoadWords(weights + j * kLanes); }
    // Into the second-level cache, which can wait for more lines at a time than the first.
    if constexpr (kPrefetches) {
      __builtin_prefetch(prefetch.line, 0, 2);
      __builtin_prefetch(prefetch.line + prefetch.step / 2, 0, 2);
      prefetch.line += prefetch.step;
    }
    DDL_UNROLL for (int r = 0; r < kRows; ++r) {
      const Word f = factors(r);
      DDL_UNROLL for (int j = 0; j < kVectors; ++j) sums[r][j] = W::Add(sums[r][j], w[j], f);
    }
  };
  Column column(x, first);
  for (const Word* const end = panel + x.words * kPanelWidth; panel < end;
       panel += kPanelWidth, column.Advance()) {
    step(
        panel, [&](int r) __attribute__((always_inline)) { return column.Of<Word>(r); });
  }
  if (x.half) {
    step(
        panel, [&](int r) __attribute__((always_inline)) { return column.Of<uint16_t>(r); });
  }
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) result(first + r, j, sums[r][j]);
  }
}

template <typename W, int kRows, bool kPrefetches, typename Result>
void TileOf(int64_t rows, const Rows& x, int64_t first, const Word* panel, Prefetch prefetch,
            const Result& result) {
  if (rows == kRows) return Tile<W, kRows, kPrefetches>(x, first, panel, prefetch, result);
  if constexpr (kRows > 1)
    TileOf<W, kRows - 1, kPrefetches>(rows, x, first, panel, prefetch, result);
}

// All rows by all panels; result(row, column, sums) takes the sums of sixteen columns from there.
template <typename W, typename Result>
void Multiply(const Executor& executor, int64_t rows, const Rows& x, const PackedWeight& weight,
              const Result& result) {
  const int64_t words = x.words + (x.half ? 1 : 0);
  const int64_t panel_words = words * kPanelWidth;
  const int64_t rows_at_once = CachedRows(words, kMaxRows);
  ParallelFor(executor, NumPanels(weight.n), RowGrain(rows * words * 4),
              [&](int64_t begin, int64_t end) {
                for (int64_t first = 0; first < rows; first += rows_at_once) {
                  const int64_t last = rows - first < rows_at_once ? rows : first + rows_at_once;
                  for (int64_t p = begin; p < end; ++p) {
                    const Word* panel = static_cast<const Word*>(weight.data) + p * panel_words;
                    const auto to_columns = [&](int64_t row, int j, const typename W::Sums& sums)
                        __attribute__((always_inline)) {
                      result(row, p * kPanelWidth + j * kLanes, sums);
                    };
                    // Tiles of about the same size: a small last one would cost nearly as much as a
                    // large one.
                    const int64_t tiles = (last - first + kMaxRows - 1) / kMaxRows;
                    for (int64_t row = first, tile = 0; tile < tiles; ++tile) {
                      const int64_t left = tiles - tile, size = (last - row + left - 1) / left;
                      const Prefetch prefetch = PrefetchOf(tile, tiles, panel, panel_words);
                      tiles <= kMaxPrefetchingTiles
                          ? TileOf<W, kMaxRows, true>(size, x, row, panel, prefetch, to_columns)
                          : TileOf<W, kMaxRows, false>(size, x, row, panel, prefetch, to_columns);
                      row += size;
                    }
                  }
                }
              });
}

// ---- One type

template <typename Y>
void MultiplyFloat32(const Executor& executor, int64_t rows, const MatMulArgs& args) {
  const int64_t k = args.weight.k;
  const Rows x = {static_cast<const unsigned char*>(args.x), 4 * k, k, false};
  Multiply<Float32Words>(executor, rows, x, args.weight,
                         StoreSums<Y>{static_cast<Y*>(args.y), args.weight.n});
}

template <typename Y>
void MultiplyBFloat16(const Executor& executor, int64_t rows, const MatMulArgs& args) {
  const int64_t k = args.weight.k;
  const Rows x = {static_cast<const unsigned char*>(args.x), 2 * k, k / 2, k % 2 != 0};
  Multiply<BFloat16Words>(executor, rows, x, args.weight,
                          StoreSums<Y>{static_cast<Y*>(args.y), args.weight.n});
}

template <typename Y>
void MultiplyInt8(const Executor& executor, int64_t rows, const MatMulArgs& args) {
  const PackedWeight& weight = args.weight;
  const int64_t words = Words(WeightType::kInt8, weight.k), stride = words * kWordBytes;
  Scratch scratch(Scratch::Bytes<unsigned char>(rows * stride) + Scratch::Bytes<float>(rows));
  const QuantizedRows quantized = {scratch.Take<unsigned char>(rows * stride), stride,
                                   scratch.Take<float>(rows)};
  QuantizeRows(executor, static_cast<const BFloat16*>(args.x), rows, weight.k, quantized);
  Multiply<Int8Words>(executor, rows, {quantized.data, stride, words, false}, weight,
                      StoreScaledSums<Y>{static_cast<Y*>(args.y), weight.n, quantized.scales,
                                         weight.scales, weight.sums});
}

template <typename Y>
void MultiplyTo(const Executor& executor, int64_t rows, const MatMulArgs& args) {
  switch (args.weight.type) {
    case WeightType::kFloat32:
      return MultiplyFloat32<Y>(executor, rows, args);
    case WeightType::kBFloat16:
      return MultiplyBFloat16<Y>(executor, rows, args);
    case WeightType::kInt8:
      return MultiplyInt8<Y>(executor, rows, args);
  }
}

}  // namespace

void Implementation::MatMul(int64_t rows, const MatMulArgs& args) const {
  args.y_type == Type::kFloat32 ? MultiplyTo<float>(executor_, rows, args)
                                : MultiplyTo<BFloat16>(executor_, rows, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
