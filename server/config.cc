#include "server/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <system_error>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

// Types of flags that are one of a few words. Abseil finds the functions by their names.
namespace ddl::flags {

enum class Device { kAuto, kCpu, kCuda };
enum class DType { kAuto, kFloat32, kBFloat16 };
enum class Weights { kNone, kInt8 };
// Bytes.
struct Memory {
  int64_t bytes = 0;
};
// 0 is "auto".
struct CacheMemory {
  int64_t bytes = 0;
};

template <typename Value>
struct Word {
  const char* text;
  Value value;
};

template <typename Value, size_t kSize>
bool ParseWord(const Word<Value> (&words)[kSize], absl::string_view text, Value* value,
               std::string* error) {
  for (const Word<Value>& word : words) {
    if (text == word.text) {
      *value = word.value;
      return true;
    }
    absl::StrAppend(error, error->empty() ? "must be " : ", ", word.text);
  }
  return false;
}

template <typename Value, size_t kSize>
std::string UnparseWord(const Word<Value> (&words)[kSize], Value value) {
  for (const Word<Value>& word : words) {
    if (word.value == value) return word.text;
  }
  return "";
}

constexpr Word<Device> kDevices[] = {
    {"auto", Device::kAuto}, {"cpu", Device::kCpu}, {"cuda", Device::kCuda}};
constexpr Word<DType> kDTypes[] = {
    {"auto", DType::kAuto}, {"float32", DType::kFloat32}, {"bfloat16", DType::kBFloat16}};

bool AbslParseFlag(absl::string_view text, Device* device, std::string* error) {
  return ParseWord(kDevices, text, device, error);
}
std::string AbslUnparseFlag(Device device) { return UnparseWord(kDevices, device); }

bool AbslParseFlag(absl::string_view text, DType* dtype, std::string* error) {
  return ParseWord(kDTypes, text, dtype, error);
}
std::string AbslUnparseFlag(DType dtype) { return UnparseWord(kDTypes, dtype); }

constexpr Word<Weights> kWeights[] = {{"none", Weights::kNone}, {"int8", Weights::kInt8}};

bool AbslParseFlag(absl::string_view text, Weights* weights, std::string* error) {
  return ParseWord(kWeights, text, weights, error);
}
std::string AbslUnparseFlag(Weights weights) { return UnparseWord(kWeights, weights); }

// `otherwise` goes on with what is allowed.
bool ParseBytes(absl::string_view text, const char* otherwise, int64_t* bytes, std::string* error) {
  const absl::StatusOr<int64_t> parsed = ParseMemorySize(std::string(text));
  if (parsed.ok()) {
    *bytes = *parsed;
  } else {
    *error = absl::StrCat(parsed.status().message(), otherwise);
  }
  return parsed.ok();
}

bool AbslParseFlag(absl::string_view text, Memory* memory, std::string* error) {
  return ParseBytes(text, "", &memory->bytes, error);
}
std::string AbslUnparseFlag(Memory memory) {
  constexpr int64_t kMebibyte = 1 << 20;
  return memory.bytes % kMebibyte == 0 ? absl::StrCat(memory.bytes / kMebibyte, "MiB")
                                       : absl::StrCat(memory.bytes);
}

bool AbslParseFlag(absl::string_view text, CacheMemory* memory, std::string* error) {
  if (text != "auto") return ParseBytes(text, ", or auto", &memory->bytes, error);
  memory->bytes = 0;
  return true;
}
std::string AbslUnparseFlag(CacheMemory memory) {
  return memory.bytes == 0 ? "auto" : absl::StrCat(memory.bytes);
}

}  // namespace ddl::flags

namespace ddl {

constexpr flags::Word<LogLevel> kLogLevels[] = {{"debug", LogLevel::kDebug},
                                                {"info", LogLevel::kInfo},
                                                {"warning", LogLevel::kWarning},
                                                {"error", LogLevel::kError}};
bool AbslParseFlag(absl::string_view text, LogLevel* level, std::string* error) {
  return flags::ParseWord(kLogLevels, text, level, error);
}
std::string AbslUnparseFlag(LogLevel level) { return flags::UnparseWord(kLogLevels, level); }

constexpr flags::Word<LogFormat> kLogFormats[] = {{"text", LogFormat::kText},
                                                  {"json", LogFormat::kJson}};
bool AbslParseFlag(absl::string_view text, LogFormat* format, std::string* error) {
  return flags::ParseWord(kLogFormats, text, format, error);
}
std::string AbslUnparseFlag(LogFormat format) { return flags::UnparseWord(kLogFormats, format); }

}  // namespace ddl

