#include "server/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/flags/reflection.h"
#include "server/flag_types.h"

namespace ddl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Flag files for the rows below, in a folder of the test's own.
class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() : folder_(::testing::TempDir() + "/ddl_flags_test") {
    std::filesystem::create_directories(folder_);
  }

  std::string File(const std::string& name, const std::string& content) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path) << content;
    return path;
  }

  // Flags are global; every reading starts from the defaults.
  static absl::StatusOr<CommandLine> Read(const std::vector<std::string>& arguments,
                                          const Environment& environment = {}) {
    const absl::FlagSaver restore_flags;
    return ReadCommandLine(arguments, environment);
  }

  const std::string folder_;
};

TEST_F(FlagsTest, Int8IsOfBFloat16OnTheCpu) {
  const auto read = Read({"--model=demo", "--quantization=int8"});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->config.quantization, Quantization::kInt8);
  EXPECT_EQ(read->config.dtype, RunnerDType::kBFloat16);
  EXPECT_EQ(read->config.device, RunnerDevice::kCpu);
}

TEST_F(FlagsTest, InstructionSetsGoByTheirNames) {
  const auto read = [&](const std::string& name) {
    return Read({"--model=demo"}, {{"DDL_INSTRUCTION_SET", name}}).value().config.instruction_set;
  };
  EXPECT_EQ(read("auto"), std::nullopt);
  for (const kernels::InstructionSet set : kernels::AllInstructionSets()) {
    EXPECT_EQ(read(kernels::Name(set)), set);
  }
}

TEST_F(FlagsTest, NeedsOnlyTheModel) {
  const auto read = Read({"--model=/models/demo"});
  ASSERT_TRUE(read.ok()) << read.status();
  const ServerConfig& config = read->config;
  ASSERT_EQ(config.models.size(), 1u);
  EXPECT_EQ(config.models[0].name, "demo");
  EXPECT_EQ(config.models[0].folder, "/models/demo");
  EXPECT_EQ(config.grpc_address, "0.0.0.0:8500");
  EXPECT_EQ(config.metrics_address, "0.0.0.0:9464");
  EXPECT_EQ(config.dtype, std::nullopt);
  EXPECT_EQ(config.instruction_set, std::nullopt);
  EXPECT_EQ(config.engine.max_running_sequences, 64);
  EXPECT_EQ(config.engine.max_waiting_requests, 256);
  EXPECT_EQ(config.kv_block_size, 16);
  EXPECT_EQ(config.kv_cache_bytes, std::nullopt);
  EXPECT_EQ(config.drain_timeout, absl::Seconds(20));
  EXPECT_EQ(config.drain_delay, absl::ZeroDuration());
  EXPECT_FALSE(config.obey_dv_shortconv_causal);
  EXPECT_EQ(config.max_client_batch_size, 512);
  EXPECT_TRUE(config.engine.prefix_cache);
  EXPECT_EQ(config.engine.max_decode_slowdown, 2);
  EXPECT_EQ(config.engine.priority_aging, absl::Seconds(10));
  EXPECT_EQ(config.engine.slow_reader_timeout, absl::Seconds(30));
  EXPECT_EQ(config.step_timeout, absl::Seconds(60));
  EXPECT_EQ(config.engine.gate_sample_interval, absl::Seconds(1));
}

TEST_F(FlagsTest, ServesSeveralModels) {
  const auto read = Read({"--model=/models/demo,small=/models/a,/models/b/"});
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->config.models.size(), 3u);
  EXPECT_EQ(read->config.models[0].name, "demo");  // the default
  EXPECT_EQ(read->config.models[1].name, "small");
  EXPECT_EQ(read->config.models[1].folder, "/models/a");
  EXPECT_EQ(read->config.models[2].name, "b");
}

TEST_F(FlagsTest, ReadsTheEnginesSettings) {
  const auto read =
      Read({"--model=demo", "--noprefix_cache", "--max_decode_slowdown=1.5", "--priority_aging=2m",
            "--slow_reader_timeout=250ms", "--gate_sample_interval=inf"});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->config.engine.prefix_cache);
  EXPECT_EQ(read->config.engine.max_decode_slowdown, 1.5);
  EXPECT_EQ(read->config.engine.priority_aging, absl::Minutes(2));
  EXPECT_EQ(read->config.engine.slow_reader_timeout, absl::Milliseconds(250));
  EXPECT_EQ(read->config.engine.gate_sample_interval, absl::InfiniteDuration());
}

