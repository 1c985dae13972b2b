#include "server/config.h"

#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ddl {
namespace {

// int8 says what it is made of and where it runs, unless another setting contradicts.
absl::Status CompleteQuantization(ServerConfig* config) {
  if (config->quantization == Quantization::kNone) return absl::OkStatus();
  if (config->dtype == RunnerDType::kFloat32) {
    return absl::InvalidArgumentError(
        "--quantization=int8 takes bfloat16 activations, but --dtype is float32");
  }
  if (config->device == RunnerDevice::kCuda) {
    return absl::InvalidArgumentError("--quantization=int8 is for the CPU, but --device is cuda");
  }
  config->dtype = RunnerDType::kBFloat16;
  config->device = RunnerDevice::kCpu;
  return absl::OkStatus();
}

}  // namespace

absl::Status Complete(ServerConfig* config) {
  const int64_t memory = config->connections.max_connection_memory;
  constexpr int64_t kMostMemory = int64_t{1} << 50;
  if (memory < config->max_message_bytes || memory > kMostMemory) {
    return absl::InvalidArgumentError(absl::StrCat("--max_connection_memory=", memory, ": must be ",
                                                   config->max_message_bytes, "...", kMostMemory));
  }
  const EngineOptions& engine = config->engine;
  if (engine.max_step_tokens < engine.max_running_sequences) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max_step_tokens=", engine.max_step_tokens, " is less than --max_running_sequences=",
        engine.max_running_sequences, ": a step computes one position for each of them"));
  }
  return CompleteQuantization(config);
}

namespace {

bool IsFolder(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

// What a folder is called: of "models/demo/" and of "." too.
std::string LastPart(const std::string& folder) {
  std::error_code ignored;
  std::filesystem::path absolute = std::filesystem::absolute(folder, ignored).lexically_normal();
  if (!absolute.has_filename()) absolute = absolute.parent_path();
  return absolute.filename().string();
}

bool IsNameCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("._-:@+", c);
}

bool IsModelName(const std::string& name) {
  return !name.empty() && name.size() <= 128 && name != "unknown" &&
         std::all_of(name.begin(), name.end(), IsNameCharacter);
}

// The model's name where nobody gives one: the folder's, with _ for what no name may hold.
std::string NameOfFolder(const std::string& folder) {
  std::string name = LastPart(folder).substr(0, 128);
  for (char& c : name) c = IsNameCharacter(c) ? c : '_';
  return name;
}

}  // namespace

absl::StatusOr<std::vector<ModelSource>> ParseModelSources(const std::string& text) {
  if (text.empty()) {
    return absl::InvalidArgumentError(
        "--model is required: --model=DIR, a folder with config.json and the weights");
  }
  std::vector<ModelSource> models;
  std::set<std::string> names;
  // A folder's own name may hold what separates entries, and what no model's name does.
  if (const std::string name = NameOfFolder(text); IsFolder(text) && IsModelName(name)) {
    return std::vector<ModelSource>{{name, text}};
  }
  const std::pair<std::string, std::string> whole = absl::StrSplit(text, absl::MaxSplits('=', 1));
  if (IsModelName(whole.first) && IsFolder(whole.second)) {
    return std::vector<ModelSource>{{whole.first, whole.second}};
  }
  for (const absl::string_view entry : absl::StrSplit(text, ',')) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    const bool named = absl::StrContains(entry, '=') && !absl::StrContains(parts.first, '/');
    const std::string folder = named ? parts.second : std::string(entry);
    if (folder.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model=", text, ": an entry without a folder"));
    }
    const std::string name = named ? parts.first : LastPart(folder);
    if (!IsModelName(name)) {
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

}  // namespace ddl