ABSL_FLAG(std::string, model, "",
          "Required. The checkpoints to serve: [NAME=]DIR[,[NAME=]DIR...]. DIR holds config.json, "
          "the weights and, for text, the tokenizer. NAME is what clients call it and defaults to "
          "the folder's name. The first is the default model. Each has its own queue and K/V "
          "cache; their steps are computed one at a time.");
ABSL_FLAG(
    ddl::flags::Device, device, ddl::flags::Device::kAuto,
    "Where to compute: auto (the GPU where there is one and the program was built with CUDA), "
    "cpu or cuda. CUDA_VISIBLE_DEVICES says which GPU.");
ABSL_FLAG(double, gpu_memory_fraction, 0.9,
          "How much of the GPU's memory may be in use, by anyone, once the K/V cache has taken its "
          "part: that is what weights and the largest step leave. More than 0, at most 1.");
ABSL_FLAG(ddl::flags::DType, dtype, ddl::flags::DType::kAuto,
          "Type of activations, cache and large weights: auto (bfloat16 for checkpoints stored in "
          "it, else float32), float32 or bfloat16.");
ABSL_FLAG(
    ddl::flags::Weights, quantization, ddl::flags::Weights::kNone,
    "Of the matrix products: none, or int8: weights with a scale for each output, activations "
    "to 8 bits as they come. Half the memory, and faster; what it costs in accuracy is in "
    "docs/performance.md. On the CPU; activations are bfloat16.");
ABSL_FLAG(
    int32_t, threads, 0,
    "Threads that compute. 0: one for every 16 million parameters of the model, at most one for "
    "each processor that affinity and control groups let the process use; with several models, "
    "as many as the first needs.");
ABSL_FLAG(bool, obey_dv_shortconv_causal, false,
          "Obey ddl_state_dv_shortconv_causal of config.json, as the official accelerated code "
          "does. The official eager code ignores the key, and so does the server by default.");

ABSL_FLAG(std::string, grpc_address, "0.0.0.0:8500",
          "HOST:PORT that gRPC listens on. Port 0 picks a free one and logs it.");
ABSL_FLAG(
    std::string, metrics_address, "0.0.0.0:9464",
    "HOST:PORT of the HTTP pages: /metrics for Prometheus, /livez and /readyz for probes. Port "
    "0 picks a free one and logs it. They have no TLS and want no key.");
ABSL_FLAG(std::string, tls_certificate, "",
          "PEM file with the server's certificate chain: gRPC then speaks TLS only. Replace the "
          "file, and new connections use the new certificate.");
ABSL_FLAG(std::string, tls_private_key, "", "PEM file with the key of --tls_certificate.");
ABSL_FLAG(std::string, tls_client_ca, "",
          "PEM file with the authorities of client certificates: clients then need one (mutual "
          "TLS).");
ABSL_FLAG(absl::Duration, tls_reload_interval, absl::Seconds(10),
          "How often the files of TLS are looked at for a change.");

ABSL_FLAG(std::string, api_keys_file, "",
          "File of the keys that calls need, as 'authorization: Bearer KEY': a line for each, NAME "
          "sha256:HEX [priority=high] [requests_per_minute=N] [tokens_per_minute=N]. Replace the "
          "file, and the new keys are in force. Health checks need none. Empty: nobody needs one.");
ABSL_FLAG(absl::Duration, api_keys_reload_interval, absl::Seconds(10),
          "How often the file of keys is looked at for a change.");
ABSL_FLAG(bool, reflection, true,
          "Tell whoever asks, key or not, what services and messages there are.");

ABSL_FLAG(int32_t, max_message_bytes, 4 << 20,
          "Longest message that a client may send; a longer one is refused with "
          "RESOURCE_EXHAUSTED. Answers have no bound.");
ABSL_FLAG(ddl::flags::Memory, max_connection_memory, {int64_t{512} << 20},
          "Memory for what clients have sent and calls have not taken yet, of all connections "
          "together, such as 512MiB. Past it the calls that hold most are dropped.");
ABSL_FLAG(int32_t, max_concurrent_streams, 1024,
          "Calls that may run at a time on one connection; clients hold back more.");
