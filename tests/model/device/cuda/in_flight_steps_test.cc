// Steps that are begun before the one before is finished, through the ModelRunner: the bits of
// steps one by one, with and without graphs, and what becomes of steps when one fails.

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "model/model_runner.h"
#include "tests/model/device/cuda/golden_on_cuda.h"
#include "tests/model/device/cuda/runtime_on_host.h"

namespace ddl {
namespace {

constexpr int32_t kBlockSize = 4;
constexpr int32_t kBlocks = 8;  // of a sequence
constexpr int32_t kSlots = 6;

class CudaInFlightStepsTest : public testing::Test {
 protected:
  ~CudaInFlightStepsTest() override { cuda_runtime::on_host = {}; }

  static std::unique_ptr<ModelRunner> Open(const std::string& name) {
    return OpenGoldenOnCuda(name, {kBlockSize, kBlocks, kSlots, /*max_step_tokens=*/64});
  }
};

// Completions that begin in different steps. One samples at random, one has its prompt computed in
// chunks, and one loses what it has computed while its last token is being sampled, and is computed
// anew elsewhere, all in one chunk.
class Completions {
 public:
  Completions(ModelRunner* runner, bool ahead) : runner_(*runner), ahead_(ahead) {
    random_.seed = 11;
    greedy_.temperature = 0.0f;
    const int32_t prompts[] = {5, 9, 3, 6};
    for (int32_t i = 0; i < 4; ++i) {
      Sequence& sequence = sequences_.emplace_back();
      sequence.tokens.reserve(kBlockSize * kBlocks);  // chunks refer to it
      for (int32_t n = 0; n < prompts[i]; ++n) {
        sequence.tokens.push_back((i * 31 + n * 7 + 3) % 50);
      }
      sequence.prompt = prompts[i];
      sequence.begins_at = i == 3 ? 2 : i / 2;
      sequence.Take(i);
    }
    sequences_[1].longest_chunk = 4;
  }

  // What every completion has sampled, ids and the bits of logprobs.
  std::vector<std::vector<int32_t>> Run() {
    for (int32_t step = 0; step < 11; ++step) {
      if (step == 5) sequences_[2].Take(4);
      std::vector<SequenceChunk> chunks;
      Step begun;
      for (size_t i = 0; i < sequences_.size(); ++i) {
        Sequence& sequence = sequences_[i];
        if (step < sequence.begins_at || sequence.computed == sequence.size()) continue;
        AddChunk(i, chunks, begun);
      }
      runner_.Begin(chunks);
      for (const BegunChunk& chunk : begun) {
        if (chunk.samples) sequences_[chunk.sequence].tokens.push_back(-1);
      }
      steps_.push_back(std::move(begun));
      if (steps_.size() == (ahead_ ? 2u : 1u)) Finish();
    }
    while (!steps_.empty()) Finish();
    std::vector<std::vector<int32_t>> sampled;
    for (const Sequence& sequence : sequences_) sampled.push_back(sequence.sampled);
    return sampled;
  }

 private:
  struct Sequence {
    int32_t size() const { return static_cast<int32_t>(tokens.size()); }
    // Begins to compute in another slot and other blocks.
    void Take(int32_t new_slot) {
      slot = new_slot;
      computed = 0;
      block_tables.emplace_back();
      for (int32_t n = 0; n < kBlocks; ++n) block_tables.back().push_back(n * kSlots + slot);
    }

    std::vector<TokenId> tokens;
    int32_t prompt = 0, known = 0, computed = 0, slot = 0, begins_at = 0, longest_chunk = 64;
    std::deque<std::vector<int32_t>> block_tables;  // the last is its own
    int32_t place = 0;                              // in the step begun last
    std::vector<int32_t> sampled;
  };
  struct BegunChunk {
    size_t sequence = 0;
    bool samples = false;
  };
  using Step = std::vector<BegunChunk>;  // by chunk

