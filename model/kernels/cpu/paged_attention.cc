// softmax(q K^T / sqrt(hd)) V over paged K and V.
//
// Rows of one sequence are taken in tiles, so that what is read of K and V serves several of
// them. Whatever the tile, a row's own sums have one order: a score adds its dimensions one after
// another, an output its positions one after another. So a row has the same bits alone and in any
// chunk or batch. For the same reason nothing depends on the block size: keys come in groups of
// sixteen positions, which are gathered where blocks do not hold whole groups.

#include "model/kernels/cpu/bodies.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

// Sums that stay in registers, and the rows that share them at most.
constexpr int kSums = kParts == 1 ? 16 : 4;
constexpr int64_t kMaxTileRows = kSums == 16 ? 8 : 4;

constexpr int AtMost(int value, int limit) { return value < limit ? value : limit; }

// With a row or two to serve, it is memory that takes the time, and a block is too small for the
// processor to see where the next is: what comes next is asked for meanwhile. Into the second-level
// cache, which can wait for more lines at a time than the first.
constexpr bool Prefetches(int rows) { return rows <= 2; }
DDL_INLINE void Prefetch(const void* line) { __builtin_prefetch(line, 0, 2); }
constexpr int64_t kLine = 64;  // bytes

template <int kCount>
struct Constant {
  static constexpr int kValue = kCount;
};

// How products of queries and keys are summed, kStep terms of a sum at a time.
template <typename T>
struct Products {
  static constexpr int64_t kStep = 1;
  using Operand = float;  // kStep factors, the same for every lane
  using Vector = Floats;  // kStep times sixteen factors

  static Operand Query(const T* q, int64_t /*left*/) { return Load(q); }
  static DDL_INLINE Vector Interleave(const T* first, const T* /*second*/) {
    return LoadVector(first);
  }
  static DDL_INLINE Floats Add(const Floats& sum, const Vector& a, Operand b) {
    return sum + a * b;
  }
};

#if defined(__AVX512BF16__)
// Two terms at a time, with products and sums in float32. Softmax weights are not of the type, and
// rounding them would be a second rounding of the result: values are summed in float32 throughout.
template <>
struct Products<BFloat16> {
  static constexpr int64_t kStep = 2;
  using Operand = uint32_t;
  using Vector = __m512bh;

  static Operand Query(const BFloat16* q, int64_t left) {
    return q[0].bits | (left > 1 ? static_cast<uint32_t>(q[1].bits) << 16 : 0u);
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

// What a tile reads of its sequence's past, for one head.
template <typename T>
struct Past {
  const T** key_groups = nullptr;  // sixteen positions each, [hd, key_stride]
  int64_t key_stride = 0;
  const T** value_rows = nullptr;  // one position each, [hd]
  const T* zeros = nullptr;        // at least sixteen, and hd
};

// scores[r, p] = scale * q_r . k_p for the sixteen positions of each of `kGroups` groups.
// query [steps, kRows]. Groups past `groups` are computed from the last one.
template <typename T, int kRows, int kGroups>
void ScoreGroups(const typename Products<T>::Operand* query, const Past<T>& past, int64_t group,
                 int64_t groups, int64_t head_dim, float scale, float* scores,
                 int64_t score_stride) {
  using P = Products<T>;
  const T* keys[kGroups];
  const char* next_keys[kGroups];
  const char* values[kGroups];
  Floats sums[kRows][kGroups];
  const auto clamped = [&](int64_t g) { return g < groups ? g : groups - 1; };
  DDL_UNROLL for (int g = 0; g < kGroups; ++g) {
    keys[g] = past.key_groups[clamped(group + g)];
    if constexpr (Prefetches(kRows)) {
      next_keys[g] = reinterpret_cast<const char*>(past.key_groups[clamped(group + kGroups + g)]);
      values[g] = reinterpret_cast<const char*>(past.value_rows[clamped(group + g) * kLanes]);
    }
    DDL_UNROLL for (int r = 0; r < kRows; ++r) sums[r][g] = Broadcast(0.0f);
  }
  const auto step = [&](int64_t n, bool whole) __attribute__((always_inline)) {
    typename P::Vector key[kGroups];
    DDL_UNROLL for (int g = 0; g < kGroups; ++g) {
      const T* first = keys[g] + n * past.key_stride;
      key[g] = P::Interleave(first, whole ? first + past.key_stride : past.zeros);
      if constexpr (Prefetches(kRows)) {  // the keys of the groups after these, and these's values
        Prefetch(next_keys[g] + n / P::kStep * kLine);
        Prefetch(values[g] + n / P::kStep * kLine);
      }
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

// y[r, n] += sum over positions [begin, end) of weights[r, p] v_p[n], for 16 * kVectors values n.
template <typename T, int kRows, int kVectors>
void AddValues(const float* weights, int64_t weight_stride, const Past<T>& past, int64_t begin,
               int64_t end, int64_t n, float* y, int64_t y_stride) {
  Floats sums[kRows][kVectors];
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
      sums[r][j] = LoadVector(y + r * y_stride + n + j * kLanes);
    }
  }
  for (int64_t p = begin; p < end; ++p) {
    const T* v = past.value_rows[p];
    Floats value[kVectors];
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) { value[j] = LoadVector(v + n + j * kLanes); }
    DDL_UNROLL for (int r = 0; r < kRows; ++r) {
      const float w = weights[r * weight_stride + p];
      DDL_UNROLL for (int j = 0; j < kVectors; ++j) sums[r][j] = sums[r][j] + value[j] * w;
    }
  }
  DDL_UNROLL for (int r = 0; r < kRows; ++r) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
      StoreVector(y + r * y_stride + n + j * kLanes, sums[r][j]);
    }
  }
}

