#include "server/engine/gate_statistics.h"

namespace ddl {
namespace {

// A sample must not be felt: so many positions of a step, and no part of a longer chunk.
constexpr size_t kMaxPositions = 16;

size_t NumPositions(const SequenceChunk& chunk) { return chunk.tokens.size() - chunk.start; }

}  // namespace

std::vector<size_t> GateStatistics::Ask(absl::Time now, absl::Span<SequenceChunk> chunks) {
  std::vector<size_t> asked;
  if (interval_ == absl::InfiniteDuration() || now < next_) return asked;
  size_t left = kMaxPositions;
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (NumPositions(chunks[i]) > left) continue;
    left -= NumPositions(chunks[i]);
    chunks[i].ddl_stats = true;
    asked.push_back(i);
  }
  if (!asked.empty()) next_ = now + interval_;
  return asked;
}

void GateStatistics::Report(absl::Span<const size_t> asked, absl::Span<const ChunkOutput> outputs,
                            EngineObserver* observer) const {
  if (asked.empty()) return;
  for (size_t sublayer = 0; sublayer < num_sublayers_; ++sublayer) {
    std::vector<float> beta;
    std::vector<float> update_ratio;
    const auto append = [&](absl::Span<const float> all, std::vector<float>* to) {
      const size_t positions = all.size() / num_sublayers_;
      const auto own = all.subspan(sublayer * positions, positions);
      to->insert(to->end(), own.begin(), own.end());
    };
    for (const size_t i : asked) {
      append(outputs[i].beta, &beta);
      append(outputs[i].update_ratio, &update_ratio);
    }
    if (beta.empty()) return;  // a model without the delta rule
    observer->OnGateSample({.layer = static_cast<int32_t>(sublayer / 2),
                            .mlp = sublayer % 2 == 1,
                            .beta = beta,
                            .update_ratio = update_ratio});
  }
}

}  // namespace ddl
