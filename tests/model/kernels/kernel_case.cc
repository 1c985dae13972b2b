#include "tests/model/kernels/kernel_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gtest/gtest.h"

namespace ddl::kernels {
namespace {

size_t Bytes(Type type, size_t elements) { return elements * (type == Type::kFloat32 ? 4 : 2); }

}  // namespace

float Round(float value, Type type) {
  if (type == Type::kFloat32) return value;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

Buffer::Buffer(Type type, size_t size) : type_(type), bytes_(Bytes(type, size), 0xff) {}

Buffer::Buffer(Type type, const std::vector<float>& values) : Buffer(type, values.size()) {
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof(bits));
    const auto half = static_cast<uint16_t>(bits >> 16);
    if (type == Type::kFloat32) {
      std::memcpy(bytes_.data() + 4 * i, &bits, 4);
    } else {
      std::memcpy(bytes_.data() + 2 * i, &half, 2);
    }
  }
}

std::vector<float> Buffer::Floats() const {
  std::vector<float> values(bytes_.size() / Bytes(type_, 1));
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits = 0;
    if (type_ == Type::kFloat32) {
      std::memcpy(&bits, bytes_.data() + 4 * i, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, bytes_.data() + 2 * i, 2);
      bits = static_cast<uint32_t>(half) << 16;
    }
    std::memcpy(&values[i], &bits, 4);
  }
  return values;
}

std::vector<float> Random::Values(size_t count, float scale, Type type) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = Round(normal(engine_), type);
  return values;
}

RaggedBatch::RaggedBatch(const std::vector<std::pair<int, int>>& start_and_length,
                         int64_t block_size, int64_t room) {
  for (const auto& [start, length] : start_and_length) {
    for (int i = 0; i < length; ++i) {
      row_sequence.push_back(static_cast<int32_t>(slot.size()));
      position.push_back(start + i);
    }
    row_begin.push_back(static_cast<int32_t>(position.size()));
    slot.push_back(static_cast<int32_t>(2 * slot.size() + 1));
    room = std::max<int64_t>(room, start + length);
  }
  const int64_t stride = (room + block_size - 1) / block_size;
  for (size_t s = 0; s < slot.size(); ++s) {
    for (int64_t b = 0; b < stride; ++b) {
      block_table.push_back(static_cast<int32_t>(b * slot.size() + s));
    }
  }
  batch.tokens = static_cast<int64_t>(position.size());
  batch.sequences = static_cast<int64_t>(slot.size());
  batch.row_begin = row_begin.data();
  batch.row_sequence = row_sequence.data();
  batch.position = position.data();
  batch.slot = slot.data();
  batch.block_table = block_table.data();
  batch.block_table_stride = stride;
}

void RaggedBatch::SaveTailsByRow() {
  for (const int32_t own : slot) tail_source.push_back(own + 1);
  for (int32_t t = 0; t < batch.tokens; ++t) {
    row_save.push_back(t % 3 == 1 ? -1 : static_cast<int32_t>(2 * batch.sequences) + 1 + t);
  }
  batch.tail_source = tail_source.data();
  batch.row_save = row_save.data();
}

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

std::vector<DeltaStepCase> DeltaStepCases() {
  using enum Rewrite;
  using enum Compress;
  return {
      {"baseline", 48, 1, kAdd, kIdentity, 0, Gates::kNone},
      {"baseline, first", 48, 1, kNone, kIdentity, 0, Gates::kNone},
      {"vdim1", 33, 1, kDelta, kIdentity, 0, Gates::kLinear},
      {"first boundary", 32, 4, kNone, kChannel, 0, Gates::kLinear},
      {"before the head", 32, 4, kDelta, kChannel, 0, Gates::kNone},
      {"two-layer beta", 40, 4, kDelta, kChannel, 0, Gates::kHidden},
      {"constant v", 40, 4, kDelta, kChannel, 0, Gates::kConstant},
      {"linear v", 40, 4, kDelta, kChannel, 0, Gates::kNoSigmoid},
      {"tc, first boundary", 36, 4, kNone, kToken, 4, Gates::kLinear},
      {"tc, one tap", 36, 4, kDelta, kToken, 1, Gates::kLinear},
      {"tc, readout", 36, 4, kDelta, kToken, 4, Gates::kNone},
  };
}

std::vector<AttentionCase> AttentionCases() {
  return {
      {"plain", 1, 1, 0, 1, false, false, false, false, Activation::kIdentity},
      {"rope", 2, 8, 8, 4, false, false, false, false, Activation::kIdentity},
      {"half rope, norm", 3, 10, 4, 5, true, false, false, false, Activation::kIdentity},
      {"odd head, gate", 2, 7, 6, 16, true, true, false, false, Activation::kSilu},
      {"shifts", 2, 16, 16, 16, true, false, true, true, Activation::kIdentity},
      {"k shift, relu", 2, 17, 16, 17, true, false, true, false, Activation::kRelu},
      {"v shift, elu+1", 1, 33, 32, 32, false, true, false, true, Activation::kElu1},
      {"wide", 2, 64, 64, 16, true, true, false, false, Activation::kIdentity},
      {"the models'", 1, 128, 128, 16, true, false, false, false, Activation::kIdentity},
      {"wider than a block", 1, 136, 72, 8, true, true, true, true, Activation::kSilu},
  };
}

void ExpectClose(const std::vector<float>& found, const std::vector<double>& want, Type type,
                 const std::string& what) {
  ASSERT_EQ(found.size(), want.size()) << what;
  const double relative = type == Type::kFloat32 ? 2e-5 : 1.0 / 256;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], want[i], relative * std::abs(want[i]) + 2e-5)
        << what << ", element " << i;
  }
}

}  // namespace ddl::kernels
