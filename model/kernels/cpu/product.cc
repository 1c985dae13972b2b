// y = x W^T with weights in bfloat16.
//
// A panel is kProductPanel rows of W, packed so that one pass over it reads memory in order. Tiles
// of rows of x take it in turn: the first brings it from memory, the others find it in the cache.
// A sum has one order whatever the tile, pairs of factors one after another, so that a row of y has
// the same bits alone and beside any others.

#include "model/kernels/cpu/bodies.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

constexpr int kVectors = static_cast<int>(kProductPanel / kLanes);
// Rows of a tile at most: their sums stay in registers, kVectors * kParts for each.
constexpr int kMaxRows = kParts == 1 ? 12 : (kParts == 2 ? 2 : 1);

// Sixteen pairs of neighbouring bfloat16 factors; the first of each is the lower half.
struct Pairs {
  PartWords part[kParts];
};

DDL_INLINE Pairs LoadPairs(const BFloat16* p) {
  Pairs pairs;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    memcpy(&pairs.part[i], p + 2 * i * kPartLanes, sizeof(PartWords));
  }
  return pairs;
}

// sum + w[0] x[0] + w[1] x[1] in each lane.
DDL_INLINE Floats AddPairs(const Floats& sum, const Pairs& w, uint32_t x) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512BF16__)
    const __m512i factors = _mm512_set1_epi32(static_cast<int32_t>(x));
    result.part[i] = _mm512_dpbf16_ps(sum.part[i], reinterpret_cast<__m512bh>(w.part[i]),
                                      reinterpret_cast<__m512bh>(factors));
#else
    const uint32_t low = x << 16, high = x & 0xffff0000u;
    float first, second;
    memcpy(&first, &low, sizeof(first));
    memcpy(&second, &high, sizeof(second));
    result.part[i] = sum.part[i] + reinterpret_cast<PartFloats>(w.part[i] << 16) * first;
    result.part[i] += reinterpret_cast<PartFloats>(w.part[i] & 0xffff0000u) * second;
#endif
  }
  return result;
}

DDL_INLINE uint32_t LoadPair(const BFloat16* p) {
  uint32_t pair;
  memcpy(&pair, p, sizeof(pair));
  return pair;
}

// The first n of the panel's columns of kRows rows.
template <int kRows, typename Y>
__attribute__((noinline)) void Tile(const BFloat16* x, const BFloat16* panel, int64_t k, int64_t n,
                                    Y* y, int64_t y_stride) {
  // The processor's own prefetching stops at every page, and is too late for one row.
  constexpr bool kPrefetches = kRows <= 4;
  constexpr int64_t kAhead = 1024 / sizeof(BFloat16);
  Floats sums[kRows][kVectors];
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) sums[r][j] = Broadcast(0.0f);
  }
  const auto step = [&](const BFloat16* weights, auto factors) __attribute__((always_inline)) {
    Pairs w[kVectors];
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
      w[j] = LoadPairs(weights + 2 * j * kLanes);
      if constexpr (kPrefetches) __builtin_prefetch(weights + 2 * j * kLanes + kAhead);
    }
    DDL_UNROLL for (int r = 0; r < kRows; ++r) {
      const uint32_t f = factors(r);
      DDL_UNROLL for (int j = 0; j < kVectors; ++j) sums[r][j] = AddPairs(sums[r][j], w[j], f);
    }
  };
  int64_t i = 0;
  for (; i + 2 <= k; i += 2) {
    step(
        panel + i * kProductPanel, [&](int r) __attribute__((always_inline)) {
          return LoadPair(x + r * k + i);
        });
  }
  if (i < k) {
    step(
        panel + i * kProductPanel, [&](int r) __attribute__((always_inline)) {
          return static_cast<uint32_t>(x[r * k + i].bits);
        });
  }
  if (n == kProductPanel) {
    DDL_UNROLL for (int r = 0; r < kRows; ++r) {
      DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
        StoreVector(y + r * y_stride + j * kLanes, sums[r][j]);
      }
    }
    return;
  }
  for (int r = 0; r < kRows; ++r) {
    float row[kProductPanel];
    for (int j = 0; j < kVectors; ++j) StoreVector(row + j * kLanes, sums[r][j]);
    for (int64_t column = 0; column < n; ++column) Store(y + r * y_stride + column, row[column]);
  }
}

template <int kRows, typename Y>
void TileOf(int64_t rows, const BFloat16* x, const BFloat16* panel, int64_t k, int64_t n, Y* y,
            int64_t y_stride) {
  if (rows == kRows) return Tile<kRows>(x, panel, k, n, y, y_stride);
  if constexpr (kRows > 1) TileOf<kRows - 1>(rows, x, panel, k, n, y, y_stride);
}

template <typename Y>
void ProductTyped(const Executor& executor, int64_t rows, const ProductArgs& args) {
  const BFloat16* x = static_cast<const BFloat16*>(args.x);
  const BFloat16* weight = static_cast<const BFloat16*>(args.weight);
  Y* y = static_cast<Y*>(args.y);
  const int64_t n = args.n, k = args.k;
  const int64_t panels = (n + kProductPanel - 1) / kProductPanel;
  const int64_t panel_size = (k + 1) / 2 * 2 * kProductPanel;
  ParallelFor(executor, panels, RowGrain(rows * k * 2), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t column = p * kProductPanel;
      const int64_t columns = n - column < kProductPanel ? n - column : kProductPanel;
      // Tiles of about the same size: a small last one would cost nearly as much as a large one.
      for (int64_t row = 0; row < rows;) {
        const int64_t left = rows - row, tiles = (left + kMaxRows - 1) / kMaxRows;
        const int64_t size = (left + tiles - 1) / tiles;
        TileOf<kMaxRows>(size, x + row * k, weight + p * panel_size, k, columns,
                         y + row * n + column, n);
        row += size;
      }
    }
  });
}

}  // namespace

void ProductBody(const Executor& executor, int64_t rows, const ProductArgs& args) {
  args.y_type == Type::kFloat32 ? ProductTyped<float>(executor, rows, args)
                                : ProductTyped<BFloat16>(executor, rows, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
