// W as the matrix products read it (PackedWeight), and int8's activations.

#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/matmul.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

// ---- Weights

// A panel's rows of W where they are stored; null past the last.
struct PanelRows {
  const unsigned char* row[kPanelWidth];
};

PanelRows RowsOfPanel(const WeightRows* parts, int64_t count, int64_t panel, int64_t row_bytes) {
  PanelRows result = {};
  int64_t part = 0, first = 0;
  for (int64_t i = 0; i < kPanelWidth; ++i) {
    const int64_t row = panel * kPanelWidth + i;
    while (part < count && row - first >= parts[part].rows) first += parts[part++].rows;
    if (part == count) break;
    result.row[i] = static_cast<const unsigned char*>(parts[part].data) + (row - first) * row_bytes;
  }
  return result;
}

// `bytes` of each row -> [words, kPanelWidth], a few words of all rows at a time, so that both
// sides stay in the cache.
void Transpose(const PanelRows& rows, int64_t bytes, int64_t words, Word* packed) {
  constexpr int64_t kBlock = 16;  // words: a line of each row
  const int64_t whole = bytes / kWordBytes;
  for (int64_t block = 0; block < words; block += kBlock) {
    const int64_t end = block + kBlock < words ? block + kBlock : words;
    for (int64_t i = 0; i < kPanelWidth; ++i) {
      const unsigned char* row = rows.row[i];
      int64_t w = block;
      if (row != nullptr) {
        for (const int64_t last = end < whole ? end : whole; w < last; ++w) {
          memcpy(packed + w * kPanelWidth + i, row + w * kWordBytes, kWordBytes);
        }
        if (w == whole && w < end && bytes % kWordBytes != 0) {
          Word part = 0;
          memcpy(&part, row + w * kWordBytes, bytes % kWordBytes);
          packed[w++ * kPanelWidth + i] = part;
        }
      }
      for (; w < end; ++w) packed[w * kPanelWidth + i] = 0;
    }
  }
}

// q of a row of W [k], its scale, and the sum of q.
void QuantizeWeightRow(const BFloat16* from, int64_t k, signed char* q, float* scale,
                       int32_t* sum) {
  float largest = 0.0f;
  for (int64_t i = 0; i < k; ++i) {
    const float magnitude = fabsf(Load(from + i));
    largest = magnitude > largest ? magnitude : largest;
  }
  *scale = largest / 127.0f;
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  // Adding it rounds to the nearest integer, which is then in the lowest bits.
  constexpr float kShifter = 12582912.0f;  // 1.5 * 2^23
  int32_t total = 0;
  for (int64_t i = 0; i < k; ++i) {
    const float shifted = Load(from + i) * inverse + kShifter;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof(bits));
    const int32_t value = bits - 0x4b400000;
    q[i] = static_cast<signed char>(value);
    total += value;
  }
  *sum = total;
}

// ---- Activations

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
void QuantizeRow(const BFloat16* x, int64_t k, int64_t stride, unsigned char* q, float* scale) {
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
  for (; i < stride; ++i) q[i] = 128;
}

}  // namespace

void QuantizeRows(const Executor& executor, const BFloat16* x, int64_t rows, int64_t k,
                  const QuantizedRows& quantized) {
  ParallelFor(executor, rows, RowGrain(k), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      QuantizeRow(x + row * k, k, quantized.stride, quantized.data + row * quantized.stride,
                  quantized.scales + row);
    }
  });
}

void PackPanels(const Executor& executor, const WeightRows* parts, int64_t count,
                const PackedWeight& weight, int64_t words) {
  const int64_t k = weight.k;
  const int64_t row_bytes = k * (weight.type == WeightType::kFloat32 ? 4 : 2);
  const bool is_int8 = weight.type == WeightType::kInt8;
  ParallelFor(
      executor, NumPanels(weight.n), RowGrain(row_bytes * kPanelWidth),
      [&](int64_t begin, int64_t end) {
        Scratch scratch(Scratch::Bytes<signed char>(is_int8 ? kPanelWidth * k : 0));
        signed char* const quantized = scratch.Take<signed char>(is_int8 ? kPanelWidth * k : 0);
        for (int64_t panel = begin; panel < end; ++panel) {
          PanelRows rows = RowsOfPanel(parts, count, panel, row_bytes);
          Word* const packed = static_cast<Word*>(weight.data) + panel * words * kPanelWidth;
          if (!is_int8) {
            Transpose(rows, row_bytes, words, packed);
            continue;
          }
          for (int64_t i = 0; i < kPanelWidth; ++i) {
            float* const scale = weight.scales + panel * kPanelWidth + i;
            int32_t* const sum = weight.sums + panel * kPanelWidth + i;
            *scale = 0.0f;
            *sum = 0;
            if (rows.row[i] == nullptr) continue;
            QuantizeWeightRow(reinterpret_cast<const BFloat16*>(rows.row[i]), k, quantized + i * k,
                              scale, sum);
            rows.row[i] = reinterpret_cast<const unsigned char*>(quantized + i * k);
          }
          Transpose(rows, k, words, packed);
        }
      });
}

int64_t Implementation::PackedBytes(WeightType type, int64_t n, int64_t k) const {
  return PaddedColumns(n) * Words(type, k) * kWordBytes;
}

void Implementation::Pack(const WeightRows* parts, int64_t count,
                          const PackedWeight& weight) const {
  PackPanels(executor_, parts, count, weight, Words(weight.type, weight.k));
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
