#include "server/flags.h"

#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/flag_types.h"

// Every flag of the server is one entry here: its type and name, the member of ServerConfig that it
// sets and whose default it has, the values it may have, and its text in --help.

namespace ddl {
namespace {

// --- What entries are made of --------------------------------------------------------------

constexpr int32_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr absl::Duration kZero = absl::ZeroDuration();
constexpr absl::Duration kDay = absl::Hours(24);
constexpr absl::Duration kEver = absl::InfiniteDuration();

const ServerConfig& Defaults() {
  static const auto* const defaults = new ServerConfig;
  return *defaults;
}

// Puts a flag's value into a config. INVALID_ARGUMENT where it may not have that.
using Reader = std::function<absl::Status(ServerConfig&)>;

struct SettingGroup {
  FlagGroup flags;
  std::vector<Reader> readers;
};
// In the order of --help. Complete once main runs.
std::vector<SettingGroup>& Groups() {
  static auto* const groups = new std::vector<SettingGroup>;
  return *groups;
}

struct RegisterGroup {
  explicit RegisterGroup(std::string_view title) { Groups().push_back({{title, {}}, {}}); }
};
struct RegisterReader {
  RegisterReader(std::string_view flag, Reader reader) {
    Groups().back().flags.flags.push_back(flag);
    Groups().back().readers.push_back(std::move(reader));
  }
};

// What a flag's value is in the config.
template <typename T>
const T& Unwrapped(const T& value) {
  return value;
}
std::optional<RunnerDevice> Unwrapped(const DeviceFlag& flag) { return flag.value; }
std::optional<RunnerDType> Unwrapped(const DTypeFlag& flag) { return flag.value; }
std::optional<kernels::InstructionSet> Unwrapped(const InstructionSetFlag& flag) {
  return flag.value;
}
int64_t Unwrapped(const MemoryFlag& flag) { return flag.value; }
std::optional<int64_t> Unwrapped(const CacheMemoryFlag& flag) { return flag.value; }

// What a value must be: empty, or the words for it where it is not.
struct Any {
  template <typename T>
  std::string operator()(const T& /*value*/) const {
    return "";
  }
};

std::string Print(absl::Duration value) { return absl::FormatDuration(value); }
template <typename T>
std::string Print(const T& value) {
  if constexpr (requires { absl::StrCat(value); }) {
    return absl::StrCat(value);
  } else {
    return AbslUnparseFlag(value);
  }
}

template <typename T>
struct Within {
  Within(T least, T most) : least(least), most(most) {}
  std::string operator()(T value) const {
    if (value >= least && value <= most) return "";
    return absl::StrCat(Print(least), "...", Print(most));
  }
  T least, most;
};

struct Fraction {
  std::string operator()(double value) const {
    return value > 0 && value <= 1 ? "" : "more than 0 and at most 1";
  }
};

struct ContextLength {
  std::string operator()(int32_t value) const {
    constexpr int32_t kMost = 1 << 20;
    if (value == 0 || (value >= 2 && value <= kMost)) return "";
    return absl::StrCat("0, or at least 2 (a prompt token and a generated one) and at most ",
                        kMost);
  }
};

struct HostAndPort {
  std::string operator()(const std::string& address) const {
    const size_t colon = address.rfind(':');
    uint32_t port = 0;
    if (colon != std::string::npos && colon > 0 &&
        absl::SimpleAtoi(address.substr(colon + 1), &port) && port <= 65535) {
      return "";
    }
    return "HOST:PORT, for instance 0.0.0.0:8500 or [::]:8500";
  }
};

// Reads `flag` into the member that `member` finds, if `allowed` has nothing to say.
template <typename T, typename Member, typename Allowed>
Reader MakeReader(const char* name, const absl::Flag<T>& flag, Member member, Allowed allowed) {
  return [=, &flag](ServerConfig& config) {
    const T value = absl::GetFlag(flag);
    if (const std::string words = allowed(value); !words.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, "=", Print(value), ": must be ", words));
    }
    member(config) = Unwrapped(value);
    return absl::OkStatus();
  };
}

}  // namespace
}  // namespace ddl

// The flags' variables stand outside of namespaces, as Abseil wants it.
#define DDL_GROUP(title)                            \
  namespace ddl {                                   \
  static const RegisterGroup group_##title(#title); \
  }                                                 \
  static_assert(true)
// Of a flag that is no member of its own.
#define DDL_READ(name, ...)                                    \
  namespace ddl {                                              \
  static const RegisterReader read_##name(#name, __VA_ARGS__); \
  }                                                            \
  static_assert(true)
#define DDL_FLAG(Type, name, member, allowed, ...)                  \
  ABSL_FLAG(Type, name, Type{ddl::Defaults().member}, __VA_ARGS__); \
  DDL_READ(name, MakeReader(                                        \
                     #name, FLAGS_##name,                           \
                     [](ServerConfig & config) -> auto& { return config.member; }, allowed))

