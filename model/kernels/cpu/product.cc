// y = x W^T with weights in bfloat16, or quantized to int8.
//
// A panel is kProductPanel rows of W, packed so that one pass over it reads memory in order: words
// of two or four neighbouring elements of each row. Tiles of rows of x take it in turn: the first
// brings it from memory, the others find it in the cache. A sum has one order whatever the tile,
// words one after another, so that a row of y has the same bits alone and beside any others.

#include "model/kernels/cpu/bodies.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

constexpr int kVectors = static_cast<int>(kProductPanel / kLanes);
// Rows of a tile at most: their sums stay in registers, kVectors * kParts for each.
constexpr int kMaxRows = kParts == 1 ? 8 : (kParts == 2 ? 2 : 1);

struct Words {
  PartWords part[kParts];
};
struct Ints {
  PartInts part[kParts];
};

DDL_INLINE Words LoadWords(const uint32_t* p) {
  Words words;
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
struct BFloat16Words {  // two of each; the first is the lower half
  using Sums = Floats;
  static DDL_INLINE Sums Zero() { return Broadcast(0.0f); }
  static DDL_INLINE Sums Add(const Sums& sums, const Words& w, uint32_t x) {
    Sums result;
    DDL_UNROLL for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512BF16__)
      const __m512i factors = _mm512_set1_epi32(static_cast<int32_t>(x));
      result.part[i] = _mm512_dpbf16_ps(sums.part[i], reinterpret_cast<__m512bh>(w.part[i]),
                                        reinterpret_cast<__m512bh>(factors));
#else
      const float first = FloatOfBits(x << 16), second = FloatOfBits(x & 0xffff0000u);
      result.part[i] = sums.part[i] + reinterpret_cast<PartFloats>(w.part[i] << 16) * first;
      result.part[i] += reinterpret_cast<PartFloats>(w.part[i] & 0xffff0000u) * second;
#endif
    }
    return result;
  }
};

struct Int8Words {  // four of each; x is not negative, the weights have a sign
  using Sums = Ints;
  static DDL_INLINE Sums Zero() { return {}; }
  static DDL_INLINE Sums Add(const Sums& sums, const Words& w, uint32_t x) {
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
    low_ += sizeof(uint32_t);
    high_ += sizeof(uint32_t);
  }
  template <typename Word>
  DDL_INLINE uint32_t Of(int row) const {
    Word word;
    memcpy(&word, row < 6 ? low_ + Times(row) : high_ + Times(row - 6), sizeof(word));
    return word;
  }

 private:
  DDL_INLINE int64_t Times(int n) const { return n == 5 ? five_ : (n == 3 ? three_ : n * stride_); }
  const unsigned char* low_;
  const unsigned char* high_;
  int64_t stride_, three_, five_;
};

// What a tile asks for while it sums: two lines, a step further for each word of x.
struct Ahead {
  const char* line = nullptr;
  int64_t step = 0;  // bytes
};
constexpr int64_t kLine = 64;  // bytes

// What the `tile`th of `tiles` asks for that take a panel in turn. One that is alone needs weights
// as fast as they come: those that follow, further ahead than the processor would ask by itself, as
// it stops at every page. Several have the time for the next panel, each for its part.
// With more, the panel is soon in the cache, and most tiles would ask in vain.
constexpr int64_t kMostTilesThatAsk = 8;
Ahead AheadOf(int64_t tile, int64_t tiles, const uint32_t* panel, int64_t panel_words) {
  constexpr int64_t kAlone = 2048;  // bytes
  const char* weights = reinterpret_cast<const char*>(panel);
  const int64_t bytes = panel_words * static_cast<int64_t>(sizeof(uint32_t));
  if (tiles == 1) return {weights + kAlone, 2 * kLine};
  return {weights + bytes + bytes / tiles * tile, 2 * kLine / tiles};
}