ABSL_FLAG(int32_t, max_connections, 1000,
          "Connections that may stand at a time; more are closed as soon as they come. Each takes "
          "a file descriptor.");
ABSL_FLAG(int32_t, max_connection_rate, 50,
          "New connections a second from one address (of IPv6: from one /64). So many may come at "
          "once; more wait for their turn, and are closed where that is over 10 seconds away. 0: "
          "any number, for instance behind a proxy that opens a connection for each call.");
ABSL_FLAG(absl::Duration, max_connection_idle, absl::Minutes(5),
          "Connections without a call for so long are asked to go; clients come back when they "
          "have one. inf: never.");
ABSL_FLAG(absl::Duration, max_connection_age, absl::InfiniteDuration(),
          "Connections older than this are asked to go, once their calls have ended; clients come "
          "back through the load balancer, and reach new replicas. inf: never.");
ABSL_FLAG(absl::Duration, handshake_timeout, absl::Seconds(20),
          "How long a new connection may take until it speaks HTTP/2.");
ABSL_FLAG(absl::Duration, min_ping_interval, absl::Seconds(10),
          "Clients that send keepalive pings more often, with nothing else, lose their connection: "
          "GOAWAY, too_many_pings.");
ABSL_FLAG(absl::Duration, keepalive_interval, absl::Minutes(2),
          "How long a connection may be silent before the server pings it, to notice clients that "
          "are gone. inf: never.");
ABSL_FLAG(absl::Duration, keepalive_timeout, absl::Seconds(20),
          "How long a client may take to answer such a ping.");

ABSL_FLAG(int32_t, max_context_length, 0,
          "Longest sequence, prompt and completion together, in tokens. 0: block_size of the "
          "checkpoint's config.json, the context that the model was trained for.");
ABSL_FLAG(int32_t, max_client_batch_size, 512,
          "Most inputs in one Embed, Score, Tokenize or Detokenize.");
ABSL_FLAG(int32_t, default_max_tokens, 256,
          "Longest completion, in tokens, for requests that leave max_tokens unset.");

ABSL_FLAG(int32_t, max_running_sequences, 64, "Sequences that are computed at the same time.");
ABSL_FLAG(int32_t, max_waiting_requests, 256,
          "Requests that may wait. More are refused with RESOURCE_EXHAUSTED, QUEUE_FULL.");
ABSL_FLAG(int64_t, max_waiting_tokens, 262144,
          "Prompt tokens of all waiting requests together. More are refused with "
          "RESOURCE_EXHAUSTED, TOKENS_FULL.");
ABSL_FLAG(int32_t, max_step_tokens, 512,
          "Positions computed in one step: one for each running completion, and chunks of prompts "
          "with what is left. Larger prefills faster; smaller keeps streams smoother beside long "
          "prompts. At least max_running_sequences.");
ABSL_FLAG(
    double, max_decode_slowdown, 2,
    "While completions are being decoded, a step takes so many prompt positions that it lasts "
    "at most this many times a step without any. Larger prefills faster; smaller keeps "
    "streams smoother beside long prompts. At least 1.");
ABSL_FLAG(absl::Duration, priority_aging, absl::Seconds(10),
          "A request that has waited this long rises one priority class, and again after as long, "
          "so that none waits for ever.");
ABSL_FLAG(int32_t, kv_block_size, 16, "Tokens per block of the K/V cache.");
ABSL_FLAG(ddl::flags::CacheMemory, kv_cache_memory, {},
          "Memory for the K/V cache of each model, such as 512MiB or 2GiB. auto: enough for "
          "max_running_sequences of max_context_length, but all models together at most a quarter "
          "of the memory that is available; on a GPU by gpu_memory_fraction.");
ABSL_FLAG(bool, prefix_cache, true,
          "Keep the K/V blocks of ended requests while there is room, and use them for requests "
          "whose prompts begin with the same tokens.");

ABSL_FLAG(absl::Duration, slow_reader_timeout, absl::Seconds(30),
          "How long a stream may be paused because its client does not read. Then it ends with "
          "RESOURCE_EXHAUSTED, SLOW_READER.");
ABSL_FLAG(absl::Duration, step_timeout, absl::Seconds(60),
          "How long a step may run before health says NOT_SERVING, until it ends. After twice as "
          "long /livez fails too, so that an orchestrator restarts the server. Steps that take "
          "turns with other models' count from when they wait. inf: for ever.");