DDL_GROUP(Model);

ABSL_FLAG(std::string, model, "",
          "Required. The checkpoints to serve: [NAME=]DIR[,[NAME=]DIR...]. DIR holds config.json, "
          "the weights and, for text, the tokenizer. NAME is what clients call it and defaults to "
          "the folder's name. The first is the default model. Each has its own queue and K/V "
          "cache; their steps are computed one at a time.");
DDL_READ(model, [](ServerConfig& config) {
  absl::StatusOr<std::vector<ModelSource>> models = ParseModelSources(absl::GetFlag(FLAGS_model));
  if (models.ok()) config.models = *std::move(models);
  return models.status();
});
DDL_FLAG(ddl::DeviceFlag, device, device, Any(),
         "Where to compute: auto (the GPU where there is one and the program was built with CUDA), "
         "cpu or cuda. CUDA_VISIBLE_DEVICES says which GPU.");
DDL_FLAG(double, gpu_memory_fraction, gpu_memory_fraction, Fraction(),
         "How much of the GPU's memory may be in use, by anyone, once the K/V cache has taken its "
         "part: that is what weights and the largest step leave. More than 0, at most 1.");
DDL_FLAG(bool, deterministic, deterministic, Any(),
         "On a GPU: the same bits in any batch, as on the CPU. Matrix products then come in slices "
         "of 64 rows and prompts are attended to row by row, which makes long prompts slower; "
         "false lets cuBLAS and flash attention choose.");
DDL_FLAG(ddl::DTypeFlag, dtype, dtype, Any(),
         "Type of activations, cache and large weights: auto (bfloat16 for checkpoints stored in "
         "it, else float32), float32 or bfloat16.");
DDL_FLAG(
    ddl::Quantization, quantization, quantization, Any(),
    "Weight quantization: none or int8 (per-channel scales, dynamic int8 activations). Half the "
    "memory, and faster; what it costs in accuracy is in docs/performance.md. On the CPU; the "
    "other activations are bfloat16.");
DDL_FLAG(ddl::InstructionSetFlag, instruction_set, instruction_set, Any(),
         "Of the processor, that the CPU's kernels use: auto (the best that works here), portable, "
         "avx2, avx512, avx512_bf16 or amx. Results of two of them differ in the last bits: give "
         "replicas on unlike machines the same. amx_emulated computes what amx does, anywhere and "
         "slowly, for tests.");
DDL_FLAG(ddl::TokenizerChoice, tokenizer, tokenizer, Any(),
         "auto: the tokenizer in the model's folder, where it has one. none: token ids only, also "
         "where the folder holds a tokenizer, for instance one that is not supported.");
DDL_FLAG(
    int32_t, threads, num_threads, Within(0, 1024),
    "Threads that compute. 0: one for every 16 million parameters of the model, at most one for "
    "each processor that affinity and control groups let the process use.");
DDL_FLAG(
    bool, obey_dv_shortconv_causal, obey_dv_shortconv_causal, Any(),
    "Obey ddl_state_dv_shortconv_causal of config.json also in checkpoints of 2b55f25, as its "
    "accelerated code does. Its eager code ignores the key, and so does the server by default; "
    "other revisions' code obeys it, and so does the server.");

DDL_GROUP(Addresses);

DDL_FLAG(std::string, grpc_address, grpc_address, HostAndPort(),
         "HOST:PORT that gRPC listens on. Port 0 picks a free one and logs it.");
DDL_FLAG(
    std::string, metrics_address, metrics_address, HostAndPort(),
    "HOST:PORT of the HTTP pages: /metrics for Prometheus, /livez and /readyz for probes. Port "
    "0 picks a free one and logs it. They have no TLS and want no key.");
DDL_FLAG(std::string, tls_certificate, tls.certificate, Any(),
         "PEM file with the server's certificate chain: gRPC then speaks TLS only. Replace the "
         "file, and new connections use the new certificate.");
DDL_FLAG(std::string, tls_private_key, tls.private_key, Any(),
         "PEM file with the key of --tls_certificate.");
DDL_FLAG(std::string, tls_client_ca, tls.client_ca, Any(),
         "PEM file with the authorities of client certificates: clients then need one (mutual "
         "TLS).");
DDL_FLAG(absl::Duration, tls_reload_interval, tls_reload_interval, Within(absl::Seconds(1), kDay),
         "How often the files of TLS are looked at for a change.");

DDL_GROUP(Callers);

