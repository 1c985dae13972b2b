// softmax(q K^T / sqrt(hd)) V over paged K and V in bfloat16, by AMX tiles.
//
// For a head of a sequence K and V are laid as panels, as weights are: scores are a matrix product
// with 32 positions to a panel, outputs one with 32 dimensions to a panel. A sum of scores adds 32
// dimensions with one instruction, one of values 32 positions that begin at a multiple of 32. So a
// row has the same bits alone and in any chunk or batch, whatever the block size.

#include "model/kernels/cpu/attention.h"
#include "model/kernels/cpu/tile_kernels.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Sixteen words of neighbours: those of `first` in the lower halves.
DDL_INLINE void Interleave(const BFloat16* first, const BFloat16* second, Word* words) {
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    PartHalves lower, upper;
    memcpy(&lower, first + i * kPartLanes, sizeof(lower));
    memcpy(&upper, second + i * kPartLanes, sizeof(upper));
    const PartWords both = Widen(lower) | Widen(upper) << 16;
    memcpy(words + i * kPartLanes, &both, sizeof(both));
  }
}

template <typename Tiles>
class TiledAttention {
 public:
  TiledAttention(const Batch& batch, const PagedAttentionArgs& args)
      : batch_(batch), args_(args), scale_(1.0f / sqrtf(static_cast<float>(args.head_dim))) {}

  void Run(const Executor& executor) const {
    int64_t cost = 0;
    ForEachBlock([&](int64_t, int64_t, int64_t, int64_t block_cost) { cost += block_cost; });
    // Threads share the work, not the blocks: those of a causal triangle differ in size.
    ParallelFor(executor, cost, kGrain, [&](int64_t begin, int64_t end) { Part(begin, end); });
  }

 private:
  static constexpr int64_t kGrain = 8192;  // about a vector operation each
  static constexpr int64_t kGroupsAhead = 4;

  // visit(row, rows, head, cost) for every block of rows, those of a head one after another.
  template <typename Visit>
  void ForEachBlock(const Visit& visit) const {
    const int64_t vectors = RoundUp(args_.head_dim, kLanes) / kLanes;
    for (int64_t s = 0; s < batch_.sequences; ++s) {
      const int64_t last = batch_.row_begin[s + 1];
      for (int64_t head = 0; head < args_.heads; ++head) {
        for (int64_t row = batch_.row_begin[s]; row < last; row += kBlockRows) {
          const int64_t rows = last - row < kBlockRows ? last - row : kBlockRows;
          const int64_t length = batch_.position[row + rows - 1] + 1;
          visit(row, rows, head, (length + kLanes) * (rows / 4 + 2) * vectors);
        }
      }
    }
  }

  // The blocks that begin in [begin, end) of the cost of all. Those of one head of one sequence
  // share its panels.
  void Part(int64_t begin, int64_t end) const {
    int64_t position = 0;
    Rows rows;
    ForEachBlock([&](int64_t row, int64_t count, int64_t head, int64_t cost) {
      const bool is_mine = position >= begin && position < end;
      position += cost;
      if (!is_mine) return;
      if (rows.end == row && rows.head == head && !IsStart(row)) {
        rows.end = row + count;
        return;
      }
      Head(rows);
      rows = {row, row + count, head};
    });
    Head(rows);
  }

  // Of a sequence, neighbours; none where begin is end.
  struct Rows {
    int64_t begin = 0;
    int64_t end = 0;
    int64_t head = -1;
  };
  bool IsStart(int64_t row) const { return batch_.row_begin[batch_.row_sequence[row]] == row; }

  // A head's memory: what `rows` rows of `positions` take.
  struct Workspace {
    Workspace(const PagedAttentionArgs& args, int64_t rows, int64_t positions)
        : positions(RoundUp(positions, kPanelWidth)),
          key_words(TiledWords(WeightType::kBFloat16, args.head_dim)),
          position_words(this->positions / 2),
          dims(RoundUp(args.head_dim, kPanelWidth)),
          query_stride(TiledRowStride(key_words)),
          weight_stride(TiledRowStride(position_words)),
          score_stride(this->positions + kLanes),
          tile_rows(rows < kMaxTileRows ? rows : kMaxTileRows),
          block_rows(TiledRowCount(rows < kBlockRows ? rows : kBlockRows)),
          scratch(Scratch::Bytes<Word>(this->positions * key_words) +
                  Scratch::Bytes<Word>(dims * position_words) +
                  Scratch::Bytes<unsigned char>(block_rows * query_stride) +
                  Scratch::Bytes<unsigned char>(block_rows * weight_stride) +
                  Scratch::Bytes<float>(block_rows * score_stride) +
                  Scratch::Bytes<float>(block_rows * dims)),
          keys(scratch.Take<Word>(this->positions * key_words)),
          values(scratch.Take<Word>(dims * position_words)),
          query(scratch.Take<unsigned char>(block_rows * query_stride)),
          weights(scratch.Take<unsigned char>(block_rows * weight_stride)),
          scores(scratch.Take<float>(block_rows * score_stride)),
          y(scratch.Take<float>(block_rows * dims)) {}