  void AddChunk(size_t i, std::vector<SequenceChunk>& chunks, Step& begun) {
    Sequence& sequence = sequences_[i];
    const int32_t end = std::min(sequence.size(), sequence.computed + sequence.longest_chunk);
    SequenceChunk& chunk = chunks.emplace_back();
    chunk.tokens = absl::MakeConstSpan(sequence.tokens).first(end);
    chunk.start = sequence.computed;
    chunk.block_table = sequence.block_tables.back();
    chunk.slot = sequence.slot;
    const bool samples = end == sequence.size();
    if (samples && sequence.tokens.back() == -1) chunk.last_token_from = sequence.place;
    if (samples) {
      SampleRequest& sample = chunk.sample.emplace();
      sample.params = i == 0 ? &random_ : &greedy_;
      sample.index = static_cast<uint64_t>(sequence.size() - sequence.prompt);
      sample.vocab_size = static_cast<TokenId>(runner_.description().vocab_size);
    }
    sequence.place = static_cast<int32_t>(begun.size());
    sequence.computed = end;
    begun.push_back({i, samples});
  }

  void Finish() {
    const auto outputs = runner_.Finish();
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    for (size_t n = 0; n < steps_.front().size(); ++n) {
      const BegunChunk& chunk = steps_.front()[n];
      const ChunkOutput& output = (*outputs)[n];
      ASSERT_TRUE(output.status.ok()) << output.status;
      ASSERT_EQ(output.sampled.has_value(), chunk.samples);
      if (!chunk.samples) continue;
      Sequence& sequence = sequences_[chunk.sequence];
      *std::find(sequence.tokens.begin(), sequence.tokens.end(), -1) = output.sampled->id;
      int32_t bits = 0;
      std::memcpy(&bits, &output.sampled->logprob, sizeof(bits));
      sequence.sampled.insert(sequence.sampled.end(), {output.sampled->id, bits});
    }
    steps_.pop_front();
  }

  ModelRunner& runner_;
  const bool ahead_;
  SamplingParams random_, greedy_;
  std::deque<Sequence> sequences_;
  std::deque<Step> steps_;  // begun, not finished
};

TEST_F(CudaInFlightStepsTest, ChangeNoBit) {
  for (const std::string model :
       {"gpt_base", "vdim1_base", "cc_base", "ccec_base", "tc_base", "tcec_base", "tcec_v_shift"}) {
    for (const bool graphs : {true, false}) {
      const std::string what = model + (graphs ? ", graphs" : ", no graphs");
      cuda_runtime::on_host.capture_error = graphs ? "" : "no graphs here";
      const auto runner = Open(model);
      ASSERT_EQ(runner->description().max_in_flight_steps, 2);
      const std::vector<std::vector<int32_t>> one_by_one = Completions(runner.get(), false).Run();
      const int replays = cuda_runtime::on_host.replays;
      EXPECT_EQ(Completions(runner.get(), true).Run(), one_by_one) << what;
      EXPECT_EQ(cuda_runtime::on_host.replays > replays, graphs) << what;
      for (const std::vector<int32_t>& sampled : one_by_one) EXPECT_GE(sampled.size(), 14u) << what;
    }
  }
}

// Two steps of one sequence, the second begun from what the first samples.
class TwoSteps {
 public:
  explicit TwoSteps(ModelRunner* runner) : runner_(*runner) {
    greedy_.temperature = 0.0f;
    chunk_.tokens = absl::MakeConstSpan(tokens_).first(3);
    chunk_.block_table = blocks_;
    chunk_.sample.emplace().params = &greedy_;
    chunk_.sample->vocab_size = static_cast<TokenId>(runner->description().vocab_size);
  }
  void BeginFirst() { runner_.Begin({&chunk_, 1}); }
  void BeginSecond() {
    chunk_.tokens = tokens_;
    chunk_.start = 3;
    chunk_.last_token_from = 0;
    chunk_.sample->index = 1;
    runner_.Begin({&chunk_, 1});
  }

