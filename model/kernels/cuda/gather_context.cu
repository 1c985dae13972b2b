// Copies the K and V of whole sequences out of their blocks, for attention over packed sequences. A
// CUDA block takes one head of one block of the cache.
//
// K is transposed on the way, without shared memory: neighbouring threads take neighbouring
// positions, which lie side by side where they are read, and two packs of a position together fill
// the 32 bytes that memory writes at once.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// kPack dimensions at a time.
template <typename T, int kPack>
__global__ void __launch_bounds__(kThreads)
    CopyBlocks(GatherContextArgs args, const int32_t* block_table, int64_t block_table_stride) {
  BeginKernel();
  const int64_t page = blockIdx.x, sequence = blockIdx.y, head = blockIdx.z;
  const int block_size = static_cast<int>(args.cache.block_size);
  const int64_t begin = args.position_begin[sequence] + page * block_size;
  const int64_t left = args.position_begin[sequence + 1] - begin;
  if (left <= 0) return;
  const int count = left < block_size ? static_cast<int>(left) : block_size;

  const int hd = static_cast<int>(args.head_dim), packs = hd / kPack;
  const int64_t block = block_table[sequence * block_table_stride + page];
  const int64_t from = (block * args.heads + head) * block_size * hd;
  const int64_t to = (begin * args.heads + head) * hd, row = args.heads * hd;
  const T* k = static_cast<const T*>(args.cache.k) + from;
  T* k_out = static_cast<T*>(args.k) + to;
  for (int i = threadIdx.x; i < count * packs; i += kThreads) {
    const int position = i % count, dimension = i / count * kPack;
    Pack<T, kPack> pack;
#pragma unroll
    for (int n = 0; n < kPack; ++n) pack.element[n] = k[(dimension + n) * block_size + position];
    StorePack<kPack>(k_out + position * row + dimension, pack);
  }
  const T* v = static_cast<const T*>(args.cache.v) + from;
  T* v_out = static_cast<T*>(args.v) + to;
  for (int i = threadIdx.x; i < count * packs; i += kThreads) {
    const int position = i / packs, dimension = i % packs * kPack;
    StorePack<kPack>(v_out + position * row + dimension,
                     LoadPack<kPack>(v + position * hd + dimension));
  }
}

template <typename T>
Error LaunchType(Stream stream, Grid grid, const int32_t* block_table, int64_t block_table_stride,
                 const GatherContextArgs& args) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t row_bytes = args.head_dim * static_cast<int64_t>(sizeof(T));
  const bool packs = IsAligned(args.cache.v, row_bytes, 16) && IsAligned(args.k, row_bytes, 16) &&
                     IsAligned(args.v, row_bytes, 16);
  return Launch(packs ? CopyBlocks<T, kPack> : CopyBlocks<T, 1>, grid, kThreads, 0, stream, args,
                block_table, block_table_stride);
}

}  // namespace

Error GatherContext(Stream stream, int64_t sequences, const int32_t* block_table,
                    int64_t block_table_stride, int64_t longest, const GatherContextArgs& args) {
  if (sequences == 0 || longest == 0) return kSuccess;
  if (args.heads < 1 || args.heads > 65535 || args.head_dim < 1 || args.cache.block_size < 1 ||
      sequences > 65535) {
    return kInvalidArgument;
  }
  const Grid grid{DivideUp(longest, args.cache.block_size), sequences, args.heads};
  return args.type == Type::kFloat32
             ? LaunchType<float>(stream, grid, block_table, block_table_stride, args)
             : LaunchType<BFloat16>(stream, grid, block_table, block_table_stride, args);
}

}  // namespace ddl::kernels::cuda
