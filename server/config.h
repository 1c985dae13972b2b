#ifndef DDL_SERVER_CONFIG_H_
#define DDL_SERVER_CONFIG_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/runner_options.h"
#include "server/engine/engine_options.h"
#include "server/net/connection_options.h"
#include "server/net/tls_files.h"
#include "server/telemetry/logging.h"

namespace ddl {

// Whether a model's folder is searched for a tokenizer: kNone serves token ids only.
enum class TokenizerChoice { kAuto, kNone };

struct ModelSource {
  std::string name;  // what clients call it
  std::filesystem::path folder;
};

// The server's configuration, checked as far as possible without the checkpoint. The flags' help
// texts in flags.cc say what each means.
struct ServerConfig {
  std::vector<ModelSource> models;  // at least one; the first is the default
  std::string grpc_address = "0.0.0.0:8500";
  std::string metrics_address = "0.0.0.0:9464";
  TlsFiles tls;
  absl::Duration tls_reload_interval = absl::Seconds(10);
  std::string api_keys_file;  // empty: nobody needs a key
  absl::Duration api_keys_reload_interval = absl::Seconds(10);
  bool reflection = true;

  int32_t max_message_bytes = 4 << 20;  // of a message to the server
  ConnectionOptions connections;

  std::optional<RunnerDevice> device;  // unset: the GPU where there is one
  double gpu_memory_fraction = 0.9;
  bool deterministic = true;         // on a GPU, too: RunnerOptions::batch_invariant
  std::optional<RunnerDType> dtype;  // unset: as stored in the checkpoint
  Quantization quantization = Quantization::kNone;
  std::optional<kernels::InstructionSet> instruction_set;  // unset: the best that works
  int num_threads = 0;                                     // 0: by the model's size
  bool obey_dv_shortconv_causal = false;
  TokenizerChoice tokenizer = TokenizerChoice::kAuto;

  // max_context_length: 0 for the block_size of the checkpoint. Its functions are the server's.
  EngineOptions engine = {.max_context_length = 0};
  int32_t kv_block_size = 16;             // tokens
  std::optional<int64_t> kv_cache_bytes;  // of each model; unset: chosen by the loader
  absl::Duration step_timeout = absl::Seconds(60);

  int32_t max_client_batch_size = 512;  // inputs per call
  int32_t default_max_tokens = 256;

  absl::Duration drain_timeout = absl::Seconds(20);
  absl::Duration drain_delay;
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
};

// What each setting says of others. INVALID_ARGUMENT, in one line, for settings that contradict
// each other.
absl::Status Complete(ServerConfig* config);

// "[NAME=]DIR[,[NAME=]DIR...]". NAME defaults to the folder's name. What stands before a '=' is
// a name unless it holds a '/'. A text that as a whole names a folder is that folder, whatever
// characters it holds, and so is what follows "NAME=".
absl::StatusOr<std::vector<ModelSource>> ParseModelSources(const std::string& text);

}  // namespace ddl

#endif  // DDL_SERVER_CONFIG_H_
