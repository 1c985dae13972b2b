// softmax(q K^T / sqrt(hd)) V over paged K and V.
//
// Rows of one sequence are taken in tiles, so that what is read of K and V serves several of
// them. Whatever the tile, a row's own sums have one order: a score adds its dimensions one after
// another, an output its positions one after another. So a row has the same bits alone and in any
// chunk or batch. For the same reason nothing depends on the block size: keys and values come in
// groups of sixteen positions, which are gathered where blocks do not hold whole groups.

#include "model/kernels/cpu/attention.h"
#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

// Sums that stay in registers, and the rows that share them at most.
constexpr int kSums = kParts == 1 ? 16 : 4;
constexpr int64_t kMaxTileRows = kSums == 16 ? 8 : 4;

constexpr int AtMost(int value, int limit) { return value < limit ? value : limit; }

// With a row or two to serve, it is memory that takes the time, and a group is too small for the
// processor to see where the next one is: so many groups before it is read, it is asked for. Into
// the second-level cache, which can wait for more lines at a time than the first.
constexpr bool Prefetches(int rows) { return rows <= 2; }
constexpr int64_t kGroupsAhead = 8;
constexpr int64_t kLine = 64;  // bytes
DDL_INLINE void Prefetch(const void* line) { __builtin_prefetch(line, 0, 2); }

template <int kCount>
struct Constant {
  static constexpr int kValue = kCount;
};

// How products of queries and keys, and of weights and values, are summed, kStep terms of a sum at
// a time.
template <typename T>
struct Products {
  static constexpr int64_t kStep = 1;
  using Operand = float;  // kStep factors, the same for every lane
  using Vector = Floats;  // kStep times sixteen factors

  static Operand Query(const T* q, int64_t /*left*/) { return Load(q); }
  // Softmax's weights [positions], of which there are room and zeros for whole vectors, become
  // operands, in place.
  static void ToOperands(int64_t /*positions*/, float* /*weights*/) {}
  static float Weight(const Operand* weights, int64_t position) { return weights[position]; }
  static DDL_INLINE Vector Interleave(const T* first, const T* /*second*/) {
    return LoadVector(first);
  }
  static DDL_INLINE Floats Add(const Floats& sum, const Vector& a, Operand b) {
    return MulAdd(a, Broadcast(b), sum);
  }
};

#if defined(__AVX512BF16__)
// Two terms at a time, with products and sums in float32. Softmax's weights are rounded to the
// type, as in every flash attention.
template <>
struct Products<BFloat16> {
  static constexpr int64_t kStep = 2;
  using Operand = uint32_t;
  using Vector = __m512bh;

  static Operand Query(const BFloat16* q, int64_t left) {
    return q[0].bits | (left > 1 ? static_cast<uint32_t>(q[1].bits) << 16 : 0u);
  }
  static void ToOperands(int64_t positions, float* weights) {
    for (int64_t p = 0; p < positions; p += kLanes) {
      StoreVector(reinterpret_cast<BFloat16*>(weights) + p, LoadVector(weights + p));
    }
  }
  static float Weight(const Operand* weights, int64_t position) {
    return Load(reinterpret_cast<const BFloat16*>(weights) + position);
  }
  static DDL_INLINE Vector Interleave(const BFloat16* first, const BFloat16* second) {
    const __m512i order =
        _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
    return reinterpret_cast<__m512bh>(_mm512_permutex2var_epi16(_mm512_castsi256_si512(low), order,
                                                                _mm512_castsi256_si512(high)));
  }
  static DDL_INLINE Floats Add(const Floats& sum, const Vector& a, Operand b) {
    const __m512i broadcast = _mm512_set1_epi32(static_cast<int32_t>(b));
    return {{_mm512_dpbf16_ps(sum.part[0], a, reinterpret_cast<__m512bh>(broadcast))}};
  }
};
#endif

