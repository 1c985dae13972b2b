#include "model/huge_pages.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace ddl {
namespace {

constexpr int64_t kHugePage = int64_t{1} << 21;  // bytes
constexpr int64_t kRegion = 32 * kHugePage;

uintptr_t Address(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data_ptr());
}

// Sizes around cache lines, huge pages and regions: each tensor holds what was written to it, and
// follows the one before unless a region ends between them.
TEST(HugePagesTest, TensorsFollowEachOther) {
  HugePages memory;
  const int64_t sizes[] = {1,
                           63,
                           64,
                           65,
                           kHugePage - 1,
                           kHugePage,
                           kHugePage + 1,
                           kRegion,
                           kRegion - kHugePage,
                           kRegion + 1,
                           4096,
                           kRegion / 2,
                           7};
  std::vector<at::Tensor> tensors;
  for (const int64_t size : sizes) {
    tensors.push_back(memory.Empty({size}, at::kByte));
    tensors.back().fill_(static_cast<int64_t>(tensors.size()));
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "size " << sizes[i]);
    const auto value = static_cast<int64_t>(i + 1);
    EXPECT_TRUE(at::equal(tensors[i], at::full({sizes[i]}, value, tensors[i].options())));
    const uintptr_t address = Address(tensors[i]);
    EXPECT_EQ(address % 64, 0);
    if (i == 0) continue;
    const uintptr_t next = Address(tensors[i - 1]) + (sizes[i - 1] + 63) / 64 * 64;
    EXPECT_TRUE(address == next || address % kHugePage == 0);
  }
  EXPECT_EQ(Address(tensors[6]), Address(tensors[0]) + 4 * 64 + 64 + 2 * kHugePage);
}

TEST(HugePagesTest, HasShapesAndTypes) {
  HugePages memory;
  const at::Tensor tensor = memory.Empty({3, 5}, at::kFloat);
  EXPECT_EQ(tensor.sizes(), (std::vector<int64_t>{3, 5}));
  EXPECT_EQ(tensor.scalar_type(), at::kFloat);
  EXPECT_EQ(memory.Empty({0}, at::kByte).numel(), 0);
}

// What the address sanitizer would see otherwise.
TEST(HugePagesTest, TensorsOutliveIt) {
  std::optional<HugePages> memory(std::in_place);
  const at::Tensor first = memory->Empty({10}, at::kByte).fill_(1);
  const at::Tensor second = memory->Empty({kRegion}, at::kByte);
  memory.reset();
  EXPECT_EQ(first.sum().item<int64_t>(), 10);
  second.fill_(2);
}

}  // namespace
}  // namespace ddl
