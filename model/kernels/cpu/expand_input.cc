#include "model/kernels/cpu/bodies.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

template <typename T>
void ExpandInputTyped(const Executor& executor, int64_t tokens, const ExpandInputArgs& args) {
  const int64_t d = args.d, dv = args.dv, taps = args.taps;
  const T* embedding = static_cast<const T*>(args.embedding);
  ParallelFor(executor, tokens, RowGrain(d * dv * taps), [&](int64_t begin, int64_t end) {
    Scratch scratch(Scratch::Bytes<float>(d * dv));
    float* sum = scratch.Take<float>(d * dv);
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* ids = args.ids + t * taps;
      T* x = static_cast<T*>(args.x) + t * d * dv;
      if (args.conv == nullptr) {
        const T* e = embedding + ids[taps - 1] * d;
        for (int64_t i = 0; i < d; ++i) {
          for (int64_t j = 0; j < dv; ++j) x[i * dv + j] = e[i];
        }
        continue;
      }
      for (int64_t c = 0; c < d * dv; ++c) sum[c] = 0.0f;
      for (int64_t r = 0; r < taps; ++r) {
        if (ids[r] < 0) continue;  // before the start: e = 0
        const T* e = embedding + ids[r] * d;
        for (int64_t i = 0; i < d; ++i) {
          const float value = Load(e + i);
          for (int64_t j = 0; j < dv; ++j) {
            sum[i * dv + j] += args.conv[(i * dv + j) * taps + r] * value;
          }
        }
      }
      for (int64_t c = 0; c < d * dv; ++c) Store(x + c, sum[c]);
    }
  });
}

}  // namespace

void ExpandInputBody(const Executor& executor, int64_t tokens, const ExpandInputArgs& args) {
  args.type == Type::kFloat32 ? ExpandInputTyped<float>(executor, tokens, args)
                              : ExpandInputTyped<BFloat16>(executor, tokens, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