// What a tile reads of its sequence's past, for one head: groups of sixteen positions. Both are
// parts of one list, of all that is read in its order: keys[g + n] and values[g + n] are what is
// read n groups later, for as many as kGroupsAhead, be it of the next tile.
template <typename T>
struct Past {
  const T* const* keys = nullptr;  // [hd, key_stride] each
  int64_t key_stride = 0;
  const T* const* values = nullptr;  // [16, hd] each
  const T* zeros = nullptr;          // at least sixteen, and hd
};

// scores[r, p] = scale * q_r . k_p for the sixteen positions of each of `kGroups` groups.
// query [steps, kRows].
template <typename T, int kRows, int kGroups>
void ScoreGroups(const typename Products<T>::Operand* query, const Past<T>& past, int64_t group,
                 int64_t head_dim, float scale, float* scores, int64_t score_stride) {
  using P = Products<T>;
  const T* keys[kGroups];
  const T* later[kGroups];
  Floats sums[kRows][kGroups];
  DDL_UNROLL for (int g = 0; g < kGroups; ++g) {
    keys[g] = past.keys[group + g];
    later[g] = past.keys[group + g + kGroupsAhead];
    DDL_UNROLL for (int r = 0; r < kRows; ++r) sums[r][g] = Broadcast(0.0f);
  }
  const auto step = [&](int64_t n, bool whole) __attribute__((always_inline)) {
    typename P::Vector key[kGroups];
    DDL_UNROLL for (int g = 0; g < kGroups; ++g) {
      const T* first = keys[g] + n * past.key_stride;
      key[g] = P::Interleave(first, whole ? first + past.key_stride : past.zeros);
      if constexpr (Prefetches(kRows)) Prefetch(later[g] + n * kLanes);
    }
    DDL_UNROLL for (int r = 0; r < kRows; ++r) {
      const typename P::Operand q = query[n / P::kStep * kRows + r];
      DDL_UNROLL for (int g = 0; g < kGroups; ++g) sums[r][g] = P::Add(sums[r][g], key[g], q);
    }
  };
  int64_t n = 0;
  for (; n + P::kStep <= head_dim; n += P::kStep) step(n, true);
  if (n < head_dim) step(n, false);
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int g = 0; g < kGroups; ++g) {
      StoreVector(scores + r * score_stride + (group + g) * kLanes, sums[r][g] * scale);
    }
  }
}

template <typename T, int kRows>
void ScoreAllGroups(const typename Products<T>::Operand* query, const Past<T>& past, int64_t groups,
                    int64_t head_dim, float scale, float* scores, int64_t score_stride) {
  constexpr int kMost = AtMost(kSums / kRows, 4);
  int64_t group = 0;
  const auto score = [&](auto count) __attribute__((always_inline)) {
    constexpr int kGroups = decltype(count)::kValue;
    if constexpr (kGroups <= kMost) {
      for (; group + kGroups <= groups; group += kGroups) {
        ScoreGroups<T, kRows, kGroups>(query, past, group, head_dim, scale, scores, score_stride);
      }
    }
  };
  score(Constant<4>());
  score(Constant<2>());
  score(Constant<1>());
}

