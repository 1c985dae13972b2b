#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

template <typename T>
void SwiGluTyped(const Executor& executor, int64_t tokens, const SwiGluArgs& args) {
  const int64_t m = args.m;
  ParallelFor(executor, tokens, RowGrain(8 * m), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* a = static_cast<const T*>(args.ab) + t * 2 * m;
      const T* b = a + m;
      T* y = static_cast<T*>(args.y) + t * m;
      int64_t i = 0;
      for (; i + kLanes <= m; i += kLanes) {
        StoreVector(y + i, Silu(LoadVector(a + i)) * LoadVector(b + i));
      }
      for (; i < m; ++i) Store(y + i, Silu(Load(a + i)) * Load(b + i));
    }
  });
}

}  // namespace

void Implementation::SwiGlu(const Batch& batch, const SwiGluArgs& args) const {
  args.type == Type::kFloat32 ? SwiGluTyped<float>(executor_, batch.tokens, args)
                              : SwiGluTyped<BFloat16>(executor_, batch.tokens, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
