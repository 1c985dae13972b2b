// Times the CUDA kernels between the matrix products, and says which share of the speed of a large
// plain copy on the same GPU they reach. docs/cuda.md says how to read it.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "bench/gpu.h"
#include "bench/program.h"
#include "model/kernels/cuda/cuda_kernels.h"

ABSL_FLAG(
    std::string, tokens, "1,8,32,256,2048,16384,65536",
    "Positions in a call; each is timed. Up to 256 they are a decode step's, a sequence each; "
    "more are chunks of prompts.");
ABSL_FLAG(int32_t, context, 512, "Positions before a sequence's last, that attention reads.");
ABSL_FLAG(std::string, json, "", "File to write the results to, as JSON. Empty: none.");

namespace ddl::bench {
namespace {

using kernels::Batch;
using kernels::Compress;
using kernels::Rewrite;
using kernels::Type;
namespace cuda = kernels::cuda;

constexpr int kExitFailed = 1;

constexpr int64_t kMostDecodes = 256;
constexpr int64_t kLongestChunk = 1024;
constexpr int64_t kKvBlockSize = 16;  // positions
constexpr int64_t kTaps = 4;          // of token and input convolutions, as in the paper
constexpr int64_t kHeadDim = 128;
constexpr int64_t kElementBytes = 2;  // bfloat16
constexpr int64_t kVocab = 50304;

struct Geometry {
  const char* name;
  int64_t d, heads, m;
};
constexpr Geometry kGeometries[] = {{"small", 768, 6, 2048}, {"medium", 1024, 8, 2730}};

struct Variant {
  const char* name;
  int64_t dv;
  Rewrite rewrite;
  Compress compress;
};
constexpr Variant kVariants[] = {{"gpt", 1, Rewrite::kAdd, Compress::kIdentity},
                                 {"vdim1", 1, Rewrite::kDelta, Compress::kIdentity},
                                 {"cc", 4, Rewrite::kDelta, Compress::kChannel},
                                 {"tc", 4, Rewrite::kDelta, Compress::kToken}};

// Small random numbers, bfloat16 or float32.
std::unique_ptr<GpuBuffer> Numbers(Type type, int64_t count) {
  constexpr size_t kPattern = 1 << 18;
  std::mt19937 random(1);
  std::uniform_real_distribution<float> value(-0.5f, 0.5f);
  std::vector<float> floats(kPattern);
  for (float& number : floats) number = value(random);
  if (type == Type::kFloat32) {
    return std::make_unique<GpuBuffer>(count * 4, floats.data(), kPattern * 4);
  }
  std::vector<uint16_t> halves(kPattern);
  for (size_t i = 0; i < kPattern; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &floats[i], sizeof(bits));
    halves[i] = static_cast<uint16_t>(bits >> 16);
  }
  return std::make_unique<GpuBuffer>(count * 2, halves.data(), kPattern * 2);
}

// The tensors of one case, which live as long as it does.
class Tensors {
 public:
  void* BFloat16(int64_t count) { return Keep(Numbers(Type::kBFloat16, count)); }
  float* Floats(int64_t count) { return static_cast<float*>(Keep(Numbers(Type::kFloat32, count))); }
  const int32_t* Integers(const std::vector<int32_t>& values) {
    return static_cast<const int32_t*>(Bytes(values.data(), values.size() * sizeof(int32_t)));
  }
  // Normal with a standard deviation of 4, of which some hundred tokens have nine tenths of the
  // mass.
  float* Logits(int64_t count) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal(0.0f, 4.0f);
    std::vector<float> pattern(kVocab);
    for (float& logit : pattern) logit = normal(random);
    return static_cast<float*>(
        Keep(std::make_unique<GpuBuffer>(count * 4, pattern.data(), pattern.size() * 4)));
  }
  void* Zeros(size_t bytes) {
    const std::vector<unsigned char> zeros(bytes);
    return Bytes(zeros.data(), bytes);
  }
  void* Bytes(const void* values, size_t bytes) {
    return Keep(std::make_unique<GpuBuffer>(bytes, values, bytes));
  }

 private:
  void* Keep(std::unique_ptr<GpuBuffer> buffer) {
    buffers_.push_back(std::move(buffer));
    return buffers_.back()->data();
  }
  std::vector<std::unique_ptr<GpuBuffer>> buffers_;
};