// y[r, n] += sum over positions of weights[r, p] v_p[n], for 16 * kVectors values n. A row's
// weights, as operands, are `weight_stride` of them apart.
template <typename T, int kRows, int kVectors>
void AddValues(const typename Products<T>::Operand* weights, int64_t weight_stride,
               const Past<T>& past, int64_t positions, int64_t head_dim, int64_t n, float* y,
               int64_t y_stride) {
  using P = Products<T>;
  Floats sums[kRows][kVectors];
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
      sums[r][j] = LoadVector(y + r * y_stride + n + j * kLanes);
    }
  }
  for (int64_t begin = 0; begin < positions; begin += kLanes) {
    const int64_t end = begin + kLanes < positions ? begin + kLanes : positions;
    const T* v = past.values[begin / kLanes] + n;
    const T* later = past.values[begin / kLanes + kGroupsAhead] + n;
    for (int64_t p = begin; p < end; p += P::kStep) {
      const T* second = p + 1 < end ? v + head_dim : past.zeros;
      typename P::Vector value[kVectors];
      DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
        value[j] = P::Interleave(v + j * kLanes, second + j * kLanes);
        if constexpr (Prefetches(kRows)) {
          if (j * kLanes * sizeof(T) % kLine == 0) {
            DDL_UNROLL for (int64_t i = 0; i < P::kStep; ++i) {
              Prefetch(later + i * head_dim + j * kLanes);
            }
          }
        }
      }
      v += P::kStep * head_dim;
      later += P::kStep * head_dim;
      DDL_UNROLL for (int r = 0; r < kRows; ++r) {
        const typename P::Operand w = weights[r * weight_stride + p / P::kStep];
        DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
          sums[r][j] = P::Add(sums[r][j], value[j], w);
        }
      }
    }
  }
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
      StoreVector(y + r * y_stride + n + j * kLanes, sums[r][j]);
    }
  }
}

template <typename T, int kRows>
void AddAllValues(const typename Products<T>::Operand* weights, int64_t weight_stride,
                  const Past<T>& past, int64_t positions, int64_t head_dim, float* y,
                  int64_t y_stride) {
  using P = Products<T>;
  constexpr int kMost = AtMost(kSums / kRows, 8);
  int64_t n = 0;
  const auto add = [&](auto vectors) __attribute__((always_inline)) {
    constexpr int kVectors = decltype(vectors)::kValue;
    if constexpr (kVectors <= kMost) {
      for (; n + kVectors * kLanes <= head_dim; n += kVectors * kLanes) {
        AddValues<T, kRows, kVectors>(weights, weight_stride, past, positions, head_dim, n, y,
                                      y_stride);
      }
    }
  };
  add(Constant<8>());
  add(Constant<4>());
  add(Constant<2>());
  add(Constant<1>());
  for (; n < head_dim; ++n) {  // a head_dim that is no multiple of sixteen
    const auto value = [&](int64_t p) {
      return Load(past.values[p / kLanes] + p % kLanes * head_dim + n);
    };
    for (int r = 0; r < kRows; ++r) {
      float& sum = y[r * y_stride + n];
      for (int64_t p = 0; p < positions; ++p)
        sum += P::Weight(weights + r * weight_stride, p) * value(p);
    }
  }
}

template <typename T>
class Attention {
 public:
  using P = Products<T>;

  Attention(const Batch& batch, const PagedAttentionArgs& args)
      : batch_(batch), args_(args), scale_(1.0f / sqrtf(static_cast<float>(args.head_dim))) {}

  void Run(const Executor& executor) {
    int64_t cost = 0;
    ForEachTile([&](int64_t, int64_t, int64_t, int64_t tile_cost) { cost += tile_cost; });
    // Threads share the work, not the tiles: those of a causal triangle differ in size.
    ParallelFor(executor, cost, kGrain, [&](int64_t begin, int64_t end) { Part(begin, end); });
  }

 private:
  static constexpr int64_t kGrain = 8192;  // vector operations

  static int64_t TileRows(int64_t left) {
    int64_t rows = kMaxTileRows;
    while (rows > left) rows /= 2;
    return rows;
  }

  // visit(row, rows, head, cost) for every tile. A head's tiles are neighbours: they read the
  // same keys and values.
  template <typename Visit>
  void ForEachTile(const Visit& visit) const {
    const int64_t vectors = (args_.head_dim + kLanes - 1) / kLanes;
    for (int64_t s = 0; s < batch_.sequences; ++s) {
      for (int64_t head = 0; head < args_.heads; ++head) {
        const int64_t last = batch_.row_begin[s + 1];
        for (int64_t row = batch_.row_begin[s]; row < last;) {
          const int64_t rows = TileRows(last - row);
          const int64_t length = batch_.position[row + rows - 1] + 1;
          visit(row, rows, head, (length + kLanes) * (rows + 1) * vectors);
          row += rows;
        }
      }
    }
  }