// Which source of a flag wins. The flag is max_context_length, 0 by default.
TEST_F(FlagsTest, Precedence) {
  const std::string seven = File("seven", "# a comment\n\n  --max_context_length=7  \n");
  const std::string nested = File("nested", "--flagfile=" + seven + "\n--threads=3\n");
  struct Row {
    const char* what;
    std::vector<std::string> arguments;
    Environment environment;
    int32_t expected;
  };
  const Row rows[] = {
      {"default", {}, {}, 0},
      {"environment", {}, {{"DDL_MAX_CONTEXT_LENGTH", "5"}}, 5},
      {"empty name is not ours", {}, {{"DDL_", "5"}, {"MAX_CONTEXT_LENGTH", "5"}}, 0},
      {"variables of others", {}, {{"DDL_SERVER_PORT", "tcp://10.0.0.1:8500"}}, 0},
      {"command line", {"--max_context_length=6"}, {}, 6},
      {"value apart", {"--max_context_length", "6"}, {}, 6},
      {"one dash", {"-max_context_length=6"}, {}, 6},
      {"last word", {"--max_context_length=6", "--max_context_length=8"}, {}, 8},
      {"over environment", {"--max_context_length=6"}, {{"DDL_MAX_CONTEXT_LENGTH", "5"}}, 6},
      {"flagfile", {"--flagfile=" + seven}, {}, 7},
      {"flagfile apart", {"--flagfile", seven}, {}, 7},
      {"flagfile in a flagfile", {"--flagfile=" + nested}, {}, 7},
      {"two flagfiles",
       {"--flagfile=" + File("two", "--max_context_length=2") + "," + seven},
       {},
       7},
      {"after flagfile", {"--flagfile=" + seven, "--max_context_length=6"}, {}, 6},
      {"before flagfile", {"--max_context_length=6", "--flagfile=" + seven}, {}, 7},
      {"flagfile over environment", {"--flagfile=" + seven}, {{"DDL_MAX_CONTEXT_LENGTH", "5"}}, 7},
      {"flagfile in environment", {}, {{"DDL_FLAGFILE", seven}}, 7},
      {"environment over its flagfile",
       {},
       {{"DDL_FLAGFILE", seven}, {"DDL_MAX_CONTEXT_LENGTH", "5"}},
       5},
      {"empty flagfile", {"--flagfile=" + File("empty", "")}, {}, 0},
  };
  for (const Row& row : rows) {
    std::vector<std::string> arguments = {"--model=demo"};
    arguments.insert(arguments.end(), row.arguments.begin(), row.arguments.end());
    const auto read = Read(arguments, row.environment);
    ASSERT_TRUE(read.ok()) << row.what << ": " << read.status();
    EXPECT_EQ(read->config.engine.max_context_length, row.expected) << row.what;
  }
}

TEST_F(FlagsTest, Booleans) {
  struct Row {
    std::vector<std::string> arguments;
    bool expected;
  };
  const Row rows[] = {
      {{"--obey_dv_shortconv_causal"}, true},
      {{"--obey_dv_shortconv_causal=true"}, true},
      {{"--obey_dv_shortconv_causal=false"}, false},
      {{"--obey_dv_shortconv_causal", "--noobey_dv_shortconv_causal"}, false},
      // A boolean takes no argument of its own.
      {{"--obey_dv_shortconv_causal", "--threads=1"}, true},
  };
  for (const Row& row : rows) {
    std::vector<std::string> arguments = row.arguments;
    arguments.push_back("--model=demo");
    const auto read = Read(arguments);
    ASSERT_TRUE(read.ok()) << row.arguments[0] << ": " << read.status();
    EXPECT_EQ(read->config.obey_dv_shortconv_causal, row.expected) << row.arguments.back();
  }
}