ABSL_FLAG(absl::Duration, gate_sample_interval, absl::Seconds(1),
          "How often the gates of a step go to the metrics ddl_beta_gate and "
          "ddl_state_update_ratio; inf: never.");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(20),
          "After SIGTERM, how long running calls may take to finish, such as 20s or 2m.");
ABSL_FLAG(absl::Duration, drain_delay, absl::ZeroDuration(),
          "After SIGTERM, how long new calls are still accepted while health already says "
          "NOT_SERVING, so that load balancers can notice.");
ABSL_FLAG(bool, check, false,
          "Do all that a start does, but listen on no port and serve nobody: read the settings, "
          "the files of TLS and the checkpoints, load and warm up the models. Then print a line "
          "for each model and exit with code 0, or with the message and code of the start that "
          "would fail. Takes the memory and time of a start.");
ABSL_FLAG(ddl::LogLevel, log_level, ddl::LogLevel::kInfo,
          "Least severe lines to log to stderr: debug, info, warning or error.");
ABSL_FLAG(ddl::LogFormat, log_format, ddl::LogFormat::kText,
          "text, or json: an object a line. Either has a line for each call, at level info.");

namespace ddl {
namespace {

constexpr char kUsage[] =
    "Serves Deep Delta Learning models over gRPC.\n"
    "\n"
    "  ddl_server --model=[NAME=]DIR[,[NAME=]DIR...] [--flag=value ...]\n"
    "\n"
    "Every flag can also be set by DDL_<FLAG> in the environment, for instance DDL_MODEL; the\n"
    "command line wins. --flagfile=FILE reads flags from a file, one per line, as if they stood\n"
    "in its place. --version prints the version.\n"
    "\n"
    "Exit codes: 0 after SIGTERM or SIGINT, 1 when an address cannot be listened on, the device\n"
    "fails or a stop is stuck, 2 for a bad flag or a checkpoint that cannot be served. SIGUSR1 "
    "sets\n"
    "the log level to debug, SIGUSR2 sets it back to --log_level.\n";

// A whole number that a flag may have.
template <typename Number>
struct Range {
  const char* flag;
  Number value;
  Number least;
  Number most;
};

template <typename Number>
absl::Status CheckRange(const Range<Number>& range) {
  if (range.value >= range.least && range.value <= range.most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", range.flag, "=", range.value, ": must be ",
                                                 range.least, "...", range.most));
}

absl::Status CheckNumbers(const ServerConfig& config) {
  constexpr int32_t kMaxInt = std::numeric_limits<int32_t>::max();
  const Range<int64_t> ranges[] = {
      {"threads", config.num_threads, 0, 1024},
      {"max_context_length", config.max_context_length, 0, 1 << 20},
      {"max_client_batch_size", config.max_client_batch_size, 1, 1 << 16},
      {"default_max_tokens", config.default_max_tokens, 1, kMaxInt},
      {"max_running_sequences", config.max_running_sequences, 1, 1 << 16},
      {"max_waiting_requests", config.max_waiting_requests, 1, 1 << 20},
      {"max_waiting_tokens", config.max_waiting_tokens, 1, int64_t{1} << 40},
      {"max_step_tokens", config.max_step_tokens, 1, 1 << 20},
      {"kv_block_size", config.kv_block_size, 1, 1024},
      {"max_message_bytes", config.max_message_bytes, 1024, kMaxInt},
      {"max_connection_memory", config.max_connection_memory, config.max_message_bytes,
       int64_t{1} << 50},
      {"max_concurrent_streams", config.max_concurrent_streams, 1, kMaxInt},
      {"max_connections", config.max_connections, 1, 1 << 20},
      {"max_connection_rate", config.max_connection_rate, 0, 1 << 20},
  };
  for (const Range<int64_t>& range : ranges) {
    if (absl::Status status = CheckRange(range); !status.ok()) return status;
  }
  if (config.max_step_tokens < config.max_running_sequences) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max_step_tokens=", config.max_step_tokens, " is less than --max_running_sequences=",
        config.max_running_sequences, ": a step computes one position for each of them"));
  }
  if (!(config.max_decode_slowdown >= 1 && config.max_decode_slowdown <= 1000)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max_decode_slowdown=", config.max_decode_slowdown, ": must be 1...1000"));
  }
  if (!(config.gpu_memory_fraction > 0 && config.gpu_memory_fraction <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu_memory_fraction=", config.gpu_memory_fraction,
                     ": must be more than 0 and at most 1"));
  }
  if (config.max_context_length == 1) {
    return absl::InvalidArgumentError(
        "--max_context_length=1: must be at least 2, a prompt token and a generated one");
  }
  return absl::OkStatus();
}