  static int64_t Groups(int64_t length) { return (length + kLanes - 1) / kLanes; }

  // The tiles that begin in [begin, end) of the cost of all.
  void Part(int64_t begin, int64_t end) const {
    const auto for_each_tile = [&](const auto& visit) {
      int64_t position = 0;
      ForEachTile([&](int64_t row, int64_t rows, int64_t head, int64_t cost) {
        if (position >= begin && position < end) {
          visit(row, rows, head, batch_.position[row + rows - 1] + 1);
        }
        position += cost;
      });
    };
    int64_t most = 0, all = 0;
    for_each_tile([&](int64_t, int64_t, int64_t, int64_t length) {
      most = Groups(length) > most ? Groups(length) : most;
      all += Groups(length);
    });
    if (most == 0) return;
    Workspace work(args_, most, all);
    if (!work.gathers) {
      const T** list = work.reads;
      for_each_tile([&](int64_t row, int64_t, int64_t head, int64_t length) {
        ListGroups(row, head, Groups(length), list);
        list += 2 * Groups(length);
      });
      for (int64_t i = 0; i < kGroupsAhead; ++i) list[i] = list[-1];
    }
    for_each_tile([&](int64_t row, int64_t rows, int64_t head, int64_t length) {
      const int64_t groups = Groups(length);
      if (work.gathers) Gather(row, head, groups, length, work);
      if constexpr (kMaxTileRows == 8) {
        if (rows == 8) Tile<8>(work, row, head, groups);
      }
      if (rows == 4) Tile<4>(work, row, head, groups);
      if (rows == 2) Tile<2>(work, row, head, groups);
      if (rows == 1) Tile<1>(work, row, head, groups);
      if (!work.gathers) work.reads += 2 * groups;
    });
  }

  // A thread's memory, for tiles of at most `most` groups of positions, `all` together.
  struct Workspace {
    Workspace(const PagedAttentionArgs& args, int64_t most, int64_t all)
        :  // Groups are scored together. An odd number of vectors keeps the rows' columns out of
           // one another's cache lines.
          score_stride((most / 2 * 2 + 1) * kLanes),
          y_stride(Groups(args.head_dim) * kLanes),
          gathers(args.cache.block_size % kLanes != 0),
          gathered_size(gathers ? most * args.head_dim * kLanes : 0),
          num_reads(2 * (gathers ? most : all) + kGroupsAhead),
          scratch(Scratch::Bytes<typename P::Operand>(kMaxTileRows * (args.head_dim + 1)) +
                  Scratch::Bytes<float>(kMaxTileRows * y_stride) +
                  Scratch::Bytes<float>(kMaxTileRows * score_stride) +
                  Scratch::Bytes<const T*>(num_reads) + Scratch::Bytes<T>(y_stride) +
                  2 * Scratch::Bytes<T>(gathered_size)),
          query(scratch.Take<typename P::Operand>(kMaxTileRows * (args.head_dim + 1))),
          y(scratch.Take<float>(kMaxTileRows * y_stride)),
          scores(scratch.Take<float>(kMaxTileRows * score_stride)),
          zeros(scratch.Take<T>(y_stride)),
          gathered_keys(scratch.Take<T>(gathered_size)),
          gathered_values(scratch.Take<T>(gathered_size)),
          reads(scratch.Take<const T*>(num_reads)) {
      memset(zeros, 0, y_stride * sizeof(T));
    }

    const int64_t score_stride, y_stride;
    const bool gathers;  // blocks do not hold whole groups
    const int64_t gathered_size, num_reads;
    Scratch scratch;
    typename P::Operand* query;  // [ceil(hd / kStep), rows of the tile]
    float* y;                    // [rows, y_stride]
    float* scores;               // [rows, score_stride], then the weights
    T* zeros;                    // [y_stride]
    T* gathered_keys;            // [groups, hd, 16]
    T* gathered_values;          // [groups, 16, hd]
    // The keys, then the values of the tile, of the next one ..., a pointer for each group.
    const T** reads;
  };

