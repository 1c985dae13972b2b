#ifndef DDL_MODEL_KERNELS_CPU_MATMUL_H_
#define DDL_MODEL_KERNELS_CPU_MATMUL_H_

#include "model/kernels/cpu/cpu_kernels.h"
#include "model/kernels/cpu/vector.h"

// What the matrix products by vectors (matmul.cc) and by tiles (matmul_tiles.cc) have in common:
// the words that they sum, int8's activations, what becomes of the sums, and what is prefetched.

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

using Word = uint32_t;
constexpr int64_t kWordBytes = sizeof(Word);
constexpr int64_t kVectorsOfPanel = kPanelWidth / kLanes;

// Elements of W's rows, or of x, in a word.
constexpr int64_t ElementsOfWord(WeightType type) {
  return type == WeightType::kFloat32 ? 1 : (type == WeightType::kBFloat16 ? 2 : 4);
}
constexpr int64_t Words(WeightType type, int64_t k) {
  return (k + ElementsOfWord(type) - 1) / ElementsOfWord(type);
}

struct Ints {
  PartInts part[kParts];
};

// In pack_weights.cc: CpuKernels::Pack with so many words for each row of W, zeros past its own.
void PackPanels(const Executor& executor, const WeightRows* parts, int64_t count,
                const PackedWeight& weight, int64_t words);

// ---- int8: x = scale (q - 128), q in [1, 255]

struct QuantizedRows {
  unsigned char* data = nullptr;  // [rows, stride]; past k: 128, up to the stride
  int64_t stride = 0;             // bytes, at least k
  float* scales = nullptr;        // [rows]
};
void QuantizeRows(const Executor& executor, const BFloat16* x, int64_t rows, int64_t k,
                  const QuantizedRows& quantized);

// ---- What becomes of a row's sums in sixteen columns

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
struct StoreSums {
  Y* y;  // [rows, n]
  int64_t n;
  DDL_INLINE void operator()(int64_t row, int64_t column, const Floats& sums) const {
    StoreColumns(sums, column, n, y + row * n);
  }
};

template <typename Y>
struct StoreScaledSums {
  Y* y;  // [rows, n]
  int64_t n;
  const float* row_scales;
  const float* column_scales;
  const int32_t* weight_sums;  // which the 128 of every q is taken off by
  DDL_INLINE void operator()(int64_t row, int64_t column, const Ints& sums) const {
    Floats values;
    DDL_UNROLL for (int i = 0; i < kParts; ++i) {
      PartInts of_weights;
      PartFloats of_columns;
      memcpy(&of_weights, weight_sums + column + i * kPartLanes, sizeof(of_weights));
      memcpy(&of_columns, column_scales + column + i * kPartLanes, sizeof(of_columns));
      values.part[i] = __builtin_convertvector(sums.part[i] - 128 * of_weights, PartFloats) *
                       (of_columns * row_scales[row]);
    }
    StoreColumns(values, column, n, y + row * n);
  }
};

// ---- Prefetching

// What a tile prefetches while it sums: `step` bytes further for each of its words.
struct Prefetch {
  const char* line = nullptr;
  int64_t step = 0;
};
constexpr int64_t kLineBytes = 64;

// For the `tile`th of `tiles` that take a panel in turn. One that is alone needs weights as fast as
// they come: those that follow, `distance` bytes ahead, further than the processor would prefetch
// by itself, as it stops at every page. Several have the time for the next panel, each for its
// part. With more, the panel is soon in the cache, and most tiles would prefetch in vain.
constexpr int64_t kMaxPrefetchingTiles = 8;
inline Prefetch PrefetchOf(int64_t tile, int64_t tiles, const Word* panel, int64_t panel_words,
                           int64_t distance = 4096) {
  const char* weights = reinterpret_cast<const char*>(panel);
  const int64_t bytes = panel_words * kWordBytes;
  if (tiles == 1) return {weights + distance, kPanelWidth * kWordBytes};
  return {weights + bytes + bytes / tiles * tile, kPanelWidth * kWordBytes / tiles};
}

// Rows of x, of so many words, that stay in a core's own cache while the panels go by: a multiple
// of `multiple`, at least that.
inline int64_t CachedRows(int64_t words, int64_t multiple) {
  constexpr int64_t kCachedBytes = 384 * 1024;
  const int64_t rows = kCachedBytes / (words * kWordBytes) / multiple * multiple;
  return rows > multiple ? rows : multiple;
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_MATMUL_H_
