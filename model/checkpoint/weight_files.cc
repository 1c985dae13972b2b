#include "model/checkpoint/weight_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "base/mapped_file.h"
#include "base/problem_list.h"
#include "base/strict_json.h"
#include "model/checkpoint/convert_command.h"
#include "model/checkpoint/pytorch_pickle.h"
#include "model/checkpoint/safetensors.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

// A format's single file, and how its shards end.
struct Format {
  const char* file;
  const char* index;
  std::string_view shard_ending;
  absl::StatusOr<TensorFile> (*read)(const std::filesystem::path& path);
};

constexpr Format kFormats[] = {
    {"model.safetensors", "model.safetensors.index.json", ".safetensors", ReadSafetensors},
    {"pytorch_model.bin", "pytorch_model.bin.index.json", ".bin", ReadPytorchPickle},
};

// A link that leads nowhere is there too: opening it then says what is wrong with it.
bool IsThere(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::symlink_status(path, error));
}

// Up to ten names, for a message about what is not among them.
std::string FolderListing(const std::filesystem::path& folder) {
  constexpr size_t kMaxNames = 10;
  std::vector<std::string> names;
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(folder, error);
       !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (names.empty()) return "nothing";
  std::sort(names.begin(), names.end());
  std::string text;
  for (size_t i = 0; i < names.size() && i < kMaxNames; ++i) {
    text += (i ? ", " : "") + ShowName(names[i]);
  }
  return text + (names.size() > kMaxNames ? ", ..." : "");
}

// Whether the folder, or one in it, has a file of such a name.
bool HoldsFile(const std::filesystem::path& folder, bool (*is_wanted)(std::string_view name)) {
  std::error_code error;
  auto it = std::filesystem::recursive_directory_iterator(folder, error);
  for (; !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
    if (it.depth() > 0) it.disable_recursion_pending();
    if (is_wanted(it->path().filename().string())) return true;
  }
  return false;
}

bool IsTrainingFileName(std::string_view name) {
  return name.ends_with(".pt") || name.ends_with(".pth") || name.ends_with(".ckpt");
}

// Moves one file's tensors to the others.
void Merge(TensorFile file, const std::string& name, WeightFiles& all) {
  for (auto& [tensor, view] : file.tensors) {
    all.tensors.emplace(tensor, FiledTensor{std::move(view), name});
  }
  all.storage.push_back(std::move(file.storage));
}

absl::StatusOr<WeightFiles> ReadSingle(const std::filesystem::path& folder, const Format& format) {
  WeightFiles all{folder / format.file, /*sharded=*/false, {}, {}};
  absl::StatusOr<TensorFile> file = format.read(all.path);
  if (!file.ok()) return file.status();
  Merge(*std::move(file), format.file, all);
  return all;
}

// From tensor to the shard it should be in.
using WeightMap = std::map<std::string, std::string, std::less<>>;

absl::StatusOr<WeightMap> ReadIndex(const std::filesystem::path& path, const Format& format) {
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  const absl::StatusOr<Json> json = ParseJsonObject(file->text(), path.string());
  if (!json.ok()) return json.status();
  const Json weight_map = json->value("weight_map", Json());
  if (!weight_map.is_object() || weight_map.empty()) {
    return absl::InvalidArgumentError(
        path.string() + " has no weight_map from tensors to shards, found " + ShowJson(weight_map));
  }
  WeightMap shards;
  ProblemList problems;
  for (const auto& [tensor, shard] : weight_map.items()) {
    // A plain name cannot lead out of the folder.
    const bool plain =
        shard.is_string() && shard.get_ref<const std::string&>().ends_with(format.shard_ending) &&
        shard.get_ref<const std::string&>().find_first_of(std::string_view("/\0", 2)) ==
            std::string::npos;
    if (plain) {
      shards.emplace(tensor, shard.get<std::string>());
    } else {
      problems.Add(ShowName(tensor) + ": found shard " + ShowJson(shard) +
                   ", allowed is the name of a file in the same folder that ends in " +
                   std::string(format.shard_ending));
    }
  }
  if (problems.empty()) return shards;
  return absl::InvalidArgumentError(
      problems.Message(path.string() + " has shards that cannot be used:"));
}

