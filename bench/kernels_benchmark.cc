// Times the kernels on one thread. Those between the matrix products do little arithmetic: with
// them stands the share that they reach of the speed of a plain copy of as many bytes, which is
// what there is to win. Matrix products report their operations per second, 2 n k of each row.
// --benchmark_filter=REGEX picks some; --help lists the rest.

#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/kernels/cpu/cpu_kernels.h"
#include "model/kernels/packed_batch.h"

namespace ddl::kernels {
namespace {

constexpr Type kTypes[] = {Type::kBFloat16, Type::kFloat32};
constexpr int64_t kTokens[] = {1, 32, 512};
constexpr int64_t kTaps = 4;  // of token and input convolutions, as in the paper

// Of the best instruction set, or of DDL_INSTRUCTION_SET in the environment.
const CpuKernels& BenchmarkedKernels() {
  static const std::unique_ptr<const CpuKernels> kernels = [] {
    InstructionSet chosen = BestInstructionSet();
    if (const char* const name = std::getenv("DDL_INSTRUCTION_SET"); name != nullptr) {
      for (const InstructionSet set : AllInstructionSets()) {
        if (std::string(Name(set)) == name) chosen = set;
      }
    }
    std::fprintf(stderr, "instruction set: %s\n", Name(chosen));
    return MakeCpuKernels(chosen, {});
  }();
  return *kernels;
}

// So many tokens, for ops that read nothing else of a batch.
Batch Tokens(int64_t tokens) {
  Batch batch;
  batch.tokens = tokens;
  return batch;
}

int64_t ElementBytes(Type type) { return type == Type::kFloat32 ? 4 : 2; }
std::string TypeName(Type type) { return type == Type::kFloat32 ? "float32" : "bfloat16"; }

// Processor time of this thread.
double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Bytes a second that memcpy moves, reads and writes together, when it moves about so many: from
// the cache or from memory, as the kernel's own data come. Measured once for each power of two.
double MemcpySpeed(int64_t bytes) {
  static std::map<int64_t, double>& measured = *new std::map<int64_t, double>();
  int64_t half = 1024;
  while (4 * half <= bytes) half *= 2;
  const auto found = measured.find(half);
  if (found != measured.end()) return found->second;
  const std::vector<char> from(half, 1);
  std::vector<char> to(half);
  const int64_t repeats = std::max<int64_t>(8, (int64_t{1} << 26) / half);
  double best = 0.0;
  for (int pass = 0; pass < 5; ++pass) {
    const double start = ThreadSeconds();
    for (int64_t i = 0; i < repeats; ++i) {
      std::memcpy(to.data(), from.data(), half);
      benchmark::DoNotOptimize(to.data());
      benchmark::ClobberMemory();
    }
    best = std::max(best, 2.0 * static_cast<double>(half * repeats) / (ThreadSeconds() - start));
  }
  return measured[half] = best;
}

// Runs `body` as often as `state` says. `bytes`: what one call has to read and to write at least
// once. Processor time, here and for memcpy: a busy machine must not look like slow kernels.
template <typename Body>
void Measure(benchmark::State& state, int64_t bytes, Body body) {
  const double copy = MemcpySpeed(bytes);
  const double start = ThreadSeconds();
  for (auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
  const double speed = static_cast<double>(state.iterations() * bytes) / (ThreadSeconds() - start);
  state.SetBytesProcessed(state.iterations() * bytes);
  state.counters["memcpy"] =
      benchmark::Counter(copy, benchmark::Counter::kDefaults, benchmark::Counter::kIs1024);
  state.counters["of_memcpy"] = speed / copy;
}

// A tensor of small random numbers.
class Tensor {
 public:
  Tensor(Type type, int64_t size) : bytes_(size * ElementBytes(type)) {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> value(-0.5f, 0.5f);
    for (int64_t i = 0; i < size; ++i) {
      const float number = value(random);
      uint32_t bits;
      std::memcpy(&bits, &number, sizeof(bits));
      const auto upper = static_cast<uint16_t>(bits >> 16);
      if (type == Type::kFloat32) {
        std::memcpy(bytes_.data() + 4 * i, &bits, 4);
      } else {
        std::memcpy(bytes_.data() + 2 * i, &upper, 2);
      }
    }
  }
  void* data() { return bytes_.data(); }
  float* floats() { return reinterpret_cast<float*>(bytes_.data()); }

 private:
  std::vector<char> bytes_;
};

Tensor Floats(int64_t size) { return Tensor(Type::kFloat32, size); }

constexpr int64_t kKvBlockSize = 16;  // positions

// `sequences` of `length` rows each that end at position `context - 1`, no two in one K/V block.
PackedBatch MakeBatch(int64_t sequences, int64_t length, int64_t context) {
  const int64_t blocks = (context + kKvBlockSize - 1) / kKvBlockSize;  // of a sequence
  PackedBatch packed(blocks);
  for (int64_t s = 0; s < sequences; ++s) {
    std::vector<int32_t> table(blocks);
    for (int64_t b = 0; b < blocks; ++b) table[b] = static_cast<int32_t>(b * sequences + s);
    packed.AddSequence(static_cast<int32_t>(s), table);
    for (int64_t i = context - length; i < context; ++i) packed.AddRow(static_cast<int32_t>(i));
  }
  return packed;
}

// Elements of the keys of all its positions.
int64_t CacheSize(const Batch& batch, int64_t inner) {
  return batch.sequences * batch.block_table_stride * kKvBlockSize * inner;
}

// A few tokens are a decode step's, a sequence each; many are a chunk of one prompt.
std::pair<int64_t, int64_t> SequencesAndLength(int64_t tokens) {
  return tokens <= 32 ? std::pair{tokens, int64_t{1}} : std::pair{int64_t{1}, tokens};
}

// ---- The kernels

void RunDeltaStep(benchmark::State& state, Type type, Compress compress, int64_t tokens, int64_t d,
                  int64_t dv) {
  const auto [sequences, length] = SequencesAndLength(tokens);
  const PackedBatch packed = MakeBatch(sequences, length, std::max<int64_t>(length, 128));
  const Batch batch = packed.batch();
  Tensor x(type, tokens * d * dv), h(type, tokens * d), x_in(type, tokens * d), c(type, tokens * d);
  Tensor compress_weight = Floats(kTaps * d * dv), tail = Floats(sequences * (kTaps - 1) * d);
  Tensor norm = Floats(d), beta_weight = Floats(d), v_weight = Floats(dv * d), v_bias = Floats(dv);
  Tensor v = Floats(tokens * dv), beta = Floats(tokens);
  DeltaStepArgs args;
  args.type = type;
  args.d = d;
  args.dv = dv;
  args.x = x.data();
  args.rewrite = Rewrite::kDelta;
  args.h = h.data();
  args.k_eps = 1e-5f;
  args.compress = compress;
  args.compress_weight = compress == Compress::kIdentity ? nullptr : compress_weight.floats();
  args.taps = compress == Compress::kToken ? kTaps : 0;
  if (compress == Compress::kToken) {
    args.tail = tail.floats();
    args.tail_stride = (kTaps - 1) * d;
  }
  args.norm_weight = norm.floats();
  args.norm_eps = 1e-5f;
  args.gates = true;
  args.gate.beta_weight = beta_weight.floats();
  args.gate.v_weight = v_weight.floats();
  args.gate.v_bias = v_bias.floats();
  args.gate.v_scale = 4.0f;
  args.x_in = compress == Compress::kIdentity ? nullptr : x_in.data();
  args.c = c.data();
  args.v = v.floats();
  args.beta = beta.floats();
  // X in and out, h, c; then the weights, which count when there are few tokens.
  int64_t bytes = tokens * d * (2 * dv + 2) * ElementBytes(type) + (2 + dv) * d * 4;
  if (compress == Compress::kChannel) bytes += d * dv * 4;
  if (compress == Compress::kToken) {
    bytes += kTaps * d * dv * 4 + 2 * sequences * (kTaps - 1) * d * 4;
  }
  Measure(state, bytes, [&] { BenchmarkedKernels().DeltaStep(batch, args); });
}

void RunAttentionInput(benchmark::State& state, Type type, int64_t tokens, int64_t heads) {
  constexpr int64_t kHeadDim = 128;
  const auto [sequences, length] = SequencesAndLength(tokens);
  const int64_t context = std::max<int64_t>(length, 128);
  const PackedBatch packed = MakeBatch(sequences, length, context);
  const Batch batch = packed.batch();
  const int64_t inner = heads * kHeadDim;
  Tensor c(type, tokens * inner), qkv(type, tokens * 3 * inner);
  Tensor cos = Floats(context * kHeadDim / 2), sin = Floats(context * kHeadDim / 2);
  Tensor q_norm = Floats(kHeadDim), k_norm = Floats(kHeadDim);
  const int64_t cache = CacheSize(batch, inner);
  Tensor k(type, cache), v(type, cache);
  AttentionInputArgs args;
  args.type = type;
  args.d = inner;
  args.heads = heads;
  args.head_dim = kHeadDim;
  args.c = c.data();
  args.qkv = qkv.data();
  args.rotary_dims = kHeadDim;
  args.rope_cos = cos.floats();
  args.rope_sin = sin.floats();
  args.q_norm = q_norm.floats();
  args.k_norm = k_norm.floats();
  args.norm_eps = 1e-5f;
  args.cache = {k.data(), v.data(), kKvBlockSize};
  // q, k, v in; q, and k, v to the cache
  Measure(state, tokens * 6 * inner * ElementBytes(type),
          [&] { BenchmarkedKernels().AttentionInput(batch, args); });
}

// `length` rows of each of `sequences`, the last at position `context - 1`.
void RunPagedAttention(benchmark::State& state, Type type, int64_t sequences, int64_t length,
                       int64_t context) {
  constexpr int64_t kHeads = 6, kHeadDim = 128, kInner = kHeads * kHeadDim;
  const PackedBatch packed = MakeBatch(sequences, length, context);
  const Batch batch = packed.batch();
  const int64_t tokens = batch.tokens;
  Tensor q(type, tokens * 3 * kInner), y(type, tokens * kInner);
  const int64_t cache = CacheSize(batch, kInner);
  Tensor k(type, cache), v(type, cache);
  PagedAttentionArgs args;
  args.type = type;
  args.heads = kHeads;
  args.head_dim = kHeadDim;
  args.q = q.data();
  args.q_stride = 3 * kInner;
  args.cache = {k.data(), v.data(), kKvBlockSize};
  args.y = y.data();
  // Keys and values of each sequence once, q and y. A chunk of a prompt is bound by arithmetic.
  Measure(state, (sequences * context * 2 * kInner + 2 * tokens * kInner) * ElementBytes(type),
          [&] { BenchmarkedKernels().PagedAttention(batch, args); });
}

void RunSwiGlu(benchmark::State& state, Type type, int64_t tokens, int64_t m) {
  Tensor ab(type, tokens * 2 * m), y(type, tokens * m);
  SwiGluArgs args;
  args.type = type;
  args.m = m;
  args.ab = ab.data();
  args.y = y.data();
  Measure(state, tokens * 3 * m * ElementBytes(type),
          [&] { BenchmarkedKernels().SwiGlu(Tokens(tokens), args); });
}

void RunExpandInput(benchmark::State& state, Type type, int64_t tokens, int64_t d, int64_t dv) {
  constexpr int64_t kVocab = 4096;
  Tensor embedding(type, kVocab * d), x(type, tokens * d * dv), conv = Floats(d * dv * kTaps);
  std::mt19937 random(2);
  std::vector<int32_t> ids(tokens * kTaps);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % kVocab);
  ExpandInputArgs args;
  args.type = type;
  args.d = d;
  args.dv = dv;
  args.taps = kTaps;
  args.embedding = embedding.data();
  args.conv = conv.floats();
  args.ids = ids.data();
  args.x = x.data();
  Measure(state, tokens * d * (kTaps + dv) * ElementBytes(type) + d * dv * kTaps * 4,
          [&] { BenchmarkedKernels().ExpandInput(Tokens(tokens), args); });
}

void RunSoftmaxWeights(benchmark::State& state, int64_t n) {
  Tensor logits = Floats(n), weights = Floats(n);
  float sum = 0.0f;
  Measure(state, 2 * n * 4, [&] {
    sum += BenchmarkedKernels().SoftmaxWeights(logits.floats(), n, 0.5f, 1.0f, weights.floats());
  });
  benchmark::DoNotOptimize(sum);
}

template <typename Body>
void Register(const std::string& name, Body body) {
  benchmark::RegisterBenchmark(name.c_str(), body);
}

void CountOperations(benchmark::State& state, int64_t rows, int64_t n, int64_t k) {
  const double operations = 2.0 * static_cast<double>(rows * n * k);
  state.counters["operations_per_second"] = benchmark::Counter(
      operations, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

void RunMatMul(benchmark::State& state, WeightType type, int64_t rows, int64_t n, int64_t k) {
  const Type x_type = type == WeightType::kFloat32 ? Type::kFloat32 : Type::kBFloat16;
  Tensor w(x_type, n * k), x(x_type, rows * k), y(Type::kBFloat16, rows * n);
  const CpuKernels& kernels = BenchmarkedKernels();
  const int64_t bytes = kernels.PackedBytes(type, n, k);
  std::vector<char> packed(bytes + 64);
  std::vector<float> scales(PaddedColumns(n));
  std::vector<int32_t> sums(PaddedColumns(n));
  char* const aligned = packed.data() + (64 - reinterpret_cast<uintptr_t>(packed.data()) % 64);
  MatMulArgs args;
  args.weight = {type, n, k, aligned, scales.data(), sums.data()};
  const WeightRows part = {w.data(), n};
  kernels.Pack(&part, 1, args.weight);
  args.x = x.data();
  args.y = y.data();
  Measure(state, bytes + rows * (n * 2 + k * ElementBytes(x_type)),
          [&] { kernels.MatMul(rows, args); });
  CountOperations(state, rows, n, k);
}

std::string Slash(const std::vector<std::string>& parts) {
  std::string name;
  for (const std::string& part : parts) {
    if (!name.empty()) name.push_back('/');
    name.append(part);
  }
  return name;
}

std::string N(const char* what, int64_t value) {
  std::string name(what);
  name.append(":").append(std::to_string(value));
  return name;
}

void RegisterAll() {
  struct CompressRow {
    const char* name;
    Compress compress;
    int64_t dv;
  };
  const CompressRow compresses[] = {
      {"identity", Compress::kIdentity, 1}, {"channel", Compress::kChannel, 2},
      {"channel", Compress::kChannel, 4},   {"channel", Compress::kChannel, 8},
      {"token", Compress::kToken, 2},       {"token", Compress::kToken, 4},
      {"token", Compress::kToken, 8},
  };
  for (const Type type : kTypes) {
    for (const int64_t d : {768, 1024}) {
      for (const CompressRow& row : compresses) {
        for (const int64_t tokens : kTokens) {
          Register(Slash({"DeltaStep", row.name, TypeName(type), N("d", d), N("dv", row.dv),
                          N("tokens", tokens)}),
                   [=](benchmark::State& state) {
                     RunDeltaStep(state, type, row.compress, tokens, d, row.dv);
                   });
        }
      }
    }
    for (const int64_t heads : {6, 8}) {
      for (const int64_t tokens : kTokens) {
        Register(Slash({"AttentionInput", TypeName(type), N("heads", heads), N("tokens", tokens)}),
                 [=](benchmark::State& state) { RunAttentionInput(state, type, tokens, heads); });
      }
    }
    for (const int64_t sequences : {1, 8, 32}) {
      for (const int64_t context : {128, 512, 1024}) {
        Register(Slash({"PagedAttention/decode", TypeName(type), N("sequences", sequences),
                        N("context", context)}),
                 [=](benchmark::State& state) {
                   RunPagedAttention(state, type, sequences, 1, context);
                 });
      }
    }
    for (const int64_t context : {512, 1024}) {
      Register(
          Slash({"PagedAttention/prefill", TypeName(type), N("chunk", 512), N("context", context)}),
          [=](benchmark::State& state) { RunPagedAttention(state, type, 1, 512, context); });
    }
    for (const int64_t tokens : kTokens) {
      for (const int64_t m : {2048, 2730}) {
        Register(Slash({"SwiGlu", TypeName(type), N("m", m), N("tokens", tokens)}),
                 [=](benchmark::State& state) { RunSwiGlu(state, type, tokens, m); });
      }
      for (const int64_t dv : {1, 4, 8}) {
        Register(
            Slash({"ExpandInput", TypeName(type), N("d", 768), N("dv", dv), N("tokens", tokens)}),
            [=](benchmark::State& state) { RunExpandInput(state, type, tokens, 768, dv); });
      }
    }
  }
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{4096, 768}, {768, 2048}}) {
    for (const int64_t rows : {1, 2, 4, 8, 16, 32, 512}) {
      for (const auto& [name, type] : {std::pair{"float32", WeightType::kFloat32},
                                       {"bfloat16", WeightType::kBFloat16},
                                       {"int8", WeightType::kInt8}}) {
        Register(Slash({"MatMul", name, N("n", n), N("k", k), N("rows", rows)}),
                 [=](benchmark::State& state) { RunMatMul(state, type, rows, n, k); });
      }
    }
  }
  Register(Slash({"SoftmaxWeights", N("n", 50304)}),
           [](benchmark::State& state) { RunSoftmaxWeights(state, 50304); });
}

}  // namespace
}  // namespace ddl::kernels

int main(int argc, char** argv) {
  ddl::kernels::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
