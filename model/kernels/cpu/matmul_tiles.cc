// y = x W^T by AMX tiles, with weights in bfloat16, or quantized to int8. float32 goes by vectors.
//
// A panel of 32 columns is packed as for vectors: sixteen of its words, of sixteen columns, are a
// tile as they lie. A sum adds sixteen words with one instruction and goes on with the next
// sixteen, whatever rows are in the tile: a row of y has the same bits alone and beside others.

#include "model/kernels/cpu/matmul.h"
#include "model/kernels/cpu/tile_kernels.h"
#include "model/kernels/cpu/tiles.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

namespace {

// x in memory of the call, TiledRowCount(rows) rows of `words`, zeros where x has none.
struct TiledRows {
  const unsigned char* data = nullptr;
  int64_t stride = 0;  // bytes
  int64_t words = 0;
};
// All rows by all panels; result(row, column, sums) takes the sums of sixteen columns from there.
template <typename Tiles, typename Dot, typename Result>
void Multiply(const Executor& executor, int64_t rows, const TiledRows& x,
              const PackedWeight& weight, const Result& result) {
  const int64_t panel_words = x.words * kPanelWidth;
  const int64_t rows_at_once = CachedRows(x.words, kBlockRows);
  const TileConfig config = PanelConfig(rows);
  constexpr int64_t kPrefetchDistance = 8192;  // bytes: four times what an instruction takes
  ParallelFor(executor, NumPanels(weight.n), RowGrain(rows * x.words * kWordBytes),
              [&](int64_t begin, int64_t end) {
                Tiles tiles(config);
                alignas(64) Word sums[kBlockRows * kPanelWidth];
                for (int64_t first = 0; first < rows; first += rows_at_once) {
                  const int64_t last = rows - first < rows_at_once ? rows : first + rows_at_once;
                  const int64_t blocks = (last - first + kBlockRows - 1) / kBlockRows;
                  for (int64_t p = begin; p < end; ++p) {
                    const Word* panel = static_cast<const Word*>(weight.data) + p * panel_words;
                    for (int64_t block = 0; block < blocks; ++block) {
                      const int64_t row = first + block * kBlockRows;
                      const int64_t count = last - row < kBlockRows ? last - row : kBlockRows;
                      const Prefetch prefetch =
                          PrefetchOf(block, blocks, panel, panel_words, kPrefetchDistance);
                      const unsigned char* const block_x = x.data + row * x.stride;
                      if (count > kMaxTileRows) {
                        blocks <= kMaxPrefetchingTiles
                            ? MultiplyPanel<Dot, 2, true>(tiles, block_x, x.stride, x.words, panel,
                                                          prefetch, sums)
                            : MultiplyPanel<Dot, 2, false>(tiles, block_x, x.stride, x.words, panel,
                                                           prefetch, sums);
                      } else {
                        MultiplyPanel<Dot, 1, true>(tiles, block_x, x.stride, x.words, panel,
                                                    prefetch, sums);
                      }
                      for (int64_t r = 0; r < count; ++r) {
                        for (int64_t j = 0; j < kVectorsOfPanel; ++j) {
                          typename Dot::Sums values;
                          memcpy(&values, sums + r * kPanelWidth + j * kLanes, sizeof(values));
                          result(row + r, p * kPanelWidth + j * kLanes, values);
                        }
                      }
                    }
                  }
                }
              });
}

template <typename Tiles, typename Y>
void MultiplyBFloat16(const Executor& executor, int64_t rows, const MatMulArgs& args) {
  const int64_t k = args.weight.k, words = TiledWords(WeightType::kBFloat16, k);
  const int64_t stride = TiledRowStride(words), padded = TiledRowCount(rows);
  Scratch scratch(Scratch::Bytes<unsigned char>(padded * stride));
  unsigned char* const tiled = scratch.Take<unsigned char>(padded * stride);
  ParallelFor(executor, padded, RowGrain(k), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t bytes = row < rows ? k * static_cast<int64_t>(sizeof(BFloat16)) : 0;
      if (bytes > 0) {
        memcpy(tiled + row * stride, static_cast<const BFloat16*>(args.x) + row * k, bytes);
      }
      memset(tiled + row * stride + bytes, 0, stride - bytes);
    }
  });
  Multiply<Tiles, BFloat16Dot>(executor, rows, {tiled, stride, words}, args.weight,
                               StoreSums<Y>{static_cast<Y*>(args.y), args.weight.n});
}

template <typename Tiles, typename Y>
void MultiplyInt8(const Executor& executor, int64_t rows, const MatMulArgs& args) {
  const PackedWeight& weight = args.weight;
  const int64_t words = TiledWords(WeightType::kInt8, weight.k);
  const int64_t stride = TiledRowStride(words), padded = TiledRowCount(rows);
  Scratch scratch(Scratch::Bytes<unsigned char>(padded * stride) + Scratch::Bytes<float>(rows));
  const QuantizedRows quantized = {scratch.Take<unsigned char>(padded * stride), stride,
                                   scratch.Take<float>(rows)};
  QuantizeRows(executor, static_cast<const BFloat16*>(args.x), rows, weight.k, quantized);
  memset(quantized.data + rows * stride, 0, (padded - rows) * stride);
  Multiply<Tiles, Int8Dot>(executor, rows, {quantized.data, stride, words}, weight,
                           StoreScaledSums<Y>{static_cast<Y*>(args.y), weight.n, quantized.scales,
                                              weight.scales, weight.sums});
}

template <typename Tiles, typename Y>
void MultiplyTo(const Executor& executor, int64_t rows, const MatMulArgs& args) {
  args.weight.type == WeightType::kInt8 ? MultiplyInt8<Tiles, Y>(executor, rows, args)
                                        : MultiplyBFloat16<Tiles, Y>(executor, rows, args);
}

}  // namespace

template <typename Tiles>
void MatMulByTiles(const Executor& executor, int64_t rows, const MatMulArgs& args) {
  if (rows <= 0) return;
  args.y_type == Type::kFloat32 ? MultiplyTo<Tiles, float>(executor, rows, args)
                                : MultiplyTo<Tiles, BFloat16>(executor, rows, args);
}

template void MatMulByTiles<EmulatedTiles>(const Executor&, int64_t, const MatMulArgs&);
#if defined(__AVX512BF16__)
template void MatMulByTiles<HardwareTiles>(const Executor&, int64_t, const MatMulArgs&);
#endif

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