// kRows rows of x from `first` by one panel; result(row, j, sums) takes the sums of sixteen
// columns.
template <typename W, int kRows, bool kAsks, typename Result>
__attribute__((noinline)) void Tile(const Rows& x, int64_t first, const uint32_t* panel,
                                    Ahead ahead, const Result& result) {
  typename W::Sums sums[kRows][kVectors];
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) sums[r][j] = W::Zero();
  }
  const auto step = [&](const uint32_t* weights, auto factors) __attribute__((always_inline)) {
    Words w[kVectors];
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) { w[j] = LoadWords(weights + j * kLanes); }
    // Into the second-level cache, which can wait for more lines at a time than the first.
    if constexpr (kAsks) {
      __builtin_prefetch(ahead.line, 0, 2);
      __builtin_prefetch(ahead.line + ahead.step / 2, 0, 2);
      ahead.line += ahead.step;
    }
    DDL_UNROLL for (int r = 0; r < kRows; ++r) {
      const uint32_t f = factors(r);
      DDL_UNROLL for (int j = 0; j < kVectors; ++j) sums[r][j] = W::Add(sums[r][j], w[j], f);
    }
  };
  Column column(x, first);
  for (const uint32_t* const end = panel + x.words * kProductPanel; panel < end;
       panel += kProductPanel, column.Advance()) {
    step(
        panel, [&](int r) __attribute__((always_inline)) { return column.Of<uint32_t>(r); });
  }
  if (x.half) {
    step(
        panel, [&](int r) __attribute__((always_inline)) { return column.Of<uint16_t>(r); });
  }
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) result(first + r, j, sums[r][j]);
  }
}

template <typename W, int kRows, bool kAsks, typename Result>
void TileOf(int64_t rows, const Rows& x, int64_t first, const uint32_t* panel, Ahead ahead,
            const Result& result) {
  if (rows == kRows) return Tile<W, kRows, kAsks>(x, first, panel, ahead, result);
  if constexpr (kRows > 1) TileOf<W, kRows - 1, kAsks>(rows, x, first, panel, ahead, result);
}

// All rows by all panels; result(row, column, sums) takes the sums of sixteen columns from there.
template <typename W, typename Result>
void Multiply(const Executor& executor, int64_t rows, const Rows& x, const void* weight, int64_t n,
              const Result& result) {
  const int64_t panels = NumPanels(n);
  const int64_t words = x.words + (x.half ? 1 : 0);
  const int64_t panel_words = words * kProductPanel;
  // Rows that stay in a core's own cache while the panels go by.
  constexpr int64_t kCachedBytes = 384 * 1024;
  const int64_t cached_rows = kCachedBytes / (words * 4) / kMaxRows * kMaxRows;
  const int64_t rows_at_once = cached_rows > kMaxRows ? cached_rows : kMaxRows;
  ParallelFor(executor, panels, RowGrain(rows * words * 4), [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < rows; first += rows_at_once) {
      const int64_t last = rows - first < rows_at_once ? rows : first + rows_at_once;
      for (int64_t p = begin; p < end; ++p) {
        const uint32_t* panel = static_cast<const uint32_t*>(weight) + p * panel_words;
        const auto to_columns = [&](int64_t row, int j, const typename W::Sums& sums)
            __attribute__((always_inline)) {
          result(row, p * kProductPanel + j * kLanes, sums);
        };
        // Tiles of about the same size: a small last one would cost nearly as much as a large one.
        const int64_t tiles = (last - first + kMaxRows - 1) / kMaxRows;
        for (int64_t row = first, tile = 0; tile < tiles; ++tile) {
          const int64_t left = tiles - tile, size = (last - row + left - 1) / left;
          const Ahead ahead = AheadOf(tile, tiles, panel, panel_words);
          tiles <= kMostTilesThatAsk
              ? TileOf<W, kMaxRows, true>(size, x, row, panel, ahead, to_columns)
              : TileOf<W, kMaxRows, false>(size, x, row, panel, ahead, to_columns);
          row += size;
        }
      }
    }
  });
}

// On its own, lest the compiler keep all of a tile's sums where this can index them: in memory.
template <typename Y>
__attribute__((noinline)) void StoreLanes(const float* lanes, int64_t count, Y* to) {
  for (int64_t i = 0; i < count; ++i) Store(to + i, lanes[i]);
}

// Sixteen values from `column` of a row [n], or those that it has.
template <typename Y>
DDL_INLINE void StoreColumns(const Floats& values, int64_t column, int64_t n, Y* row) {
  if (column + kLanes <= n) return StoreVector(row + column, values);
  float lanes[kLanes];
  StoreVector(lanes, values);
  StoreLanes(lanes, n - column, row + column);
}