template <typename T, int kRows>
void AddAllValues(const float* weights, int64_t weight_stride, const Past<T>& past, int64_t begin,
                  int64_t end, int64_t head_dim, float* y, int64_t y_stride) {
  if (begin >= end) return;
  constexpr int kMost = AtMost(kSums / kRows, 8);
  int64_t n = 0;
  const auto add = [&](auto vectors) __attribute__((always_inline)) {
    constexpr int kVectors = decltype(vectors)::kValue;
    if constexpr (kVectors <= kMost) {
      for (; n + kVectors * kLanes <= head_dim; n += kVectors * kLanes) {
        AddValues<T, kRows, kVectors>(weights, weight_stride, past, begin, end, n, y, y_stride);
      }
    }
  };
  add(Constant<8>());
  add(Constant<4>());
  add(Constant<2>());
  add(Constant<1>());
  for (; n < head_dim; ++n) {  // a head_dim that is no multiple of sixteen
    for (int r = 0; r < kRows; ++r) {
      for (int64_t p = begin; p < end; ++p) {
        y[r * y_stride + n] += Load(weights + r * weight_stride + p) * Load(past.value_rows[p] + n);
      }
    }
  }
}

// Scores of one row -> weights, without the division by their sum, which is returned. `scores` is
// overwritten; weights past `length`, up to a whole vector, are 0.
__attribute__((noinline)) float Softmax(float* scores, int64_t length, float* weights) {
  const int64_t padded = (length + kLanes - 1) / kLanes * kLanes;
  for (int64_t p = length; p < padded; ++p) scores[p] = scores[0];
  float lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = scores[l];
  for (int64_t p = kLanes; p < padded; p += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      lanes[l] = scores[p + l] > lanes[l] ? scores[p + l] : lanes[l];
    }
  }
  float largest = lanes[0];
  for (int64_t l = 1; l < kLanes; ++l) largest = lanes[l] > largest ? lanes[l] : largest;
  for (int64_t p = 0; p < padded; ++p) scores[p] = Exp(scores[p] - largest);
  for (int64_t p = length; p < padded; ++p) scores[p] = 0.0f;
  Floats sums = Broadcast(0.0f);
  for (int64_t p = 0; p < padded; p += kLanes) {
    StoreVector(weights + p, LoadVector(scores + p));
    sums = sums + LoadVector(weights + p);
  }
  return Total(sums);
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

  // The tiles that begin in [begin, end) of the cost of all.
  void Part(int64_t begin, int64_t end) const {
    int64_t longest = 0, position = 0;
    ForEachTile([&](int64_t row, int64_t rows, int64_t, int64_t cost) {
      if (position >= begin && position < end) {
        const int64_t length = batch_.position[row + rows - 1] + 1;
        longest = length > longest ? length : longest;
      }
      position += cost;
    });
    if (longest == 0) return;
    Workspace work(args_, longest);
    position = 0;
    ForEachTile([&](int64_t row, int64_t rows, int64_t head, int64_t cost) {
      if (position >= begin && position < end) {
        if constexpr (kMaxTileRows == 8) {
          if (rows == 8) Tile<8>(work, row, head);
        }
        if (rows == 4) Tile<4>(work, row, head);
        if (rows == 2) Tile<2>(work, row, head);
        if (rows == 1) Tile<1>(work, row, head);
      }
      position += cost;
    });
  }

  // A thread's memory, for tiles of up to `longest` positions.
  struct Workspace {
    Workspace(const PagedAttentionArgs& args, int64_t longest)
        : groups((longest + kLanes - 1) / kLanes),
          // Groups are scored up to four at a time. An odd number of vectors keeps the rows'
          // columns out of one another's cache lines.
          score_stride(((groups + 3) / 4 * 4 + 1) * kLanes),
          y_stride((args.head_dim + kLanes - 1) / kLanes * kLanes),
          gathers(args.cache.block_size % kLanes != 0),
          scratch(Scratch::Bytes<typename P::Operand>(kMaxTileRows * (args.head_dim + 1)) +
                  Scratch::Bytes<float>(kMaxTileRows * y_stride) +
                  Scratch::Bytes<float>(kMaxTileRows * score_stride) +
                  Scratch::Bytes<float>(kMaxTileRows * score_stride) +
                  Scratch::Bytes<const T*>(groups) + Scratch::Bytes<const T*>(longest) +
                  Scratch::Bytes<T>(y_stride) +
                  Scratch::Bytes<T>(gathers ? groups * args.head_dim * kLanes : 0)),
          query(scratch.Take<typename P::Operand>(kMaxTileRows * (args.head_dim + 1))),
          y(scratch.Take<float>(kMaxTileRows * y_stride)),
          scores(scratch.Take<float>(kMaxTileRows * score_stride)),
          weights(scratch.Take<float>(kMaxTileRows * score_stride)) {
      past.key_groups = scratch.Take<const T*>(groups);
      past.value_rows = scratch.Take<const T*>(longest);
      T* zeros = scratch.Take<T>(y_stride);
      memset(zeros, 0, y_stride * sizeof(T));
      past.zeros = zeros;
      past.key_stride = gathers ? kLanes : args.cache.block_size;
      gathered = scratch.Take<T>(gathers ? groups * args.head_dim * kLanes : 0);
    }

    const int64_t groups, score_stride, y_stride;
    const bool gathers;  // blocks do not hold whole groups
    Scratch scratch;
    typename P::Operand* query;  // [ceil(hd / kStep), rows of the tile]
    float* y;                    // [rows, y_stride]
    float* scores;               // [rows, score_stride]
    float* weights;              // [rows, score_stride]
    T* gathered;                 // [groups, hd, 16]
    Past<T> past;
  };

  // Finds the first `length` positions of a sequence.
  void FindPast(int64_t sequence, int64_t head, int64_t length, Workspace& work) const {
    const int64_t hd = args_.head_dim, block_size = args_.cache.block_size;
    const int32_t* block_table = batch_.block_table + sequence * batch_.block_table_stride;
    const T* k = static_cast<const T*>(args_.cache.k);
    const T* v = static_cast<const T*>(args_.cache.v);
    for (int64_t begin = 0; begin < length; begin += block_size) {
      const int64_t base = (block_table[begin / block_size] * args_.heads + head) * block_size * hd;
      const int64_t end = begin + block_size < length ? begin + block_size : length;
      for (int64_t p = begin; p < end; ++p) {
        work.past.value_rows[p] = v + base + (p - begin) * hd;
      }
      if (work.gathers) {
        for (int64_t p = begin; p < end; ++p) {
          T* group = work.gathered + p / kLanes * hd * kLanes;
          for (int64_t n = 0; n < hd; ++n) {
            group[n * kLanes + p % kLanes] = k[base + n * block_size + p - begin];
          }
        }
      } else {
        for (int64_t p = begin; p < end; p += kLanes) {
          work.past.key_groups[p / kLanes] = k + base + p - begin;
        }
      }
    }
    if (!work.gathers) return;
    for (int64_t p = length; p % kLanes != 0; ++p) {
      T* group = work.gathered + p / kLanes * hd * kLanes;
      for (int64_t n = 0; n < hd; ++n) group[n * kLanes + p % kLanes] = T{};
    }
    for (int64_t g = 0; g * kLanes < length; ++g) {
      work.past.key_groups[g] = work.gathered + g * hd * kLanes;
    }
  }

  // kRows rows of a sequence, from `row`; one head.
  template <int kRows>
  void Tile(Workspace& work, int64_t row, int64_t head) const {
    constexpr int kGroups = AtMost(kSums / kRows, 4);
    const int64_t hd = args_.head_dim;
    const int64_t shortest = batch_.position[row] + 1, longest = shortest + kRows - 1;
    const int64_t groups = (longest + kLanes - 1) / kLanes;
    FindPast(batch_.row_sequence[row], head, longest, work);

    for (int64_t r = 0; r < kRows; ++r) {
      const T* q = static_cast<const T*>(args_.q) + (row + r) * args_.q_stride + head * hd;
      for (int64_t n = 0; n < hd; n += P::kStep) {
        work.query[n / P::kStep * kRows + r] = P::Query(q + n, hd - n);
      }
    }
    for (int64_t group = 0; group < groups; group += kGroups) {
      ScoreGroups<T, kRows, kGroups>(work.query, work.past, group, groups, hd, scale_, work.scores,
                                     work.score_stride);
    }
    float inverse_total[kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      inverse_total[r] = 1.0f / Softmax(work.scores + r * work.score_stride, shortest + r,
                                        work.weights + r * work.score_stride);
    }
    // What all rows see, then what only the later ones do.
    memset(work.y, 0, kRows * work.y_stride * sizeof(float));
    AddAllValues<T, kRows>(work.weights, work.score_stride, work.past, 0, shortest, hd, work.y,
                           work.y_stride);
    for (int64_t r = 0; r < kRows; ++r) {
      float* y = work.y + r * work.y_stride;
      AddAllValues<T, 1>(work.weights + r * work.score_stride, work.score_stride, work.past,
                         shortest, shortest + r, hd, y, work.y_stride);
      for (int64_t n = 0; n < hd; ++n) y[n] *= inverse_total[r];
      Finish(row + r, head, y);
    }
  }

  // Norm and gate of one head's output, stored.
  void Finish(int64_t row, int64_t head, float* y) const {
    const int64_t hd = args_.head_dim, offset = (row * args_.heads + head) * hd;
    if (args_.norm_weight != nullptr) NormHead(args_.norm_weight, args_.norm_eps, hd, y);
    if (args_.gate != nullptr) {
      const T* gate = static_cast<const T*>(args_.gate) + offset;
      for (int64_t n = 0; n < hd; ++n) y[n] *= Silu(Load(gate + n));
    }
    T* out = static_cast<T*>(args_.y) + offset;
    StoreRow(y, hd, out);
  }

  const Batch& batch_;
  const PagedAttentionArgs& args_;
  const float scale_;
};

}  // namespace

void PagedAttentionBody(const Executor& executor, const Batch& batch,
                        const PagedAttentionArgs& args) {
  args.type == Type::kFloat32 ? Attention<float>(batch, args).Run(executor)
                              : Attention<BFloat16>(batch, args).Run(executor);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