DDL_FLAG(std::string, api_keys_file, api_keys_file, Any(),
         "File of the keys that calls need, as 'authorization: Bearer KEY': a line for each, NAME "
         "sha256:HEX [priority=high] [requests_per_minute=N] [tokens_per_minute=N]. Replace the "
         "file, and the new keys are in force. Health checks need none. Empty: nobody needs one.");
DDL_FLAG(absl::Duration, api_keys_reload_interval, api_keys_reload_interval,
         Within(absl::Milliseconds(1), kDay),
         "How often the file of keys is looked at for a change.");
DDL_FLAG(bool, reflection, reflection, Any(), "Enable gRPC server reflection, without an API key.");

DDL_GROUP(Connections);

DDL_FLAG(int32_t, max_message_bytes, max_message_bytes, Within(1024, kMaxInt),
         "Longest message that a client may send; a longer one is refused with "
         "RESOURCE_EXHAUSTED. Answers have no bound.");
DDL_FLAG(ddl::MemoryFlag, max_connection_memory, connections.max_connection_memory, Any(),
         "Memory for what clients have sent and calls have not taken yet, of all connections "
         "together, such as 512MiB. Past it the calls that hold most are dropped.");
DDL_FLAG(int32_t, max_concurrent_streams, connections.max_concurrent_streams, Within(1, kMaxInt),
         "Maximum concurrent calls on one connection; clients queue the rest.");
DDL_FLAG(int32_t, max_connections, connections.max_connections, Within(1, 1 << 20),
         "Maximum concurrent connections; further ones are closed immediately. Each takes a file "
         "descriptor.");
DDL_FLAG(
    int32_t, max_connection_rate, connections.max_connection_rate, Within(0, 1 << 20),
    "New connections a second from one address (of IPv6: from one /64). So many may come at "
    "once; further ones wait for their turn, and are closed where that is over 10 seconds away. 0: "
    "any number, for instance behind a proxy that opens a connection for each call.");
DDL_FLAG(absl::Duration, max_connection_idle, connections.max_connection_idle,
         Within(absl::Seconds(1), kEver),
         "Connections without a call for so long are closed gracefully (GOAWAY); clients reconnect "
         "when they have one. inf: never.");
DDL_FLAG(absl::Duration, max_connection_age, connections.max_connection_age,
         Within(absl::Seconds(1), kEver),
         "Connections older than this are closed gracefully (GOAWAY), once their calls have ended; "
         "clients reconnect through the load balancer, and reach new replicas. inf: never.");
DDL_FLAG(absl::Duration, handshake_timeout, connections.handshake_timeout,
         Within(absl::Seconds(1), kDay),
         "How long a new connection may take until it speaks HTTP/2.");
DDL_FLAG(absl::Duration, min_ping_interval, connections.min_ping_interval, Within(kZero, kDay),
         "Clients that send keepalive pings more often, with nothing else, lose their connection: "
         "GOAWAY, too_many_pings.");
DDL_FLAG(absl::Duration, keepalive_interval, connections.keepalive_interval,
         Within(absl::Seconds(1), kEver),
         "How long a connection may be silent before the server pings it, to notice clients that "
         "are gone. inf: never.");
DDL_FLAG(absl::Duration, keepalive_timeout, connections.keepalive_timeout,
         Within(absl::Seconds(1), kDay), "How long a client may take to answer such a ping.");

DDL_GROUP(Requests);

DDL_FLAG(int32_t, max_context_length, engine.max_context_length, ContextLength(),
         "Longest sequence, prompt and completion together, in tokens. 0: block_size of the "
         "checkpoint's config.json, the context that the model was trained for.");
DDL_FLAG(int32_t, max_client_batch_size, max_client_batch_size, Within(1, 1 << 16),
         "Most inputs in one Embed, Score, Tokenize or Detokenize.");
DDL_FLAG(int32_t, default_max_tokens, default_max_tokens, Within(1, kMaxInt),
         "Longest completion, in tokens, for requests that leave max_tokens unset.");

DDL_GROUP(Engine);

DDL_FLAG(int32_t, max_running_sequences, engine.max_running_sequences, Within(1, 1 << 16),
         "Sequences that are computed at the same time.");
DDL_FLAG(int32_t, max_waiting_requests, engine.max_waiting_requests, Within(1, 1 << 20),
         "Requests that may wait. More are refused with RESOURCE_EXHAUSTED, QUEUE_FULL.");
DDL_FLAG(int64_t, max_waiting_tokens, engine.max_waiting_tokens,
         Within(int64_t{1}, int64_t{1} << 40),
         "Prompt tokens of all waiting requests together. More are refused with "
         "RESOURCE_EXHAUSTED, TOKENS_FULL.");
DDL_FLAG(int32_t, max_step_tokens, engine.max_step_tokens, Within(1, 1 << 20),
         "Positions computed in one step: one for each running completion, and chunks of prompts "
         "with what is left. Larger prefills faster; smaller keeps streams smoother beside long "
         "prompts. At least max_running_sequences.");