    const int64_t positions, key_words, position_words, dims;
    const int64_t query_stride, weight_stride;  // bytes
    const int64_t score_stride;
    const int64_t tile_rows, block_rows;
    Scratch scratch;
    Word* keys;              // [positions / 32, key_words, 32] pairs of dimensions
    Word* values;            // [dims / 32, position_words, 32] pairs of positions
    unsigned char* query;    // [block_rows, query_stride]
    unsigned char* weights;  // [block_rows, weight_stride]
    float* scores;           // [block_rows, score_stride]
    float* y;                // [block_rows, dims]
  };

  void Head(const Rows& rows) const {
    if (rows.begin == rows.end) return;
    const int64_t length = batch_.position[rows.end - 1] + 1;
    Workspace work(args_, rows.end - rows.begin, length);
    LayKeys(rows, length, work);
    LayValues(rows, length, work);
    Tiles tiles(PanelConfig(rows.end - rows.begin));
    for (int64_t row = rows.begin; row < rows.end; row += kBlockRows) {
      Block(tiles, work, row, rows.end - row < kBlockRows ? rows.end - row : kBlockRows, rows.head);
    }
  }

  // Where the keys or values of a position begin.
  const BFloat16* KeyAt(const Rows& rows, int64_t position) const {
    const int64_t block_size = args_.cache.block_size;
    return static_cast<const BFloat16*>(args_.cache.k) + position % block_size +
           BlockOffset(batch_, args_, rows.begin, rows.head, position / block_size);
  }
  const BFloat16* ValueAt(const Rows& rows, int64_t position) const {
    const int64_t block_size = args_.cache.block_size;
    return static_cast<const BFloat16*>(args_.cache.v) + position % block_size * args_.head_dim +
           BlockOffset(batch_, args_, rows.begin, rows.head, position / block_size);
  }

  void LayKeys(const Rows& rows, int64_t length, Workspace& work) const {
    const int64_t hd = args_.head_dim, block_size = args_.cache.block_size;
    const int64_t panel_words = work.key_words * kPanelWidth;
    const BFloat16 zeros[kLanes] = {};
    for (int64_t first = 0; first < work.positions; first += kLanes) {
      Word* const panel = work.keys + first / kPanelWidth * panel_words + first % kPanelWidth;
      const auto words_at = [&](int64_t n) { return panel + n / 2 * kPanelWidth; };
      const int64_t count = length - first < kLanes ? length - first : kLanes;
      int64_t n = 0;
      if (count <= 0) {
        // All zeros.
      } else if (block_size % kLanes == 0) {
        // Positions past the last one are in the cache too, and of no meaning: their scores are
        // not read.
        const BFloat16* const keys = KeyAt(rows, first);
        const int64_t later = first + kGroupsAhead * kLanes;
        const BFloat16* const ahead = later < length ? KeyAt(rows, later) : keys;
        for (; n < hd; n += 2) {
          const BFloat16* const lower = keys + n * block_size;
          __builtin_prefetch(ahead + n * block_size, 0, 2);
          Interleave(lower, n + 1 < hd ? lower + block_size : zeros, words_at(n));
        }
      } else {
        for (; n < hd; n += 2) {
          BFloat16 pairs[2][kLanes] = {};
          for (int64_t i = 0; i < count; ++i) {
            const BFloat16* key = KeyAt(rows, first + i) + n * block_size;
            pairs[0][i] = *key;
            if (n + 1 < hd) pairs[1][i] = key[block_size];
          }
          Interleave(pairs[0], pairs[1], words_at(n));
        }
      }
      for (; n < 2 * work.key_words; n += 2) Interleave(zeros, zeros, words_at(n));
    }
  }