// Each tensor must be where the index says, and nowhere else. transformers leaves a tied tensor out
// of the shards and in the index.
absl::Status CompareWithIndex(const WeightMap& index, const std::filesystem::path& path,
                              const std::map<std::string, TensorFile>& shards,
                              std::span<const std::string_view> tied) {
  ProblemList problems;
  const auto is_tied = [&](const std::string& tensor) {
    return std::find(tied.begin(), tied.end(), tensor) != tied.end();
  };
  const bool has_tied = std::any_of(shards.begin(), shards.end(), [&](const auto& shard) {
    return std::any_of(tied.begin(), tied.end(),
                       [&](std::string_view name) { return shard.second.tensors.contains(name); });
  });
  for (const auto& [tensor, shard] : index) {
    if (!shards.at(shard).tensors.contains(tensor) && !(has_tied && is_tied(tensor))) {
      problems.Add(ShowName(tensor) + ": the index maps it to " + ShowName(shard) +
                   ", which does not hold it");
    }
  }
  for (const auto& [shard, file] : shards) {
    for (const auto& [tensor, view] : file.tensors) {
      const auto it = index.find(tensor);
      if (it != index.end() && it->second == shard) continue;
      problems.Add(ShowName(tensor) + ": found in " + ShowName(shard) + ", but the index " +
                   (it == index.end() ? "does not name it" : "maps it to " + ShowName(it->second)));
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(problems.Message(path.string() + " and its shards disagree:"));
}

absl::StatusOr<WeightFiles> ReadShards(const std::filesystem::path& folder, const Format& format,
                                       std::span<const std::string_view> tied) {
  WeightFiles all{folder / format.index, /*sharded=*/true, {}, {}};
  const absl::StatusOr<WeightMap> index = ReadIndex(all.path, format);
  if (!index.ok()) return index.status();
  std::set<std::string> names;
  for (const auto& [tensor, shard] : *index) names.insert(shard);
  std::map<std::string, TensorFile> shards;
  ProblemList problems;
  bool is_convertible = true;
  for (const std::string& name : names) {
    absl::StatusOr<TensorFile> file = format.read(folder / name);
    if (file.ok()) {
      shards.emplace(name, *std::move(file));
    } else {
      problems.Add(std::string(file.status().message()));
      is_convertible = is_convertible && IsConvertible(file.status());
    }
  }
  if (!problems.empty()) {
    const absl::Status refusal = absl::InvalidArgumentError(
        problems.Message(all.path.string() + " names shards that cannot be read:"));
    return is_convertible ? Convertible(refusal) : refusal;
  }
  if (absl::Status status = CompareWithIndex(*index, all.path, shards, tied); !status.ok()) {
    return status;
  }
  for (auto& [name, file] : shards) Merge(std::move(file), name, all);
  return all;
}

}  // namespace

bool IsWeightFileName(std::string_view name) {
  return IsTrainingFileName(name) || name.ends_with(".bin") || name.ends_with(".safetensors");
}

bool HoldsTrainingCheckpoint(const std::filesystem::path& folder) {
  return HoldsFile(folder, [](std::string_view name) {
    return IsTrainingFileName(name) || name == "config.json";
  });
}

absl::StatusOr<WeightFiles> ReadWeightFiles(const std::filesystem::path& folder,
                                            std::span<const std::string_view> tied) {
  for (const Format& format : kFormats) {
    if (IsThere(folder / format.file)) return ReadSingle(folder, format);
    if (IsThere(folder / format.index)) return ReadShards(folder, format, tied);
  }
  const absl::Status refusal = absl::NotFoundError(
      folder.string() +
      " holds no weights: expected model.safetensors, model.safetensors.index.json, "
      "pytorch_model.bin or pytorch_model.bin.index.json, found " +
      FolderListing(folder));
  return HoldsFile(folder, IsWeightFileName) ? Convertible(refusal) : refusal;
}

}  // namespace ddl