DDL_FLAG(double, max_decode_slowdown, engine.max_decode_slowdown, Within(1.0, 1000.0),
         "While completions are being decoded, a step takes so many prompt positions that it lasts "
         "at most this many times a step without any. Larger prefills faster; smaller keeps "
         "streams smoother beside long prompts. At least 1.");
DDL_FLAG(absl::Duration, priority_aging, engine.priority_aging,
         Within(absl::Milliseconds(1), kEver),
         "A request that has waited this long rises one priority class, and again after as long, "
         "so that none waits for ever.");
DDL_FLAG(int32_t, kv_block_size, kv_block_size, Within(1, 1024),
         "Tokens per block of the K/V cache.");
DDL_FLAG(ddl::CacheMemoryFlag, kv_cache_memory, kv_cache_bytes, Any(),
         "Memory for the K/V cache of each model, such as 512MiB or 2GiB. auto: enough for "
         "max_running_sequences of max_context_length, but all models together at most a quarter "
         "of the memory that is available; on a GPU by gpu_memory_fraction.");
DDL_FLAG(bool, prefix_cache, engine.prefix_cache, Any(),
         "Keep the K/V blocks of ended requests while there is room, and use them for requests "
         "whose prompts begin with the same tokens.");

DDL_GROUP(Operation);

DDL_FLAG(absl::Duration, slow_reader_timeout, engine.slow_reader_timeout,
         Within(absl::Milliseconds(1), kDay),
         "How long a stream may be paused because its client does not read. Then it ends with "
         "RESOURCE_EXHAUSTED, SLOW_READER.");
DDL_FLAG(absl::Duration, step_timeout, step_timeout, Within(absl::Seconds(1), kEver),
         "How long a step may run before health says NOT_SERVING, until it ends. After twice as "
         "long /livez fails too, so that an orchestrator restarts the server. Steps that take "
         "turns with other models' count from when they wait. inf: for ever.");
DDL_FLAG(absl::Duration, drain_timeout, drain_timeout, Within(kZero, kDay),
         "After SIGTERM, how long running calls may take to finish, such as 20s or 2m.");
DDL_FLAG(absl::Duration, drain_delay, drain_delay, Within(kZero, kDay),
         "After SIGTERM, how long new calls are still accepted while health already says "
         "NOT_SERVING, so that load balancers can notice.");
DDL_FLAG(absl::Duration, gate_sample_interval, engine.gate_sample_interval, Within(kZero, kEver),
         "How often the gates of a step go to the metrics ddl_beta_gate and "
         "ddl_state_update_ratio; inf: never.");
DDL_FLAG(ddl::LogLevel, log_level, log_level, Any(),
         "Least severe lines to log to stderr: debug, info, warning or error.");
DDL_FLAG(ddl::LogFormat, log_format, log_format, Any(),
         "text, or json: an object a line. Either has a line for each call, at level info.");
ABSL_FLAG(bool, check, false,
          "Do all that a start does, but listen on no port and serve nobody: read the settings, "
          "the files of TLS and the checkpoints, load and warm up the models. Then print a line "
          "for each model and exit with code 0, or with the message and code of the start that "
          "would fail. Takes the memory and time of a start.");
DDL_READ(check, [](ServerConfig&) { return absl::OkStatus(); });

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

absl::StatusOr<ServerConfig> ConfigFromFlags() {
  ServerConfig config;
  for (const SettingGroup& group : Groups()) {
    for (const Reader& read : group.readers) {
      if (absl::Status status = read(config); !status.ok()) return status;
    }
  }
  if (absl::Status status = Complete(&config); !status.ok()) return status;
  return config;
}

}  // namespace

absl::Span<const FlagGroup> ServerFlagGroups() {
  static const auto* const groups = [] {
    auto* const flags = new std::vector<FlagGroup>;
    for (const SettingGroup& group : Groups()) flags->push_back(group.flags);
    return flags;
  }();
  return *groups;
}

std::string ServerHelpText() { return HelpText(ServerFlagGroups(), kUsage); }

absl::StatusOr<CommandLine> ReadCommandLine(absl::Span<const std::string> arguments,
                                            const Environment& environment) {
  absl::StatusOr<CommandLineAction> action =
      ParseCommandLine(ServerFlagGroups(), arguments, environment);
  if (!action.ok()) return action.status();
  if (*action != CommandLineAction::kRun) return CommandLine{*action, {}};
  absl::StatusOr<ServerConfig> config = ConfigFromFlags();
  if (!config.ok()) return config.status();
  if (absl::GetFlag(FLAGS_check)) action = CommandLineAction::kCheck;
  return CommandLine{*action, *std::move(config)};
}

}  // namespace ddl