// `tokens` positions as the flag says, the last of each sequence after `context` others.
Batch MakeBatch(Tensors& tensors, int64_t tokens, int64_t context) {
  const bool decode = tokens <= kMostDecodes;
  std::vector<int32_t> row_begin = {0}, row_sequence, position, slot, block_table;
  Batch batch;
  batch.tokens = tokens;
  while (row_begin.back() < tokens) {
    const auto sequence = static_cast<int32_t>(slot.size());
    const int64_t length = decode ? 1 : std::min<int64_t>(kLongestChunk, tokens - row_begin.back());
    const int64_t start = decode ? context : 0;
    for (int64_t i = 0; i < length; ++i) {
      row_sequence.push_back(sequence);
      position.push_back(static_cast<int32_t>(start + i));
    }
    row_begin.push_back(static_cast<int32_t>(position.size()));
    slot.push_back(sequence);
    batch.longest = std::max(batch.longest, start + length);
  }
  batch.sequences = static_cast<int64_t>(slot.size());
  batch.block_table_stride = (batch.longest + kKvBlockSize - 1) / kKvBlockSize;
  for (int64_t block = 0; block < batch.sequences * batch.block_table_stride; ++block) {
    block_table.push_back(static_cast<int32_t>(block));
  }
  batch.row_begin = tensors.Integers(row_begin);
  batch.row_sequence = tensors.Integers(row_sequence);
  batch.position = tensors.Integers(position);
  batch.slot = tensors.Integers(slot);
  batch.block_table = tensors.Integers(block_table);
  return batch;
}

class Benchmark {
 public:
  // `bytes`: what a call has to read and to write at least once. 0: it is not bound by them.
  template <typename Launch>
  void Measure(const std::string& kernel, const std::string& what, int64_t tokens, int64_t bytes,
               Launch launch) {
    const double seconds = SecondsOnGpu([&] { CheckLaunch(launch(), kernel); });
    nlohmann::json result = {
        {"kernel", kernel}, {"case", what}, {"tokens", tokens}, {"seconds", seconds}};
    std::string of_copy;
    if (bytes > 0) {
      const double speed = static_cast<double>(bytes) / seconds, copy = copy_speed_;
      result["bytes"] = bytes;
      result["bytes_per_second"] = speed;
      result["copy_bytes_per_second"] = copy;
      result["of_copy"] = speed / copy;
      char text[64];
      std::snprintf(text, sizeof(text), "%10.1f %10.1f %8.2f", speed / 1e9, copy / 1e9,
                    speed / copy);
      of_copy = text;
    }
    std::printf("%-16s %-22s %8lld %12.2f %s\n", kernel.c_str(), what.c_str(),
                static_cast<long long>(tokens), seconds * 1e6, of_copy.c_str());
    results_.push_back(std::move(result));
  }

  void DeltaStep(const Geometry& geometry, const Variant& variant, int64_t tokens) {
    Tensors tensors;
    const int64_t d = geometry.d, dv = variant.dv;
    const Batch batch = MakeBatch(tensors, tokens, kTaps);
    kernels::DeltaStepArgs args;
    args.type = Type::kBFloat16;
    args.d = d;
    args.dv = dv;
    args.x = tensors.BFloat16(tokens * d * dv);
    args.rewrite = variant.rewrite;
    args.h = tensors.BFloat16(tokens * d);
    args.k_eps = 1e-5f;
    args.compress = variant.compress;
    // X in and out, h, c; then the weights, which count when there are few tokens.
    int64_t bytes = tokens * d * (2 * dv + 2) * kElementBytes + 4 * d;
    if (variant.compress == Compress::kChannel) {
      args.compress_weight = tensors.Floats(d * dv);
      bytes += d * dv * 4;
    }
    if (variant.compress == Compress::kToken) {
      args.taps = kTaps;
      args.compress_weight = tensors.Floats(kTaps * d * dv);
      args.tail = tensors.Floats(batch.sequences * (kTaps - 1) * d);
      args.tail_stride = (kTaps - 1) * d;
      bytes += kTaps * d * dv * 4 + 2 * batch.sequences * (kTaps - 1) * d * 4;
    }
    args.norm_weight = tensors.Floats(d);
    args.norm_eps = 1e-5f;
    args.gates = variant.rewrite == Rewrite::kDelta;
    if (args.gates) {
      args.gate.beta_weight = tensors.Floats(d);
      args.gate.v_weight = tensors.Floats(dv * d);
      args.gate.v_bias = tensors.Floats(dv);
      args.gate.v_scale = 4.0f;
      bytes += (1 + dv) * d * 4;
    }
    args.c = tensors.BFloat16(tokens * d);
    args.v = tensors.Floats(tokens * dv);
    args.beta = tensors.Floats(tokens);
    Measure("DeltaStep", absl::StrCat(geometry.name, " ", variant.name), tokens, bytes,
            [&] { return cuda::DeltaStep(nullptr, batch, args); });
  }