TEST_F(FlagsTest, ReadsEveryKindOfValue) {
  const auto read = Read({"--model=demo", "--dtype=bfloat16", "--device=cpu",
                          "--kv_cache_memory=2GiB", "--drain_timeout=1m30s", "--log_level=warning",
                          "--grpc_address=[::1]:0", "--max_waiting_tokens=5000000000"});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->config.dtype, RunnerDType::kBFloat16);
  EXPECT_EQ(read->config.kv_cache_bytes, int64_t{2} << 30);
  EXPECT_EQ(read->config.drain_timeout, absl::Seconds(90));
  EXPECT_EQ(read->config.log_level, LogLevel::kWarning);
  EXPECT_EQ(read->config.grpc_address, "[::1]:0");
  EXPECT_EQ(read->config.engine.max_waiting_tokens, 5000000000);
}

TEST_F(FlagsTest, ReadsTheDevice) {
  const std::vector<std::pair<std::string, std::optional<RunnerDevice>>> rows = {
      {"auto", std::nullopt}, {"cpu", RunnerDevice::kCpu}, {"cuda", RunnerDevice::kCuda}};
  for (const auto& [word, device] : rows) {
    const auto read = Read({"--model=demo", "--device=" + word, "--gpu_memory_fraction=1"});
    ASSERT_TRUE(read.ok()) << word << ": " << read.status();
    EXPECT_EQ(read->config.device, device) << word;
    EXPECT_EQ(read->config.gpu_memory_fraction, 1.0) << word;
  }
}