// `least` and `most` are allowed.
absl::Status CheckQuantization(const ServerConfig& config) {
  if (config.quantization == Quantization::kNone) return absl::OkStatus();
  if (config.dtype == RunnerDType::kFloat32) {
    return absl::InvalidArgumentError(
        "--quantization=int8 takes bfloat16 activations, but --dtype is float32");
  }
  if (config.device == RunnerDevice::kCuda) {
    return absl::InvalidArgumentError("--quantization=int8 is for the CPU, but --device is cuda");
  }
  return absl::OkStatus();
}

absl::Status CheckDuration(const char* flag, absl::Duration value,
                           absl::Duration least = absl::ZeroDuration(),
                           absl::Duration most = absl::Hours(24)) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", absl::FormatDuration(value),
                                                 ": must be ", absl::FormatDuration(least), "...",
                                                 absl::FormatDuration(most)));
}

absl::Status CheckAddress(const char* flag, const std::string& address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon != std::string::npos && colon > 0 &&
      absl::SimpleAtoi(address.substr(colon + 1), &port) && port <= 65535) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--", flag, "=", address, ": must be HOST:PORT, for instance 0.0.0.0:8500 or [::]:8500"));
}

ServerConfig ConfigFromFlags() {
  ServerConfig config;
  config.grpc_address = absl::GetFlag(FLAGS_grpc_address);
  config.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  config.tls = {.certificate = absl::GetFlag(FLAGS_tls_certificate),
                .private_key = absl::GetFlag(FLAGS_tls_private_key),
                .client_ca = absl::GetFlag(FLAGS_tls_client_ca)};
  config.tls_reload_interval = absl::GetFlag(FLAGS_tls_reload_interval);
  config.api_keys_file = absl::GetFlag(FLAGS_api_keys_file);
  config.api_keys_reload_interval = absl::GetFlag(FLAGS_api_keys_reload_interval);
  config.reflection = absl::GetFlag(FLAGS_reflection);
  config.max_message_bytes = absl::GetFlag(FLAGS_max_message_bytes);
  config.max_connection_memory = absl::GetFlag(FLAGS_max_connection_memory).bytes;
  config.max_concurrent_streams = absl::GetFlag(FLAGS_max_concurrent_streams);
  config.max_connections = absl::GetFlag(FLAGS_max_connections);
  config.max_connection_rate = absl::GetFlag(FLAGS_max_connection_rate);
  config.max_connection_idle = absl::GetFlag(FLAGS_max_connection_idle);
  config.max_connection_age = absl::GetFlag(FLAGS_max_connection_age);
  config.handshake_timeout = absl::GetFlag(FLAGS_handshake_timeout);
  config.min_ping_interval = absl::GetFlag(FLAGS_min_ping_interval);
  config.keepalive_interval = absl::GetFlag(FLAGS_keepalive_interval);
  config.keepalive_timeout = absl::GetFlag(FLAGS_keepalive_timeout);
  switch (absl::GetFlag(FLAGS_dtype)) {
    case flags::DType::kAuto:
      break;
    case flags::DType::kFloat32:
      config.dtype = RunnerDType::kFloat32;
      break;
    case flags::DType::kBFloat16:
      config.dtype = RunnerDType::kBFloat16;
      break;
  }
  switch (absl::GetFlag(FLAGS_device)) {
    case flags::Device::kAuto:
      break;
    case flags::Device::kCpu:
      config.device = RunnerDevice::kCpu;
      break;
    case flags::Device::kCuda:
      config.device = RunnerDevice::kCuda;
      break;
  }
  if (absl::GetFlag(FLAGS_quantization) == flags::Weights::kInt8) {
    config.quantization = Quantization::kInt8;
    // What it is made of and where it runs, unless a flag contradicts: CheckQuantization.
    if (!config.dtype.has_value()) config.dtype = RunnerDType::kBFloat16;
    if (!config.device.has_value()) config.device = RunnerDevice::kCpu;
  }
  config.gpu_memory_fraction = absl::GetFlag(FLAGS_gpu_memory_fraction);
  config.num_threads = absl::GetFlag(FLAGS_threads);
  config.obey_dv_shortconv_causal = absl::GetFlag(FLAGS_obey_dv_shortconv_causal);
  config.max_context_length = absl::GetFlag(FLAGS_max_context_length);
  config.max_client_batch_size = absl::GetFlag(FLAGS_max_client_batch_size);
  config.default_max_tokens = absl::GetFlag(FLAGS_default_max_tokens);
  config.max_running_sequences = absl::GetFlag(FLAGS_max_running_sequences);
  config.max_waiting_requests = absl::GetFlag(FLAGS_max_waiting_requests);
  config.max_waiting_tokens = absl::GetFlag(FLAGS_max_waiting_tokens);
  config.max_step_tokens = absl::GetFlag(FLAGS_max_step_tokens);
  config.kv_block_size = absl::GetFlag(FLAGS_kv_block_size);
  if (const auto memory = absl::GetFlag(FLAGS_kv_cache_memory); memory.bytes > 0) {
    config.kv_cache_bytes = memory.bytes;
  }
  config.prefix_cache = absl::GetFlag(FLAGS_prefix_cache);
  config.max_decode_slowdown = absl::GetFlag(FLAGS_max_decode_slowdown);
  config.priority_aging = absl::GetFlag(FLAGS_priority_aging);
  config.slow_reader_timeout = absl::GetFlag(FLAGS_slow_reader_timeout);
  config.step_timeout = absl::GetFlag(FLAGS_step_timeout);
  config.gate_sample_interval = absl::GetFlag(FLAGS_gate_sample_interval);
  config.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  config.drain_delay = absl::GetFlag(FLAGS_drain_delay);
  config.log_level = absl::GetFlag(FLAGS_log_level);
  config.log_format = absl::GetFlag(FLAGS_log_format);
  return config;
}

}  // namespace

