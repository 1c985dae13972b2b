#include "model/checkpoint/checkpoint.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "base/check.h"
#include "base/mapped_file.h"
#include "base/problem_list.h"
#include "base/strict_json.h"
#include "model/checkpoint/checkpoint_layout.h"
#include "model/checkpoint/convert_command.h"
#include "model/checkpoint/git_lfs.h"
#include "model/checkpoint/weight_files.h"

namespace ddl {
namespace {

constexpr std::string_view kEmbedding = "transformer.wte.weight";
constexpr std::string_view kTiedHead = "lm_head.weight";

absl::Status CheckFolder(const std::filesystem::path& folder) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(folder, error);
  if (std::filesystem::is_directory(status)) return absl::OkStatus();
  const std::string expected = ", expected a folder with config.json and the weights";
  if (std::filesystem::exists(status)) {
    const absl::Status refusal =
        absl::InvalidArgumentError(folder.string() + " is a file" + expected);
    return IsWeightFileName(folder.string()) ? Convertible(refusal) : refusal;
  }
  return absl::NotFoundError(folder.string() + " cannot be found" + expected +
                             (error ? " (" + error.message() + ")" : ""));
}

// Buffers that some saves hold beside the weights. The official code makes them anew.
bool IsDerived(std::string_view name) {
  constexpr std::string_view kBuffers[] = {"inv_freq", "_kernel_index", "_kernel_valid"};
  const std::string_view last = name.substr(name.rfind('.') + 1);
  return std::find(std::begin(kBuffers), std::end(kBuffers), last) != std::end(kBuffers);
}

// What stands before the family's names in all tensors alike: "_orig_mod." where torch.compile
// wrapped the model, "module." where DistributedDataParallel did.
std::string CommonPrefix(const WeightFiles& weights) {
  for (const auto& [name, tensor] : weights.tensors) {
    for (const std::string_view known : {kEmbedding, kTiedHead}) {
      if (!name.ends_with(known)) continue;
      const std::string prefix = name.substr(0, name.size() - known.size());
      const bool everywhere =
          std::all_of(weights.tensors.begin(), weights.tensors.end(),
                      [&](const auto& item) { return item.first.starts_with(prefix); });
      if (everywhere) return prefix;
    }
  }
  return "";
}

// Names as only the wrapper of a model, or of a part of one, gives them.
absl::Status CheckPrefix(const WeightFiles& weights) {
  constexpr std::string_view kWrappers[] = {"_orig_mod.", "_fsdp_wrapped_module.",
                                            "_checkpoint_wrapped_module."};
  const std::string prefix = CommonPrefix(weights);
  if (prefix.empty()) {
    for (const auto& [name, tensor] : weights.tensors) {
      for (const std::string_view wrapper : kWrappers) {
        if (name.find(wrapper) == name.npos) continue;
        return Convertible(absl::InvalidArgumentError(
            weights.path.string() + ": " + ShowName(name) + " has " + std::string(wrapper) +
            " in its name, as a wrapped module's tensor does"));
      }
    }
    return absl::OkStatus();
  }
  return Convertible(absl::InvalidArgumentError(
      weights.path.string() + ": every tensor's name begins with " + ShowName(prefix) +
      ", as the name of a wrapped model's tensor does, expected names like " +
      std::string(kEmbedding)));
}

// One of the two names of the tied embedding may be all that a file has.
void NameEmbedding(WeightFiles& weights) {
  if (weights.tensors.contains(kEmbedding)) return;
  auto head = weights.tensors.extract(std::string(kTiedHead));
  if (head.empty()) return;
  head.key() = kEmbedding;
  weights.tensors.insert(std::move(head));
}

ShapesByName ShapesOf(const WeightFiles& weights) {
  ShapesByName shapes;
  for (const auto& [name, tensor] : weights.tensors) shapes.emplace(name, tensor.view.shape);
  return shapes;
}

// Compares what the files hold with what the configuration makes the official code save.
class Comparison {
 public:
  Comparison(const ModelConfig& config, const CheckpointLayout& layout, const WeightFiles& weights)
      : config_(config),
        layout_(layout),
        weights_(weights),
        expected_(ExpectedShapes(config, layout)) {
    for (const auto& [name, tensor] : weights.tensors) {
      if (const std::optional<int64_t> layer = LayerIndex(name)) layers_.insert(*layer);
    }
  }

  absl::Status Check() && {
    CompareLayers();
    for (const auto& [name, shape] : expected_) ComparePresence(name, shape);
    for (const auto& [name, tensor] : weights_.tensors) CompareShape(name, tensor);
    if (problems_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        problems_.Message(weights_.path.string() + " does not match config.json (variant " +
                          std::string(VariantName(layout_.variant)) + ", " +
                          std::string(RevisionName(layout_.revision)) + "):") +
        "\n  config.json says: " + Sizes());
  }

