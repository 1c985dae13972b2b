#ifndef DDL_SERVER_CONFIG_H_
#define DDL_SERVER_CONFIG_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/command_line.h"
#include "model/model_runner.h"
#include "server/net/tls_files.h"
#include "server/telemetry/logging.h"

namespace ddl {

struct ModelSource {
  std::string name;  // what clients call it
  std::filesystem::path folder;
};

// Everything the server can be told, checked as far as possible without the checkpoint. The
// flags' help texts in config.cc say what each means.
struct ServerConfig {
  std::vector<ModelSource> models;  // at least one; the first is the default
  std::string grpc_address = "0.0.0.0:8500";
  std::string metrics_address = "0.0.0.0:9464";
  TlsFiles tls;
  absl::Duration tls_reload_interval = absl::Seconds(10);
  std::string api_keys_file;  // empty: nobody needs a key
  absl::Duration api_keys_reload_interval = absl::Seconds(10);
  bool reflection = true;

  int32_t max_message_bytes = 4 << 20;                 // of a message to the server
  int64_t max_connection_memory = int64_t{512} << 20;  // bytes, of all connections together
  int32_t max_concurrent_streams = 1024;
  int32_t max_connections = 1000;
  int32_t max_connection_rate = 50;  // new ones a second from one address; 0: any number
  absl::Duration max_connection_idle = absl::Minutes(5);
  absl::Duration max_connection_age = absl::InfiniteDuration();
  absl::Duration handshake_timeout = absl::Seconds(20);
  absl::Duration min_ping_interval = absl::Seconds(10);
  absl::Duration keepalive_interval = absl::Minutes(2);
  absl::Duration keepalive_timeout = absl::Seconds(20);

  std::optional<RunnerDevice> device;  // unset: the GPU where there is one
  double gpu_memory_fraction = 0.9;
  std::optional<RunnerDType> dtype;  // unset: as stored in the checkpoint
  Quantization quantization = Quantization::kNone;
  int num_threads = 0;  // 0: by the model's size
  bool obey_dv_shortconv_causal = false;

  int32_t max_context_length = 0;  // tokens; 0: block_size of the checkpoint
  int32_t max_running_sequences = 64;
  int32_t max_waiting_requests = 256;
  int64_t max_waiting_tokens = 262144;
  int32_t max_step_tokens = 512;
  int32_t kv_block_size = 16;             // tokens
  std::optional<int64_t> kv_cache_bytes;  // of each model; unset: chosen by the loader
  bool prefix_cache = true;
  double max_decode_slowdown = 2.0;
  absl::Duration priority_aging = absl::Seconds(10);
  absl::Duration slow_reader_timeout = absl::Seconds(30);
  absl::Duration step_timeout = absl::Seconds(60);
  absl::Duration gate_sample_interval = absl::Seconds(1);

  int32_t max_client_batch_size = 512;  // inputs per call
  int32_t default_max_tokens = 256;

  absl::Duration drain_timeout = absl::Seconds(20);
  absl::Duration drain_delay;
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
};

struct CommandLine {
  CommandLineAction action = CommandLineAction::kRun;
  ServerConfig config;  // with kRun and kCheck
};

// Reads the server's flags. INVALID_ARGUMENT, in one line, for what ParseCommandLine refuses and
// for settings that cannot be.
absl::StatusOr<CommandLine> ReadCommandLine(absl::Span<const std::string> arguments,
                                            const Environment& environment);

// The server's flags in the groups of --help: every flag that config.cc defines.
absl::Span<const FlagGroup> ServerFlagGroups();
std::string ServerHelpText();

// "[NAME=]DIR[,[NAME=]DIR...]". NAME defaults to the folder's name. What stands before a '=' is
// a name unless it holds a '/'.
absl::StatusOr<std::vector<ModelSource>> ParseModelSources(const std::string& text);

// "512MiB", "2GiB", "1.5GB", "1073741824" (bytes).
absl::StatusOr<int64_t> ParseMemorySize(const std::string& text);

// How large a K/V cache to make for one of `models` models when nobody says: room for `sequences`
// of `context` tokens, but at most its share of a quarter of `available` bytes (nullopt: unknown).
int64_t AutomaticKvCacheBytes(int64_t bytes_per_token, int64_t sequences, int64_t context,
                              std::optional<int64_t> available, int64_t models);

}  // namespace ddl

#endif  // DDL_SERVER_CONFIG_H_