absl::Span<const FlagGroup> ServerFlagGroups() {
  static const auto* const groups = new std::vector<FlagGroup>{
      {"Model",
       {"model", "device", "gpu_memory_fraction", "dtype", "quantization", "threads",
        "obey_dv_shortconv_causal"}},
      {"Addresses",
       {"grpc_address", "metrics_address", "tls_certificate", "tls_private_key", "tls_client_ca",
        "tls_reload_interval"}},
      {"Callers", {"api_keys_file", "api_keys_reload_interval", "reflection"}},
      {"Connections",
       {"max_message_bytes", "max_connection_memory", "max_concurrent_streams", "max_connections",
        "max_connection_rate", "max_connection_idle", "max_connection_age", "handshake_timeout",
        "min_ping_interval", "keepalive_interval", "keepalive_timeout"}},
      {"Requests", {"max_context_length", "max_client_batch_size", "default_max_tokens"}},
      {"Engine",
       {"max_running_sequences", "max_waiting_requests", "max_waiting_tokens", "max_step_tokens",
        "max_decode_slowdown", "priority_aging", "kv_block_size", "kv_cache_memory",
        "prefix_cache"}},
      {"Operation",
       {"slow_reader_timeout", "step_timeout", "drain_timeout", "drain_delay",
        "gate_sample_interval", "log_level", "log_format", "check"}},
  };
  return *groups;
}

std::string ServerHelpText() { return HelpText(ServerFlagGroups(), kUsage); }