 private:
  ModelRunner& runner_;
  SamplingParams greedy_;
  const std::vector<TokenId> tokens_ = {3, 1, 4, -1};
  const std::vector<int32_t> blocks_ = {0};
  SequenceChunk chunk_;
};

TEST_F(CudaInFlightStepsTest, AFailureEndsItsOwnStep) {
  using Code = absl::StatusCode;
  struct Row {
    std::string name;
    // What goes wrong there.
    std::string first_launch = {}, second_launch = {}, first_wait = {}, second_wait = {};
    bool lost = false;
    Code first = Code::kOk, second = Code::kOk;
  };
  const std::vector<Row> rows = {
      {"nothing"},
      {"launching the first", "no", "", "", "", false, Code::kInternal, Code::kInternal},
      {"launching the second", "", "no", "", "", false, Code::kOk, Code::kInternal},
      {"the first while it runs", "", "", "no", "", false, Code::kInternal, Code::kOk},
      {"the second while it runs", "", "", "", "no", false, Code::kOk, Code::kInternal},
      {"the device, in the first", "", "", "no", "no", true, Code::kUnavailable,
       Code::kUnavailable},
      {"the device, launching the second", "", "no", "no", "", true, Code::kUnavailable,
       Code::kUnavailable},
  };
  const auto runner = Open("tcec_base");
  cuda_runtime::OnHost& device = cuda_runtime::on_host;
  for (const Row& row : rows) {
    TwoSteps steps(runner.get());
    device.stream_error = row.first_launch;
    steps.BeginFirst();
    device.stream_error = row.second_launch;
    if (row.lost) device.health = absl::UnavailableError("an illegal memory access");
    steps.BeginSecond();
    device.stream_error.clear();
    device.wait_error = row.first_wait;
    EXPECT_EQ(runner->Finish().status().code(), row.first) << row.name;
    device.wait_error = row.second_wait;
    EXPECT_EQ(runner->Finish().status().code(), row.second) << row.name;
    device = {};
    // Whatever it was, it is over.
    TwoSteps next(runner.get());
    next.BeginFirst();
    EXPECT_TRUE(runner->Finish().ok()) << row.name;
  }
}

// Each copy is a node of its own between two steps: one for all of a step's arrays, where ids that
// are not known yet come from and go to among them, one for how its rows sample; one brings tokens
// back.
TEST_F(CudaInFlightStepsTest, ADecodeSendsTwoCopiesAndBringsOneBack) {
  for (const bool graphs : {true, false}) {
    cuda_runtime::OnHost& device = cuda_runtime::on_host;
    device.capture_error = graphs ? "" : "no graphs here";
    const auto runner = Open("tcec_base");
    for (const bool captured : {false, true}) {
      TwoSteps steps(runner.get());
      steps.BeginFirst();
      const int to_device = device.copies_to_device, to_host = device.copies_to_host;
      steps.BeginSecond();
      // Capturing, or finding out that nothing can be, sends arrays of its own.
      if (captured) {
        EXPECT_EQ(device.copies_to_device - to_device, 2);
        EXPECT_EQ(device.copies_to_host - to_host, 1);
      }
      EXPECT_TRUE(runner->Finish().ok());
      EXPECT_TRUE(runner->Finish().ok());
    }
  }
}

// A prompt's chunks bring nothing, but they take their time.
TEST_F(CudaInFlightStepsTest, AStepThatSamplesNothingIsWaitedForToo) {
  const auto runner = Open("ccec_base");
  const std::vector<TokenId> tokens = {9, 8, 7};
  const std::vector<int32_t> blocks = {1};
  SequenceChunk chunk;
  chunk.tokens = tokens;
  chunk.block_table = blocks;
  runner->Begin({&chunk, 1});
  cuda_runtime::on_host.wait_error = "no";
  EXPECT_EQ(runner->Finish().status().code(), absl::StatusCode::kInternal);
}

// Steps in which the host has a part are computed in their turn.
TEST_F(CudaInFlightStepsTest, HostWorkIsDoneInStepOrder) {
  const auto runner = Open("tcec_base");
  TwoSteps steps(runner.get());
  steps.BeginFirst();
  const std::vector<TokenId> tokens = {9, 8, 7};
  const std::vector<int32_t> blocks = {1};
  SequenceChunk chunk;
  chunk.tokens = tokens;
  chunk.block_table = blocks;
  chunk.slot = 1;
  chunk.hidden = Rows::kAll;
  for (const bool stats : {false, true}) {
    if (stats) steps.BeginFirst();
    chunk.ddl_stats = stats;
    runner->Begin({&chunk, 1});
    const auto first = runner->Finish();
    ASSERT_TRUE(first.ok());
    const auto second = runner->Finish();
    ASSERT_TRUE(second.ok());
    const auto alone = runner->Forward({&chunk, 1});
    ASSERT_TRUE(alone.ok());
    EXPECT_FALSE(alone->front().hidden.empty());
    EXPECT_EQ(second->front().hidden, alone->front().hidden) << stats;
    EXPECT_EQ(second->front().beta, alone->front().beta) << stats;
  }
}

}  // namespace
}  // namespace ddl