  // The first groups of a sequence where they are: its keys, then its values.
  void ListGroups(int64_t row, int64_t head, int64_t groups, const T** list) const {
    const int64_t block_groups = args_.cache.block_size / kLanes;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t base = BlockOffset(batch_, args_, row, head, g / block_groups),
                    first = g % block_groups * kLanes;
      list[g] = static_cast<const T*>(args_.cache.k) + base + first;
      list[groups + g] = static_cast<const T*>(args_.cache.v) + base + first * args_.head_dim;
    }
  }

  // Copies of them, with zeros after the last position; and the list.
  void Gather(int64_t row, int64_t head, int64_t groups, int64_t length, Workspace& work) const {
    const int64_t hd = args_.head_dim, block_size = args_.cache.block_size;
    for (int64_t g = 0; g < groups; ++g) {
      T* keys = work.gathered_keys + g * hd * kLanes;
      T* values = work.gathered_values + g * hd * kLanes;
      work.reads[g] = keys;
      work.reads[groups + g] = values;
      memset(keys, 0, hd * kLanes * sizeof(T));
      for (int64_t i = 0; i < kLanes && g * kLanes + i < length; ++i) {
        const int64_t p = g * kLanes + i, within = p % block_size;
        const int64_t base = BlockOffset(batch_, args_, row, head, p / block_size);
        const T* k = static_cast<const T*>(args_.cache.k) + base + within;
        for (int64_t n = 0; n < hd; ++n) keys[n * kLanes + i] = k[n * block_size];
        memcpy(values + i * hd, static_cast<const T*>(args_.cache.v) + base + within * hd,
               hd * sizeof(T));
      }
    }
    for (int64_t i = 0; i < kGroupsAhead; ++i) work.reads[2 * groups + i] = work.gathered_keys;
  }

  // kRows rows of a sequence, from `row`; one head.
  template <int kRows>
  void Tile(Workspace& work, int64_t row, int64_t head, int64_t groups) const {
    const int64_t hd = args_.head_dim, shortest = batch_.position[row] + 1;
    const Past<T> past = {.keys = work.reads,
                          .key_stride = work.gathers ? kLanes : args_.cache.block_size,
                          .values = work.reads + groups,
                          .zeros = work.zeros};
    const T* q = static_cast<const T*>(args_.q) + row * args_.q_stride + head * hd;
    typename P::Operand* query = work.query;
    for (int64_t n = 0; n < hd; n += P::kStep, q += P::kStep, query += kRows) {
      DDL_UNROLL for (int r = 0; r < kRows; ++r) {
        query[r] = P::Query(q + r * args_.q_stride, hd - n);
      }
    }
    ScoreAllGroups<T, kRows>(work.query, past, groups, hd, scale_, work.scores, work.score_stride);
    float total[kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      float* const scores = work.scores + r * work.score_stride;
      total[r] = Softmax(shortest + r, groups * kLanes, scores);
      P::ToOperands(groups * kLanes, scores);
    }
    // Positions that only the later rows see weigh nothing in the others.
    memset(work.y, 0, kRows * work.y_stride * sizeof(float));
    AddAllValues<T, kRows>(reinterpret_cast<const typename P::Operand*>(work.scores),
                           work.score_stride, past, shortest + kRows - 1, hd, work.y,
                           work.y_stride);
    for (int64_t r = 0; r < kRows; ++r) {
      FinishHead<T>(args_, row + r, head, total[r], work.y + r * work.y_stride);
    }
  }

  const Batch& batch_;
  const PagedAttentionArgs& args_;
  const float scale_;
};

}  // namespace

void Implementation::PagedAttention(const Batch& batch, const PagedAttentionArgs& args) const {
  args.type == Type::kFloat32 ? Attention<float>(batch, args).Run(executor_)
                              : Attention<BFloat16>(batch, args).Run(executor_);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
