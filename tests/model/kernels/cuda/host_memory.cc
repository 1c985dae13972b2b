#include "tests/model/kernels/cuda/host_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include "base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, size) (static_cast<void>(p), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(p, size) (static_cast<void>(p), static_cast<void>(size))
#endif

namespace ddl::kernels::cuda_host {
namespace {

constexpr size_t kReservedBytes = size_t{1} << 36;  // of addresses: memory comes when it is touched
constexpr size_t kPageBytes = 4096;
constexpr size_t kSpareBytes = 64;  // behind each allocation, for AddressSanitizer

// The same pages at two addresses: the device's, which are closed but for accesses, and the host's.
class Memory {
 public:
  Memory() {
    file_ = memfd_create("the device's memory", MFD_CLOEXEC);
    DDL_CHECK(file_ >= 0 && ftruncate(file_, kReservedBytes) == 0, "the device has memory");
    device_ = Map(PROT_NONE);
    host_ = Map(PROT_READ | PROT_WRITE);
  }

  void* Allocate(size_t bytes) {
    const size_t extent = (bytes + kSpareBytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    const std::lock_guard lock(mutex_);
    size_t offset = end_;
    if (const auto found = free_.find(extent); found != free_.end()) {
      offset = found->second;
      free_.erase(found);
    } else {
      DDL_CHECK(extent <= kReservedBytes - end_, "the device's memory is large enough");
      end_ += extent;
      if (accesses_ > 0) Protect(PROT_READ | PROT_WRITE);
    }
    unsigned char* const p = device_ + offset;
    extents_[p] = extent;
    std::memset(host_ + offset, 0xff, bytes);
    ASAN_UNPOISON_MEMORY_REGION(p, extent);
    ASAN_POISON_MEMORY_REGION(p + bytes, extent - bytes);
    return p;
  }

  void Free(void* p) {
    if (p == nullptr) return;
    const std::lock_guard lock(mutex_);
    const auto found = extents_.find(p);
    DDL_CHECK(found != extents_.end(), "memory that is freed was allocated");
    const auto offset = static_cast<off_t>(static_cast<unsigned char*>(p) - device_);
    ASAN_POISON_MEMORY_REGION(p, found->second);
    // Pages that are in memory make opening and closing slow.
    fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
              static_cast<off_t>(found->second));
    free_.emplace(found->second, offset);
    extents_.erase(found);
  }

  bool Contains(const void* p) const {
    const auto* const byte = static_cast<const unsigned char*>(p);
    return byte >= device_ && byte < device_ + kReservedBytes;
  }
  void* OnHost(const void* p) const {
    return host_ + (static_cast<const unsigned char*>(p) - device_);
  }

  void Open() {
    const std::lock_guard lock(mutex_);
    if (accesses_++ == 0) Protect(PROT_READ | PROT_WRITE);
  }
  void Close() {
    const std::lock_guard lock(mutex_);
    if (--accesses_ == 0) Protect(PROT_NONE);
  }

 private:
  unsigned char* Map(int protection) const {
    void* const p = mmap(nullptr, kReservedBytes, protection, MAP_SHARED | MAP_NORESERVE, file_, 0);
    DDL_CHECK(p != MAP_FAILED, "the device's memory has addresses");
    return static_cast<unsigned char*>(p);
  }
  void Protect(int protection) const {
    if (end_ == 0) return;
    DDL_CHECK(mprotect(device_, end_, protection) == 0, "the device's memory is protected");
  }