template <typename Y>
void ProductTyped(const Executor& executor, int64_t rows, const ProductArgs& args) {
  const int64_t n = args.n, k = args.k;
  Y* y = static_cast<Y*>(args.y);
  const Rows x = {static_cast<const unsigned char*>(args.x), 2 * k, k / 2, k % 2 != 0};
  Multiply<BFloat16Words>(
      executor, rows, x, args.weight,
      n, [=](int64_t row, int64_t column, const Floats& sums) __attribute__((always_inline)) {
        StoreColumns(sums, column, n, y + row * n);
      });
}

// The largest magnitude in a row. NaN where the row has one: its bits are larger than any number's.
float LargestMagnitude(const BFloat16* x, int64_t k) {
  PartHalves largest = {};
  int64_t i = 0;
  for (; i + kPartLanes <= k; i += kPartLanes) {
    PartHalves bits;
    memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fff;
    largest = bits > largest ? bits : largest;
  }
  BFloat16 result = {};
  for (int lane = 0; lane < kPartLanes; ++lane) {
    result.bits = largest[lane] > result.bits ? largest[lane] : result.bits;
  }
  for (; i < k; ++i) {
    const uint16_t bits = x[i].bits & 0x7fff;
    result.bits = bits > result.bits ? bits : result.bits;
  }
  return Load(&result);
}

// x = scale (q - 128), q in [1, 255].
void QuantizeRow(const BFloat16* x, int64_t k, int64_t padded, unsigned char* q, float* scale) {
  const float largest = LargestMagnitude(x, k);
  *scale = largest / 127.0f;
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  // To the nearest, as the conversion truncates what is never negative.
  constexpr float kShift = 128.5f;
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    const Floats values = LoadVector(x + i);
    DDL_UNROLL for (int part = 0; part < kParts; ++part) {
      const PartInts shifted =
          __builtin_convertvector(values.part[part] * inverse + kShift, PartInts);
#if defined(__AVX512F__)
      const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(shifted));
#else
      const PartBytes bytes = __builtin_convertvector(shifted, PartBytes);
#endif
      memcpy(q + i + part * kPartLanes, &bytes, sizeof(bytes));
    }
  }
  for (; i < k; ++i) {
    q[i] = static_cast<unsigned char>(static_cast<int32_t>(Load(x + i) * inverse + kShift));
  }
  for (; i < padded; ++i) q[i] = 128;
}

template <typename Y>
void QuantizedProductTyped(const Executor& executor, int64_t rows,
                           const QuantizedProductArgs& args) {
  const int64_t n = args.n, k = args.k, padded = (k + 3) / 4 * 4;
  Scratch scratch(Scratch::Bytes<unsigned char>(rows * padded) + Scratch::Bytes<float>(rows));
  unsigned char* quantized = scratch.Take<unsigned char>(rows * padded);
  float* row_scales = scratch.Take<float>(rows);
  ParallelFor(executor, rows, RowGrain(k), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      QuantizeRow(static_cast<const BFloat16*>(args.x) + row * k, k, padded,
                  quantized + row * padded, row_scales + row);
    }
  });
  Y* y = static_cast<Y*>(args.y);
  const float* scales = args.weight.scales;
  const int32_t* sums_of_weights = args.weight.sums;
  const Rows x = {quantized, padded, padded / 4, false};
  Multiply<Int8Words>(
      executor, rows, x, args.weight.packed,
      n, [=](int64_t row, int64_t column, const Ints& sums) __attribute__((always_inline)) {
        Floats values;
        DDL_UNROLL for (int i = 0; i < kParts; ++i) {
          PartInts of_weights;
          PartFloats of_columns;
          memcpy(&of_weights, sums_of_weights + column + i * kPartLanes, sizeof(of_weights));
          memcpy(&of_columns, scales + column + i * kPartLanes, sizeof(of_columns));
          values.part[i] = __builtin_convertvector(sums.part[i] - 128 * of_weights, PartFloats) *
                           (of_columns * row_scales[row]);
        }
        StoreColumns(values, column, n, y + row * n);
      });
}

}  // namespace

void ProductBody(const Executor& executor, int64_t rows, const ProductArgs& args) {
  args.y_type == Type::kFloat32 ? ProductTyped<float>(executor, rows, args)
                                : ProductTyped<BFloat16>(executor, rows, args);
}

void QuantizedProductBody(const Executor& executor, int64_t rows,
                          const QuantizedProductArgs& args) {
  args.y_type == Type::kFloat32 ? QuantizedProductTyped<float>(executor, rows, args)
                                : QuantizedProductTyped<BFloat16>(executor, rows, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