// What is refused, and words that the message must hold.
TEST_F(FlagsTest, Refusals) {
  const std::string model = "--model=demo";
  const std::string self = folder_ + "/self";
  File("self", "--flagfile=" + self);
  struct Row {
    std::vector<std::string> arguments;
    Environment environment;
    std::vector<std::string> words;
  };
  const Row rows[] = {
      // Unknown flags.
      {{model, "--max_contxt_length=5"},
       {},
       {"--max_contxt_length", "did you mean --max_context_length?"}},
      {{model, "--modle=x"}, {}, {"did you mean --model?"}},
      {{model, "--max-context-length=5"}, {}, {"did you mean --max_context_length?"}},
      {{model, "--zzzzzzzzzz"}, {}, {"unknown flag --zzzzzzzzzz", "--help"}},
      {{model, "--nothreads"}, {}, {"unknown flag --nothreads"}},
      {{model, "--flagfile=" + File("typo", "\n--treads=2")},
       {},
       {"typo:2", "--treads", "--threads?"}},
      // Not flags.
      {{model, "extra"}, {}, {"unexpected argument 'extra'"}},
      {{model, "--"}, {}, {"unexpected argument '--'"}},
      {{model, "-"}, {}, {"unexpected argument '-'"}},
      {{model, "two\nlines"}, {}, {"unexpected argument 'two lines'"}},
      // Bad values.
      {{model, "--threads"}, {}, {"--threads lacks a value"}},
      {{model, "--threads="}, {}, {"threads"}},
      {{model, "--threads=many"}, {}, {"threads", "many"}},
      {{model, "--threads=99999999999"}, {}, {"threads"}},
      {{model, "--drain_timeout=5"}, {}, {"drain_timeout", "5"}},
      {{model, "--obey_dv_shortconv_causal=perhaps"}, {}, {"obey_dv_shortconv_causal", "perhaps"}},
      {{model, "--dtype=float16"}, {}, {"dtype", "auto, float32, bfloat16"}},
      {{model, "--instruction_set=sse"},
       {},
       {"instruction_set", "sse", "auto, portable, avx2, avx512, avx512_bf16, amx"}},
      {{model, "--instruction_set="}, {}, {"instruction_set"}},
      {{model, "--quantization=int4"}, {}, {"quantization", "none, int8"}},
      {{model, "--quantization=int8", "--dtype=float32"}, {}, {"int8", "--dtype is float32"}},
      {{model, "--quantization=int8", "--device=cuda"}, {}, {"int8", "--device is cuda"}},
      {{model, "--device=gpu"}, {}, {"device", "auto, cpu, cuda"}},
      {{model, "--device=cuda:1"}, {}, {"device", "auto, cpu, cuda"}},
      {{model, "--gpu_memory_fraction=0"}, {}, {"gpu_memory_fraction=0", "at most 1"}},
      {{model, "--gpu_memory_fraction=1.01"}, {}, {"gpu_memory_fraction=1.01"}},
      {{model, "--gpu_memory_fraction=nan"}, {}, {"gpu_memory_fraction=nan"}},
      {{model, "--gpu_memory_fraction=half"}, {}, {"gpu_memory_fraction", "half"}},
      {{model, "--log_level=verbose"}, {}, {"debug, info, warning, error"}},
      {{model, "--log_format=xml"}, {}, {"log_format", "text, json"}},
      {{model, "--max_message_bytes=1023"}, {}, {"--max_message_bytes=1023", "1024..."}},
      {{model, "--max_connection_memory=auto"}, {}, {"max_connection_memory", "512MiB"}},
      {{model, "--max_connection_memory=4MiB", "--max_message_bytes=4194305"},
       {},
       {"--max_connection_memory=4194304", "4194305..."}},
      {{model, "--max_concurrent_streams=0"}, {}, {"--max_concurrent_streams=0", "1..."}},
      {{model, "--max_connections=0"}, {}, {"--max_connections=0", "1..."}},
      {{model, "--max_connection_rate=-1"}, {}, {"--max_connection_rate=-1", "0..."}},
      {{model, "--max_connection_idle=0s"}, {}, {"--max_connection_idle=0", "1s...inf"}},
      {{model, "--handshake_timeout=inf"}, {}, {"--handshake_timeout=inf", "1s...24h"}},
      {{model, "--keepalive_timeout=0s"}, {}, {"--keepalive_timeout=0", "1s...24h"}},
      {{model, "--api_keys_reload_interval=0s"}, {}, {"--api_keys_reload_interval=0"}},
      {{model, "--kv_cache_memory=lots"}, {}, {"kv_cache_memory", "2GiB", "auto"}},
      {{model}, {{"DDL_THREADS", "many"}}, {"DDL_THREADS in the environment", "many"}},
      // Files.
      {{model, "--flagfile=/nowhere/flags"}, {}, {"cannot read '/nowhere/flags'"}},
      {{model, "--flagfile=" + folder_}, {}, {"cannot read"}},
      {{model, "--flagfile=" + self}, {}, {"flag files inside each other"}},
      // Impossible settings.
      {{}, {}, {"--model is required"}},
      {{"--model="}, {}, {"--model is required"}},
      {{"--model=a,x=a,a"}, {}, {"two models are called 'a'"}},
      {{model, "--slow_reader_timeout=0s"}, {}, {"--slow_reader_timeout=0", "1ms...24h"}},
      {{model, "--step_timeout=999ms"}, {}, {"--step_timeout=999ms", "1s...inf"}},
      {{model, "--priority_aging=0s"}, {}, {"--priority_aging=0", "1ms...inf"}},
      {{model, "--gate_sample_interval=-1s"}, {}, {"--gate_sample_interval=-1s", "0...inf"}},
      {{model, "--max_decode_slowdown=0.5"}, {}, {"--max_decode_slowdown=0.5", "1...1000"}},
      {{model, "--max_decode_slowdown=nan"}, {}, {"--max_decode_slowdown=nan", "1...1000"}},
      {{model, "--threads=-1"}, {}, {"--threads=-1", "0...1024"}},
      {{model, "--max_context_length=1"}, {}, {"at least 2"}},
      {{model, "--max_running_sequences=0"}, {}, {"--max_running_sequences=0", "1..."}},
      {{model, "--max_waiting_requests=0"}, {}, {"--max_waiting_requests=0", "1..."}},
      {{model, "--max_step_tokens=63"}, {}, {"--max_step_tokens=63", "--max_running_sequences=64"}},
      {{model, "--kv_block_size=0"}, {}, {"--kv_block_size=0"}},
      {{model, "--max_client_batch_size=0"}, {}, {"--max_client_batch_size=0"}},
      {{model, "--default_max_tokens=0"}, {}, {"--default_max_tokens=0"}},
      {{model, "--drain_timeout=-1s"}, {}, {"--drain_timeout=-1s"}},
      {{model, "--drain_delay=inf"}, {}, {"--drain_delay=inf"}},
      {{model, "--grpc_address=8500"}, {}, {"--grpc_address=8500", "HOST:PORT"}},
      {{model, "--grpc_address=:8500"}, {}, {"HOST:PORT"}},
      {{model, "--grpc_address=localhost:"}, {}, {"HOST:PORT"}},
      {{model, "--metrics_address=localhost:65536"}, {}, {"--metrics_address=localhost:65536"}},
  };
  for (const Row& row : rows) {
    const std::string what = row.arguments.empty() ? "(none)" : row.arguments.back();
    const auto read = Read(row.arguments, row.environment);
    ASSERT_FALSE(read.ok()) << what;
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << what;
    for (const std::string& word : row.words) {
      EXPECT_THAT(std::string(read.status().message()), HasSubstr(word)) << what;
    }
    EXPECT_THAT(std::string(read.status().message()), Not(HasSubstr("\n"))) << what;
  }
}