 private:
  bool LayerIsAbsent(int64_t layer) const { return !layers_.contains(layer); }
  bool LayerIsExtra(int64_t layer) const { return layer >= config_.num_hidden_layers; }

  // One line for whole layers, in place of one for each of their tensors.
  void CompareLayers() {
    const int64_t expected = config_.num_hidden_layers;
    const bool complete = static_cast<int64_t>(layers_.size()) == expected &&
                          (layers_.empty() || *layers_.rbegin() == expected - 1);
    if (complete) return;
    problems_.Add("num_hidden_layers: config.json says " + std::to_string(expected) + ", found " +
                  std::to_string(layers_.size()) + " layers" +
                  (layers_.empty() ? ""
                                   : ", from " + std::to_string(*layers_.begin()) + " to " +
                                         std::to_string(*layers_.rbegin())));
  }

  void ComparePresence(const std::string& name, const Shape& shape) {
    if (weights_.tensors.contains(name)) return;
    const std::optional<int64_t> layer = LayerIndex(name);
    if (layer && LayerIsAbsent(*layer)) return;
    problems_.Add(name + ": missing, expected " + ShowShape(shape));
  }

  void CompareShape(const std::string& name, const FiledTensor& tensor) {
    const std::optional<int64_t> layer = LayerIndex(name);
    if (layer && LayerIsExtra(*layer)) return;
    const std::string found = ShowName(name) + ": found " + ShowShape(tensor.view.shape) +
                              (weights_.sharded ? " in " + tensor.file : "");
    const auto expected = expected_.find(name == kTiedHead ? kEmbedding : name);
    if (expected == expected_.end()) {
      problems_.Add(found + ", but there is no such tensor in this model");
    } else if (expected->second != tensor.view.shape) {
      problems_.Add(found + ", expected " + ShowShape(expected->second));
    }
  }

  // What the expected shapes follow from.
  std::string Sizes() const {
    std::string text = "vocab_size " + std::to_string(config_.vocab_size) + ", hidden_size " +
                       std::to_string(config_.hidden_size) + ", num_attention_heads " +
                       std::to_string(config_.num_attention_heads) + ", head_dim " +
                       std::to_string(config_.head_dim);
    if (layout_.variant != Variant::kGpt && layout_.variant != Variant::kVdim1) {
      text += ", ddl_value_channels " + std::to_string(config_.ddl_value_channels);
      if (config_.ddl_state_shortconv_kernel_size) {
        text += ", ddl_state_shortconv_kernel_size " +
                std::to_string(*config_.ddl_state_shortconv_kernel_size);
      }
    }
    if (HasInputExpansion(layout_.variant)) {
      text += ", input_embed_shortconv_kernel_size " +
              std::to_string(config_.input_embed_shortconv_kernel_size);
    }
    return text;
  }

  const ModelConfig& config_;
  const CheckpointLayout& layout_;
  const WeightFiles& weights_;
  const ShapesByName expected_;
  std::set<int64_t> layers_;  // that the files hold tensors of
  ProblemList problems_;
};

bool SameValues(const TensorView& a, const TensorView& b) {
  return a.type == b.type && a.shape == b.shape &&
         (a.data == b.data || std::memcmp(a.data, b.data, static_cast<size_t>(a.num_bytes())) == 0);
}

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    DDL_CHECK(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1,
              "OpenSSL has no SHA-256");
  }

  void Add(std::span<const std::byte> bytes) {
    DDL_CHECK(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1, "SHA-256 failed");
  }
  void Add(int64_t number) { Add(std::as_bytes(std::span(&number, 1))); }
  // With its length, so that no other split of adjacent strings has the same digest.
  void Add(std::string_view text) {
    Add(static_cast<int64_t>(text.size()));
    Add(std::as_bytes(std::span(text)));
  }

  std::string Hex() && {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
    unsigned int size = 0;
    DDL_CHECK(EVP_DigestFinal_ex(context_.get(), digest.data(), &size) == 1, "SHA-256 failed");
    return absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), size});
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string_view StoredTypeName(StoredType type) {
  switch (type) {
    case StoredType::kFloat32:
      return "F32";
    case StoredType::kBFloat16:
      return "BF16";
    case StoredType::kFloat16:
      return "F16";
    case StoredType::kFloat64:
      return "F64";
  }
  return "unknown";
}

int64_t StoredTypeSize(StoredType type) {
  switch (type) {
    case StoredType::kFloat32:
      return 4;
    case StoredType::kBFloat16:
    case StoredType::kFloat16:
      return 2;
    case StoredType::kFloat64:
      return 8;
  }
  return 0;
}