  void Attention(const Geometry& geometry, int64_t tokens, int64_t context) {
    Tensors tensors;
    const int64_t inner = geometry.heads * kHeadDim;
    const Batch batch = MakeBatch(tensors, tokens, context);
    const int64_t cache = batch.sequences * batch.block_table_stride * kKvBlockSize * inner;
    void* const qkv = tensors.BFloat16(tokens * 3 * inner);
    kernels::AttentionInputArgs input;
    input.type = Type::kBFloat16;
    input.d = geometry.d;
    input.heads = geometry.heads;
    input.head_dim = kHeadDim;
    input.c = tensors.BFloat16(tokens * geometry.d);
    input.qkv = qkv;
    input.rotary_dims = kHeadDim;
    input.rope_cos = tensors.Floats(batch.longest * kHeadDim / 2);
    input.rope_sin = tensors.Floats(batch.longest * kHeadDim / 2);
    input.q_norm = tensors.Floats(kHeadDim);
    input.k_norm = tensors.Floats(kHeadDim);
    input.norm_eps = 1e-5f;
    input.cache = {tensors.BFloat16(cache), tensors.BFloat16(cache), kKvBlockSize};
    // q, k, v in; q, and k, v to the cache
    Measure("AttentionInput", geometry.name, tokens, tokens * 6 * inner * kElementBytes,
            [&] { return cuda::AttentionInput(nullptr, batch, input); });

    const bool decode = tokens <= kMostDecodes;
    if (!decode) {
      cuda::GatherContextArgs gather;
      gather.type = Type::kBFloat16;
      gather.heads = geometry.heads;
      gather.head_dim = kHeadDim;
      gather.cache = input.cache;
      gather.position_begin = batch.row_begin;  // chunks begin with their sequences
      gather.k = tensors.BFloat16(tokens * inner);
      gather.v = tensors.BFloat16(tokens * inner);
      Measure("GatherContext", geometry.name, tokens, tokens * 4 * inner * kElementBytes, [&] {
        return cuda::GatherContext(nullptr, batch.sequences, batch.block_table,
                                   batch.block_table_stride, batch.longest, gather);
      });
    }

    kernels::PagedAttentionArgs args;
    args.type = Type::kBFloat16;
    args.heads = geometry.heads;
    args.head_dim = kHeadDim;
    args.q = qkv;
    args.q_stride = 3 * inner;
    args.cache = input.cache;
    args.y = tensors.BFloat16(tokens * inner);
    const int64_t workspace = cuda::PagedAttentionWorkspaceFloats(tokens, args, batch.longest);
    float* const floats = workspace > 0 ? tensors.Floats(workspace) : nullptr;
    auto* const arrivals = static_cast<int32_t*>(tensors.Zeros(tokens * geometry.heads * 4));
    // A decode reads each sequence's keys and values once. A chunk is bound by arithmetic.
    const int64_t bytes = (tokens * batch.longest * 2 * inner + 2 * tokens * inner) * kElementBytes;
    Measure("PagedAttention",
            decode ? absl::StrCat(geometry.name, " context ", batch.longest)
                   : absl::StrCat(geometry.name, " chunks"),
            tokens, decode ? bytes : 0, [&] {
              return cuda::PagedAttention(nullptr, batch, args, batch.longest, floats, arrivals);
            });
  }

  void SwiGlu(const Geometry& geometry, int64_t tokens) {
    Tensors tensors;
    kernels::SwiGluArgs args;
    args.type = Type::kBFloat16;
    args.m = geometry.m;
    args.ab = tensors.BFloat16(tokens * 2 * geometry.m);
    args.y = tensors.BFloat16(tokens * geometry.m);
    Measure("SwiGlu", geometry.name, tokens, tokens * 3 * geometry.m * kElementBytes,
            [&] { return cuda::SwiGlu(nullptr, tokens, args); });
  }