// A value that no flag may have is refused, the one next to it is not.
TEST_F(FlagsTest, Edges) {
  const std::vector<std::string> accepted[] = {{"--max_step_tokens=64"},
                                               {"--max_context_length=2"},
                                               {"--threads=1024"},
                                               {"--max_running_sequences=1", "--max_step_tokens=1"},
                                               {"--drain_timeout=0s"},
                                               {"--drain_timeout=24h"},
                                               {"--kv_block_size=1"},
                                               {"--max_connection_rate=0"},
                                               {"--grpc_address=localhost:65535"}};
  for (std::vector<std::string> arguments : accepted) {
    arguments.push_back("--model=demo");
    EXPECT_TRUE(Read(arguments).ok()) << arguments[0] << ": " << Read(arguments).status();
  }
}

TEST_F(FlagsTest, HelpAndVersionComeFirst) {
  EXPECT_EQ(Read({"--help"})->action, CommandLineAction::kHelp);
  EXPECT_EQ(Read({"--version"})->action, CommandLineAction::kVersion);
  EXPECT_EQ(Read({"--nonsense", "--help"})->action, CommandLineAction::kHelp);
  EXPECT_EQ(Read({"--help"}, {{"DDL_THREADS", "many"}})->action, CommandLineAction::kHelp);
  EXPECT_EQ(Read({"--flagfile=" + File("help", "--help")})->action, CommandLineAction::kHelp);
}

TEST_F(FlagsTest, HelpShowsEveryFlagOnce) {
  const std::string help = ServerHelpText();
  size_t ours = 0;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!std::string(flag->Filename()).ends_with("server/flags.cc")) continue;
    ++ours;
    const std::string line =
        "\n  --" + std::string(name) + (flag->DefaultValue().empty() ? "\n" : "=");
    const size_t found = help.find(line);
    EXPECT_NE(found, std::string::npos) << name;
    EXPECT_EQ(help.find(line, found + 1), std::string::npos) << name;
  }
  size_t grouped = 0;
  for (const FlagGroup& group : ServerFlagGroups()) grouped += group.flags.size();
  EXPECT_EQ(ours, grouped);
  EXPECT_THAT(help, HasSubstr("\nEngine:\n"));
  EXPECT_THAT(help, HasSubstr("--max_running_sequences=64\n"));
  EXPECT_THAT(help, HasSubstr("--kv_cache_memory=auto\n"));
  EXPECT_THAT(help, HasSubstr("--max_connection_memory=512MiB\n"));
}

TEST(ParseMemorySizeTest, Table) {
  struct Row {
    const char* text;
    int64_t expected;  // -1: refused
  };
  const Row rows[] = {
      {"1", 1},
      {"1B", 1},
      {"1KB", 1000},
      {"1KiB", 1024},
      {"512MiB", 512 << 20},
      {"2GiB", int64_t{2} << 30},
      {"1.5GB", 1500000000},
      {"1TiB", int64_t{1} << 40},
      {"0", -1},
      {"-1GiB", -1},
      {"", -1},
      {"GiB", -1},
      {"2gib", -1},
      {"2 G", -1},
      {"nan", -1},
      {"inf", -1},
      {"1e300GiB", -1},
      {"0.1B", -1},
  };
  for (const Row& row : rows) {
    const auto bytes = ParseMemorySize(row.text);
    EXPECT_EQ(bytes.value_or(-1), row.expected) << row.text;
  }
}

}  // namespace
}  // namespace ddl
