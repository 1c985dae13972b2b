#include "bench/workload.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ddl::bench {
namespace {

WorkloadOptions Options() {
  return {.model = "m",
          .vocab_size = 50,
          .prompt_tokens = *TokenLengths::Parse("4..9"),
          .output_tokens = *TokenLengths::Parse("3")};
}

std::vector<uint32_t> Ids(const ddl::v1::Input& input) {
  return {input.token_ids().ids().begin(), input.token_ids().ids().end()};
}

TEST(WorkloadTest, TheSameSeedPhaseAndIndexGiveTheSameRequest) {
  const Workload first(Options()), second(Options());
  std::set<std::vector<uint32_t>> prompts;
  for (const uint64_t phase : {0, 1}) {
    for (uint64_t index = 0; index < 50; ++index) {
      const PlannedRequest request = first.Make(phase, index);
      EXPECT_EQ(request.generate.SerializeAsString(),
                second.Make(phase, index).generate.SerializeAsString());
      prompts.insert(Ids(request.generate.prompt()));
    }
  }
  EXPECT_EQ(prompts.size(), 100u);  // and another one gives another
  WorkloadOptions other = Options();
  other.seed = 1;
  EXPECT_EQ(prompts.count(Ids(Workload(other).Make(0, 0).generate.prompt())), 0u);
}

TEST(WorkloadTest, RequestsAreAsAsked) {
  const Workload workload(Options());
  std::set<int> lengths;
  for (uint64_t index = 0; index < 200; ++index) {
    const PlannedRequest request = workload.Make(0, index);
    ASSERT_EQ(request.kind, RequestKind::kStream);
    EXPECT_EQ(request.generate.model(), "m");
    EXPECT_EQ(request.generate.stopping().max_tokens(), 3u);
    EXPECT_TRUE(request.generate.stopping().ignore_eos());
    EXPECT_EQ(request.generate.sampling().temperature(), 0.0f);
    for (const uint32_t id : Ids(request.generate.prompt())) EXPECT_LT(id, 50u);
    lengths.insert(request.generate.prompt().token_ids().ids_size());
  }
  EXPECT_EQ(lengths, (std::set<int>{4, 5, 6, 7, 8, 9}));
}

TEST(WorkloadTest, Shares) {
  WorkloadOptions options = Options();
  options.embed_share = 0.25;
  options.unary_share = 0.5;  // of what is no embed
  options.inputs_per_embed = 7;
  const Workload workload(options);
  std::map<RequestKind, int> counts;
  for (uint64_t index = 0; index < 4000; ++index) {
    const PlannedRequest request = workload.Make(0, index);
    ++counts[request.kind];
    if (request.kind == RequestKind::kEmbed) {
      EXPECT_EQ(request.embed.inputs_size(), 7);
    }
  }
  EXPECT_NEAR(counts[RequestKind::kEmbed], 1000, 150);
  EXPECT_NEAR(counts[RequestKind::kUnary], 1500, 150);
  EXPECT_NEAR(counts[RequestKind::kStream], 1500, 150);
}

TEST(WorkloadTest, SharedPrefix) {
  WorkloadOptions options = Options();
  options.shared_prefix_tokens = 6;  // more than some prompts have
  const Workload workload(options);
  const std::vector<uint32_t> longest = [&] {
    for (uint64_t index = 0;; ++index) {
      const auto ids = Ids(workload.Make(0, index).generate.prompt());
      if (ids.size() == 9) return ids;
    }
  }();
  std::set<std::vector<uint32_t>> ends;
  for (uint64_t index = 0; index < 100; ++index) {
    const auto ids = Ids(workload.Make(1, index).generate.prompt());
    for (size_t i = 0; i < std::min<size_t>(ids.size(), 6); ++i) EXPECT_EQ(ids[i], longest[i]);
    if (ids.size() == 9) ends.insert({ids.begin() + 6, ids.end()});
  }
  EXPECT_GT(ends.size(), 5u);
}

}  // namespace
}  // namespace ddl::bench