  std::mutex mutex_;
  int file_ = -1;
  unsigned char* device_ = nullptr;
  unsigned char* host_ = nullptr;
  size_t end_ = 0;  // bytes given out so far, to whoever
  int accesses_ = 0;
  std::unordered_map<void*, size_t> extents_;
  std::multimap<size_t, size_t> free_;  // offsets, by extent
};

Memory& TheMemory() {
  static auto& memory = *new Memory();
  return memory;
}

// A structured binding names every member: one that is added stops the build here until it is
// looked at.
void CheckCache(const KvCache& cache) {
  const auto& [k, v, block_size] = cache;
  CheckPointer(k, "cache.k");
  CheckPointer(v, "cache.v");
}

void CheckShift(const Shift& shift) {
  const auto& [weight, tail, tail_stride] = shift;
  CheckPointer(weight, "shift.weight");
  CheckPointer(tail, "shift.tail");
}

}  // namespace

void* AllocateDeviceMemory(size_t bytes) { return TheMemory().Allocate(bytes); }
void FreeDeviceMemory(void* p) { TheMemory().Free(p); }
bool IsDeviceMemory(const void* p) { return TheMemory().Contains(p); }
void* OnHost(const void* p) { return TheMemory().OnHost(p); }
DeviceMemoryAccess::DeviceMemoryAccess() { TheMemory().Open(); }
DeviceMemoryAccess::~DeviceMemoryAccess() { TheMemory().Close(); }

void CheckPointer(const void* p, const char* what) {
  if (p == nullptr || IsDeviceMemory(p)) return;
  std::fprintf(stderr, "CUDA kernel launch: %s points to %p, which is the host's memory\n", what,
               p);
  std::abort();
}

void CheckArgument(const Batch& batch, size_t /*blocks*/) {
  const auto& [tokens, sequences, row_begin, row_sequence, position, slot, block_table,
               block_table_stride, longest, tail_source, row_save, attention_plan] = batch;
  CheckPointer(row_begin, "batch.row_begin");
  CheckPointer(row_sequence, "batch.row_sequence");
  CheckPointer(position, "batch.position");
  CheckPointer(slot, "batch.slot");
  CheckPointer(block_table, "batch.block_table");
  CheckPointer(tail_source, "batch.tail_source");
  CheckPointer(row_save, "batch.row_save");
  // attention_plan is the host's, and no kernel's business.
}

void CheckArgument(const ExpandInputArgs& args, size_t /*blocks*/) {
  const auto& [type, d, dv, taps, embedding, conv, ids, x] = args;
  CheckPointer(embedding, "embedding");
  CheckPointer(conv, "conv");
  CheckPointer(ids, "ids");
  CheckPointer(x, "x");
}

void CheckArgument(const DeltaStepArgs& args, size_t /*blocks*/) {
  const auto& [type, d, dv, x, rewrite, h, k_eps, residual_multiplier, update_ratio, compress,
               compress_weight, taps, tail, tail_stride, norm_weight, norm_eps, gates, gate, x_in,
               c, v, beta] = args;
  CheckPointer(x, "x");
  CheckPointer(h, "h");
  CheckPointer(update_ratio, "update_ratio");
  CheckPointer(compress_weight, "compress_weight");
  CheckPointer(tail, "tail");
  CheckPointer(norm_weight, "norm_weight");
  CheckPointer(x_in, "x_in");
  CheckPointer(c, "c");
  CheckPointer(v, "v");
  CheckPointer(beta, "beta");
  const auto& [beta_weight, beta_in, beta_hidden, beta_bias, v_weight, v_bias, v_sigmoid, v_scale,
               v_constant] = gate;
  CheckPointer(beta_weight, "gate.beta_weight");
  CheckPointer(beta_in, "gate.beta_in");
  CheckPointer(v_weight, "gate.v_weight");
  CheckPointer(v_bias, "gate.v_bias");
}

void CheckArgument(const AttentionInputArgs& args, size_t /*blocks*/) {
  const auto& [type, d, heads, head_dim, c, qkv, q_activation, k_activation, v_activation, k_shift,
               v_shift, rotary_dims, rope_cos, rope_sin, q_norm, k_norm, norm_eps, cache] = args;
  CheckPointer(c, "c");
  CheckPointer(qkv, "qkv");
  CheckShift(k_shift);
  CheckShift(v_shift);
  CheckPointer(rope_cos, "rope_cos");
  CheckPointer(rope_sin, "rope_sin");
  CheckPointer(q_norm, "q_norm");
  CheckPointer(k_norm, "k_norm");
  CheckCache(cache);
}

void CheckArgument(const PagedAttentionArgs& args, size_t /*blocks*/) {
  const auto& [type, heads, head_dim, q, q_stride, cache, norm_weight, norm_eps, gate, y] = args;
  CheckPointer(q, "q");
  CheckCache(cache);
  CheckPointer(norm_weight, "norm_weight");
  CheckPointer(gate, "gate");
  CheckPointer(y, "y");
}

void CheckArgument(const SwiGluArgs& args, size_t /*blocks*/) {
  const auto& [type, m, ab, y] = args;
  CheckPointer(ab, "ab");
  CheckPointer(y, "y");
}

void CheckArgument(const cuda::GatherContextArgs& args, size_t /*blocks*/) {
  const auto& [type, heads, head_dim, cache, position_begin, k, v] = args;
  CheckCache(cache);
  CheckPointer(position_begin, "position_begin");
  CheckPointer(k, "k");
  CheckPointer(v, "v");
}

void CheckArgument(const cuda::GatherRowsArgs& args, size_t /*blocks*/) {
  const auto& [type, d, x, rows, y] = args;
  CheckPointer(x, "x");
  CheckPointer(rows, "rows");
  CheckPointer(y, "y");
}

void CheckArgument(const cuda::FillIdsArgs& args, size_t /*blocks*/) {
  const auto& [sampled, from, to, ids] = args;
  CheckPointer(sampled, "sampled");
  CheckPointer(from, "from");
  CheckPointer(to, "to");
  CheckPointer(ids, "ids");
}

void CheckArgument(const cuda::SampleTokensArgs& args, size_t blocks) {
  const auto& [vocab, logits, rows, workspace, id, logprob] = args;
  CheckPointer(logits, "logits");
  CheckPointer(rows, "rows");
  CheckPointer(workspace, "workspace");
  CheckPointer(id, "id");
  CheckPointer(logprob, "logprob");
  const auto* const row = static_cast<const cuda::SampleRow*>(OnHost(rows));
  for (size_t r = 0; r < blocks; ++r) {
    CheckPointer(row[r].bias, "a row's bias");
    CheckPointer(row[r].banned, "a row's banned");
    CheckPointer(row[r].prompt, "a row's prompt");
    CheckPointer(row[r].generated, "a row's generated");
  }
}

}  // namespace ddl::kernels::cuda_host