  void LayValues(const Rows& rows, int64_t length, Workspace& work) const {
    const int64_t hd = args_.head_dim;
    const int64_t panel_words = work.position_words * kPanelWidth;
    const BFloat16 zeros[kLanes] = {};
    for (int64_t p = 0; p < work.positions; p += 2) {
      const BFloat16* const lower = p < length ? ValueAt(rows, p) : nullptr;
      const BFloat16* const upper = p + 1 < length ? ValueAt(rows, p + 1) : nullptr;
      const int64_t later = p + kGroupsAhead * kLanes;
      const BFloat16* const ahead = later < length ? ValueAt(rows, later) : nullptr;
      for (int64_t n = 0; n < work.dims; n += kLanes) {
        Word* const words =
            work.values + n / kPanelWidth * panel_words + p / 2 * kPanelWidth + n % kPanelWidth;
        BFloat16 copies[2][kLanes];
        const BFloat16* parts[2] = {lower, upper};
        for (int i = 0; i < 2; ++i) {
          if (parts[i] == nullptr || n >= hd) {
            parts[i] = zeros;
          } else if (n + kLanes > hd) {
            memset(copies[i], 0, sizeof(copies[i]));
            memcpy(copies[i], parts[i] + n, (hd - n) * sizeof(BFloat16));
            parts[i] = copies[i];
          } else {
            parts[i] += n;
          }
        }
        if (ahead != nullptr && n < hd) {
          __builtin_prefetch(ahead + n, 0, 2);
          __builtin_prefetch(ahead + hd + n, 0, 2);
        }
        Interleave(parts[0], parts[1], words);
      }
    }
  }

  // [rows, `words`] of x by a panel, the sums to columns of `to`.
  void Multiply(Tiles& tiles, const unsigned char* x, int64_t stride, int64_t words,
                const Word* panel, int64_t rows, float factor, float* to, int64_t to_stride) const {
    alignas(64) Word sums[kBlockRows * kPanelWidth];
    rows > kMaxTileRows
        ? MultiplyPanel<BFloat16Dot, 2, false>(tiles, x, stride, words, panel, Prefetch(), sums)
        : MultiplyPanel<BFloat16Dot, 1, false>(tiles, x, stride, words, panel, Prefetch(), sums);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < kVectorsOfPanel; ++j) {
        Floats values;
        memcpy(&values, sums + r * kPanelWidth + j * kLanes, sizeof(values));
        StoreVector(to + r * to_stride + j * kLanes, values * factor);
      }
    }
  }

  // Up to kBlockRows rows of one head.
  void Block(Tiles& tiles, Workspace& work, int64_t row, int64_t rows, int64_t head) const {
    const int64_t hd = args_.head_dim, last = batch_.position[row + rows - 1] + 1;
    const int64_t positions = RoundUp(last, kPanelWidth);
    const int64_t tiled = RoundUp(rows, work.tile_rows);
    for (int64_t r = 0; r < tiled; ++r) {
      unsigned char* const query = work.query + r * work.query_stride;
      const int64_t bytes = r < rows ? hd * static_cast<int64_t>(sizeof(BFloat16)) : 0;
      if (bytes > 0) {
        memcpy(query,
               static_cast<const BFloat16*>(args_.q) + (row + r) * args_.q_stride + head * hd,
               bytes);
      }
      memset(query + bytes, 0, work.query_stride - bytes);
    }
    for (int64_t p = 0; p < positions; p += kPanelWidth) {
      Multiply(tiles, work.query, work.query_stride, work.key_words, work.keys + p * work.key_words,
               rows, scale_, work.scores + p, work.score_stride);
    }
    float totals[kBlockRows];
    for (int64_t r = 0; r < tiled; ++r) {
      auto* const weights = reinterpret_cast<BFloat16*>(work.weights + r * work.weight_stride);
      if (r >= rows) {
        memset(weights, 0, positions * sizeof(BFloat16));
        continue;
      }
      float* const scores = work.scores + r * work.score_stride;
      totals[r] = Softmax(batch_.position[row + r] + 1, positions, scores);
      StoreRow(scores, positions, weights);
    }
    for (int64_t n = 0; n < work.dims; n += kPanelWidth) {
      Multiply(tiles, work.weights, work.weight_stride, positions / 2,
               work.values + n * work.position_words, rows, 1.0f, work.y + n, work.dims);
    }
    for (int64_t r = 0; r < rows; ++r) {
      FinishHead<BFloat16>(args_, row + r, head, totals[r], work.y + r * work.dims);
    }
  }

  const Batch& batch_;
  const PagedAttentionArgs& args_;
  const float scale_;
};

}  // namespace

template <typename Tiles>
void PagedAttentionByTiles(const Executor& executor, const Batch& batch,
                           const PagedAttentionArgs& args) {
  TiledAttention<Tiles>(batch, args).Run(executor);
}

template void PagedAttentionByTiles<EmulatedTiles>(const Executor&, const Batch&,
                                                   const PagedAttentionArgs&);
#if defined(__AVX512BF16__)
template void PagedAttentionByTiles<HardwareTiles>(const Executor&, const Batch&,
                                                   const PagedAttentionArgs&);
#endif

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