absl::StatusOr<CommandLine> ReadCommandLine(absl::Span<const std::string> arguments,
                                            const Environment& environment) {
  absl::StatusOr<CommandLineAction> action =
      ParseCommandLine(ServerFlagGroups(), arguments, environment);
  if (!action.ok()) return action.status();
  if (*action != CommandLineAction::kRun) return CommandLine{*action, {}};

  if (absl::GetFlag(FLAGS_check)) action = CommandLineAction::kCheck;
  CommandLine command_line{*action, ConfigFromFlags()};
  ServerConfig& config = command_line.config;
  absl::StatusOr<std::vector<ModelSource>> models = ParseModelSources(absl::GetFlag(FLAGS_model));
  if (!models.ok()) return models.status();
  config.models = *std::move(models);
  for (const absl::Status& status :
       {CheckAddress("grpc_address", config.grpc_address),
        CheckAddress("metrics_address", config.metrics_address), CheckNumbers(config),
        CheckQuantization(config),
        CheckDuration("priority_aging", config.priority_aging, absl::Milliseconds(1),
                      absl::InfiniteDuration()),
        CheckDuration("slow_reader_timeout", config.slow_reader_timeout, absl::Milliseconds(1)),
        CheckDuration("step_timeout", config.step_timeout, absl::Seconds(1),
                      absl::InfiniteDuration()),
        CheckDuration("gate_sample_interval", config.gate_sample_interval, absl::ZeroDuration(),
                      absl::InfiniteDuration()),
        CheckDuration("tls_reload_interval", config.tls_reload_interval, absl::Seconds(1)),
        CheckDuration("api_keys_reload_interval", config.api_keys_reload_interval,
                      absl::Milliseconds(1)),
        CheckDuration("max_connection_idle", config.max_connection_idle, absl::Seconds(1),
                      absl::InfiniteDuration()),
        CheckDuration("max_connection_age", config.max_connection_age, absl::Seconds(1),
                      absl::InfiniteDuration()),
        CheckDuration("handshake_timeout", config.handshake_timeout, absl::Seconds(1)),
        CheckDuration("min_ping_interval", config.min_ping_interval),
        CheckDuration("keepalive_interval", config.keepalive_interval, absl::Seconds(1),
                      absl::InfiniteDuration()),
        CheckDuration("keepalive_timeout", config.keepalive_timeout, absl::Seconds(1)),
        CheckDuration("drain_timeout", config.drain_timeout),
        CheckDuration("drain_delay", config.drain_delay)}) {
    if (!status.ok()) return status;
  }
  return command_line;
}

absl::StatusOr<std::vector<ModelSource>> ParseModelSources(const std::string& text) {
  if (text.empty()) {
    return absl::InvalidArgumentError(
        "--model is required: --model=DIR, a folder with config.json and the weights");
  }
  std::vector<ModelSource> models;
  std::set<std::string> names;
  for (const absl::string_view entry : absl::StrSplit(text, ',')) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    const bool named = absl::StrContains(entry, '=') && !absl::StrContains(parts.first, '/');
    const std::string folder = named ? parts.second : std::string(entry);
    if (folder.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model=", text, ": an entry without a folder"));
    }
    std::error_code ignored;
    std::filesystem::path absolute = std::filesystem::absolute(folder, ignored).lexically_normal();
    if (!absolute.has_filename()) absolute = absolute.parent_path();  // "models/demo/"
    const std::string name = named ? parts.first : absolute.filename().string();
    const bool plain =
        !name.empty() && name.size() <= 128 && std::all_of(name.begin(), name.end(), [](char c) {
          return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                 absl::StrContains("._-:@+", c);
        });
    if (!plain || name == "unknown") {
      return absl::InvalidArgumentError(absl::StrCat(
          "--model=", text, ": '", name,
          "' cannot be a model's name: up to 128 letters, digits and . _ - : @ +, and not "
          "'unknown'; NAME=DIR gives it another"));
    }
    if (!names.insert(name).second) {
      return absl::InvalidArgumentError(absl::StrCat("--model=", text, ": two models are called '",
                                                     name, "'; NAME=DIR gives one another name"));
    }
    models.push_back({name, folder});
  }
  return models;
}

absl::StatusOr<int64_t> ParseMemorySize(const std::string& text) {
  constexpr std::pair<const char*, double> kUnits[] = {
      {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
      {"KB", 1e3},     {"MB", 1e6},        {"GB", 1e9},           {"TB", 1e12},
      {"B", 1.0}};
  absl::string_view number = text;
  double unit = 1.0;
  for (const auto& [suffix, bytes] : kUnits) {
    if (absl::ConsumeSuffix(&number, suffix)) {
      unit = bytes;
      break;
    }
  }
  double value = 0.0;
  if (!absl::SimpleAtod(number, &value) || !(value * unit >= 1.0) || value * unit > 1e15) {
    return absl::InvalidArgumentError(
        "must be a size of at least one byte, such as 512MiB, 2GiB or 1073741824");
  }
  return static_cast<int64_t>(value * unit);
}

int64_t AutomaticKvCacheBytes(int64_t bytes_per_token, int64_t sequences, int64_t context,
                              std::optional<int64_t> available, int64_t models) {
  const int64_t wanted = bytes_per_token * sequences * context;
  return available.has_value() ? std::min(wanted, *available / 4 / models) : wanted;
}

}  // namespace ddl
