// Computes a checkpoint's logits as the server does, for programs that compare them:
// logits_driver FOLDER ID... prints [tokens, vocab] float32 in this machine's byte order. What the
// server would say of a folder that it refuses goes to stderr, and the exit code is 2.

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"

namespace ddl {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 2;
}

int Run(const char* folder, const std::vector<TokenId>& tokens) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  RunnerOptions options;
  options.kv_num_blocks = static_cast<int32_t>(tokens.size()) / options.kv_block_size + 1;
  options.max_sequences = 1;
  options.max_step_tokens = static_cast<int32_t>(tokens.size());
  options.max_context_length = options.max_step_tokens;
  options.num_threads = 1;
  const absl::StatusOr<std::unique_ptr<ModelRunner>> runner =
      ModelRunner::Create(std::make_shared<const Checkpoint>(*std::move(checkpoint)), options);
  if (!runner.ok()) return Fail(runner.status());
  std::vector<int32_t> blocks(static_cast<size_t>(options.kv_num_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  SequenceChunk chunk;
  chunk.tokens = tokens;
  chunk.block_table = blocks;
  chunk.logits = Rows::kAll;
  const absl::StatusOr<std::vector<ChunkOutput>> outputs = (*runner)->Forward({&chunk, 1});
  if (!outputs.ok()) return Fail(outputs.status());
  const ChunkOutput& output = outputs->front();
  if (!output.status.ok()) return Fail(output.status);
  std::fwrite(output.logits.data(), sizeof(float), output.logits.size(), stdout);
  return std::fflush(stdout) == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ddl

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: logits_driver FOLDER ID...\n");
    return 1;
  }
  std::vector<ddl::TokenId> tokens;
  for (int i = 2; i < argc; ++i) tokens.push_back(static_cast<ddl::TokenId>(std::atoi(argv[i])));
  return ddl::Run(argv[1], tokens);
}
