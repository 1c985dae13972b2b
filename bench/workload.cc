#include "bench/workload.h"

#include <algorithm>
#include <random>

namespace ddl::bench {
namespace {

std::mt19937_64 Seeded(uint64_t seed, uint64_t phase, uint64_t index) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  std::seed_seq sequence{low(seed), high(seed), low(phase), high(phase), low(index), high(index)};
  return std::mt19937_64(sequence);
}

constexpr uint64_t kPrefixPhase = ~uint64_t{0};

}  // namespace

Workload::Workload(WorkloadOptions options) : options_(std::move(options)) {
  std::mt19937_64 random = Seeded(options_.seed, kPrefixPhase, 0);
  std::uniform_int_distribution<uint32_t> token(0, options_.vocab_size - 1);
  for (int32_t i = 0; i < options_.shared_prefix_tokens; ++i) {
    shared_prefix_.push_back(token(random));
  }
}

void Workload::AppendPrompt(std::mt19937_64& random, ddl::v1::Input* input) const {
  const auto length = static_cast<size_t>(options_.prompt_tokens.Sample(random));
  std::uniform_int_distribution<uint32_t> token(0, options_.vocab_size - 1);
  auto* ids = input->mutable_token_ids()->mutable_ids();
  ids->Reserve(static_cast<int>(length));
  const size_t shared = std::min(length, shared_prefix_.size());
  ids->Add(shared_prefix_.begin(), shared_prefix_.begin() + static_cast<ptrdiff_t>(shared));
  for (size_t i = shared; i < length; ++i) ids->AddAlreadyReserved(token(random));
}

PlannedRequest Workload::Make(uint64_t phase, uint64_t index) const {
  std::mt19937_64 random = Seeded(options_.seed, phase, index);
  std::uniform_real_distribution<double> share(0.0, 1.0);
  const double embed = share(random);
  const double unary = share(random);
  PlannedRequest request;
  if (embed < options_.embed_share) {
    request.kind = RequestKind::kEmbed;
    request.embed.set_model(options_.model);
    for (int32_t i = 0; i < options_.inputs_per_embed; ++i) {
      AppendPrompt(random, request.embed.add_inputs());
    }
    return request;
  }
  request.kind = unary < options_.unary_share ? RequestKind::kUnary : RequestKind::kStream;
  ddl::v1::GenerateRequest& generate = request.generate;
  generate.set_model(options_.model);
  AppendPrompt(random, generate.mutable_prompt());
  generate.mutable_sampling()->set_temperature(options_.temperature);
  generate.mutable_sampling()->set_seed(random());
  generate.mutable_stopping()->set_max_tokens(
      static_cast<uint32_t>(options_.output_tokens.Sample(random)));
  generate.mutable_stopping()->set_ignore_eos(true);
  return request;
}

}  // namespace ddl::bench
