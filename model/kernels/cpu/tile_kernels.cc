#include "model/kernels/cpu/tile_kernels.h"

#include "model/kernels/cpu/implementation.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

template <typename Tiles>
class TileKernels final : public Implementation {
 public:
  TileKernels(InstructionSet set, const Executor& executor) : Implementation(executor), set_(set) {}

  InstructionSet instruction_set() const override { return set_; }

  int64_t PackedBytes(WeightType type, int64_t n, int64_t k) const override {
    if (type == WeightType::kFloat32) return Implementation::PackedBytes(type, n, k);
    return PaddedColumns(n) * TiledWords(type, k) * kWordBytes;
  }
  void Pack(const WeightRows* parts, int64_t count, const PackedWeight& weight) const override {
    if (weight.type == WeightType::kFloat32) return Implementation::Pack(parts, count, weight);
    PackPanels(executor(), parts, count, weight, TiledWords(weight.type, weight.k));
  }
  void MatMul(int64_t rows, const MatMulArgs& args) const override {
    if (args.weight.type == WeightType::kFloat32) return Implementation::MatMul(rows, args);
    MatMulByTiles<Tiles>(executor(), rows, args);
  }
  void PagedAttention(const Batch& batch, const PagedAttentionArgs& args) const override {
    if (args.type == Type::kFloat32) return Implementation::PagedAttention(batch, args);
    PagedAttentionByTiles<Tiles>(executor(), batch, args);
  }

 private:
  const InstructionSet set_;
};

}  // namespace

const CpuKernels* NewWithEmulatedTiles(const Executor& executor) {
  return new TileKernels<EmulatedTiles>(InstructionSet::kAmxEmulated, executor);
}

#if defined(__AVX512BF16__)
const CpuKernels* NewWithTiles(const Executor& executor) {
  return new TileKernels<HardwareTiles>(InstructionSet::kAmx, executor);
}
#endif

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