int64_t TensorView::num_elements() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

int64_t TensorView::num_bytes() const { return num_elements() * StoredTypeSize(type); }

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::filesystem::path& folder) {
  absl::StatusOr<Checkpoint> checkpoint = Read(folder);
  if (!checkpoint.ok()) return WithConvertCommand(checkpoint.status(), folder);
  return checkpoint;
}

absl::StatusOr<Checkpoint> Checkpoint::Read(const std::filesystem::path& folder) {
  if (absl::Status status = CheckFolder(folder); !status.ok()) return status;
  const std::filesystem::path config_path = folder / "config.json";
  const absl::StatusOr<MappedFile> config_file = MappedFile::Open(config_path);
  if (!config_file.ok()) {
    const bool elsewhere =
        absl::IsNotFound(config_file.status()) && HoldsTrainingCheckpoint(folder);
    return elsewhere ? Convertible(config_file.status()) : config_file.status();
  }
  if (absl::Status status = CheckNoGitLfsPointer(config_file->text(), config_path); !status.ok()) {
    return status;
  }
  constexpr std::string_view kTied[] = {kEmbedding, kTiedHead};
  absl::StatusOr<WeightFiles> weights = ReadWeightFiles(folder, kTied);
  if (!weights.ok()) return weights.status();
  std::erase_if(weights->tensors, [](const auto& item) { return IsDerived(item.first); });
  if (absl::Status status = CheckPrefix(*weights); !status.ok()) return status;
  NameEmbedding(*weights);

  const absl::StatusOr<CheckpointLayout> layout = DetectLayout(ShapesOf(*weights));
  if (!layout.ok()) {
    return absl::InvalidArgumentError(weights->path.string() + ": " +
                                      std::string(layout.status().message()));
  }
  const absl::StatusOr<ModelConfig> config = ModelConfig::Parse(
      config_file->text(), config_path.string(), layout->variant, layout->revision);
  if (!config.ok()) return config.status();
  if (absl::Status status = CheckSizes(*config, *layout); !status.ok()) {
    return absl::InvalidArgumentError(config_path.string() + ": " + std::string(status.message()));
  }
  if (absl::Status status = Comparison(*config, *layout, *weights).Check(); !status.ok()) {
    return status;
  }

  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  checkpoint.config_ = *config;
  checkpoint.variant_ = layout->variant;
  checkpoint.value_channels_ = ValueChannels(*config, *layout);
  checkpoint.revision_ = layout->revision;
  checkpoint.storage_ = std::move(weights->storage);
  if (const auto head = weights->tensors.find(kTiedHead); head != weights->tensors.end()) {
    const bool same = SameValues(head->second.view, weights->tensors.find(kEmbedding)->second.view);
    const bool keeps = layout->revision == Revision::kD1f7621;
    if (!same) {
      checkpoint.warnings_.push_back(
          weights->path.string() + ": lm_head.weight differs from transformer.wte.weight. The " +
          (keeps ? "official code of d1f7621 keeps them apart, and so does this server."
                 : "official code of this revision ties the two, so transformer.wte.weight is "
                   "used for both."));
    }
    if (same || !keeps) weights->tensors.erase(head);
  }
  for (auto& [name, tensor] : weights->tensors) {
    tensor.view.shape = OwnShape(name, tensor.view.shape, *layout);
    checkpoint.tensors_.emplace(OwnName(name, *layout), std::move(tensor.view));
  }
  return checkpoint;
}

bool Checkpoint::Has(std::string_view name) const { return tensors_.contains(name); }

const TensorView& Checkpoint::Get(std::string_view name) const {
  const auto it = tensors_.find(name);
  DDL_CHECK(it != tensors_.end(), std::string(name).c_str());
  return it->second;
}

int64_t Checkpoint::parameter_count() const {
  int64_t count = 0;
  for (const auto& [name, view] : tensors_) count += view.num_elements();
  return count;
}

StoredType Checkpoint::stored_type() const {
  std::map<StoredType, int64_t> counts;
  for (const auto& [name, view] : tensors_) counts[view.type] += view.num_elements();
  const auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
  return std::max_element(counts.begin(), counts.end(), less)->first;
}

std::string Checkpoint::WeightsSha256() const {
  Sha256 hash;
  for (const auto& [name, view] : tensors_) {
    hash.Add(name);
    hash.Add(StoredTypeName(view.type));
    hash.Add(static_cast<int64_t>(view.shape.size()));
    for (const int64_t size : view.shape) hash.Add(size);
    hash.Add(std::span(view.data, static_cast<size_t>(view.num_bytes())));
  }
  return std::move(hash).Hex();
}

}  // namespace ddl