  // Every row by temperature and top_p: of logits as a language model's, whose most likely tokens
  // fit into one chunk of the kernel, and of flat ones, of which top_p keeps tens of thousands.
  void SampleTokens(int64_t count, bool flat) {
    Tensors tensors;
    cuda::SampleRow row;
    row.top_p = 0.9f;
    row.vocab_size = static_cast<int32_t>(kVocab);
    const std::vector<cuda::SampleRow> rows(count, row);
    cuda::SampleTokensArgs args;
    args.vocab = kVocab;
    args.logits = flat ? tensors.Floats(count * kVocab) : tensors.Logits(count * kVocab);
    args.rows = static_cast<const cuda::SampleRow*>(
        tensors.Bytes(rows.data(), rows.size() * sizeof(cuda::SampleRow)));
    args.workspace = tensors.Floats((cuda::SampleWorkspaceBytes(count, kVocab) + 3) / 4);
    args.id = reinterpret_cast<int32_t*>(tensors.Floats(count));
    args.logprob = tensors.Floats(count);
    Measure("SampleTokens", flat ? "top_p, flat" : "top_p", count, count * kVocab * 4,
            [&] { return cuda::SampleTokens(nullptr, count, args); });
  }

  const nlohmann::json& results() const { return results_; }

 private:
  const double copy_speed_ = CopySpeedOnGpu();
  nlohmann::json results_ = nlohmann::json::array();
};

const std::vector<FlagGroup>& FlagGroups() {
  static const auto& groups =
      *new std::vector<FlagGroup>{{"What", {"tokens", "context"}}, {"How", {"json"}}};
  return groups;
}

constexpr char kUsage[] =
    R"(Times the CUDA kernels beside a copy of a gigabyte, on the first GPU.

  cuda_kernels_benchmark --tokens=1,32,16384 --json=kernels.json

Exit codes: 0 when measured, 1 when there is no GPU or a kernel fails, 2 for a bad flag.
)";

const Program& ThisProgram() {
  static const auto& program = *new Program{"cuda_kernels_benchmark", FlagGroups(), kUsage};
  return program;
}

int Fail(absl::string_view what, int exit_code) {
  return Fail(ThisProgram(), absl::UnknownError(what), exit_code);
}

int Main(const std::vector<std::string>& arguments) {
  if (const std::optional<int> end = ReadCommandLine(ThisProgram(), arguments)) return *end;
  std::vector<int64_t> tokens;
  for (const absl::string_view text :
       absl::StrSplit(absl::GetFlag(FLAGS_tokens), ',', absl::SkipEmpty())) {
    int64_t count = 0;
    if (!absl::SimpleAtoi(text, &count) || count < 1 || count > 1 << 20) {
      return Fail(absl::StrCat("--tokens=", absl::GetFlag(FLAGS_tokens),
                               ": must be a list of numbers in 1...", 1 << 20),
                  kExitBadSetting);
    }
    tokens.push_back(count);
  }
  const int32_t context = absl::GetFlag(FLAGS_context);
  if (tokens.empty() || context < 0 || context > 1 << 20) {
    return Fail(absl::StrCat("--tokens must name a number, and --context=", context,
                             " must be in 0...", 1 << 20),
                kExitBadSetting);
  }
  if (const std::string why = WhyNoGpu(); !why.empty()) return Fail(why, kExitFailed);

  std::printf("%s\n%-16s %-22s %8s %12s %10s %10s %8s\n", GpuName().c_str(), "kernel", "case",
              "tokens", "us", "GB/s", "copy GB/s", "share");
  Benchmark benchmark;
  for (const int64_t count : tokens) {
    for (const Geometry& geometry : kGeometries) {
      for (const Variant& variant : kVariants) benchmark.DeltaStep(geometry, variant, count);
      benchmark.Attention(geometry, count, context);
      benchmark.SwiGlu(geometry, count);
    }
    if (count > kMostDecodes) continue;
    for (const bool flat : {false, true}) benchmark.SampleTokens(count, flat);
  }
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream file(path, std::ios::trunc);
    file << nlohmann::json({{"gpu", GpuName()}, {"results", benchmark.results()}}).dump(1) << "\n";
    if (!file.flush()) return Fail("cannot write " + path, kExitFailed);
  }
  return kExitDone;
}

}  // namespace
}  // namespace ddl::bench

int main(int argc, char** argv) {
  return ddl::bench::Main(std::vector<std::string>(argv + 1, argv + argc));
}
