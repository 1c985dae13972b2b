#ifndef DDL_MODEL_CHECKPOINT_CHECKPOINT_H_
#define DDL_MODEL_CHECKPOINT_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint/model_config.h"

namespace ddl {

// Element type of a stored tensor.
enum class StoredType { kFloat32, kBFloat16, kFloat16, kFloat64 };
std::string_view StoredTypeName(StoredType type);  // "F32", "BF16", "F16", "F64"
int64_t StoredTypeSize(StoredType type);           // bytes

// One tensor of a checkpoint, row-major and contiguous. `data` is aligned to the element size
// and lives as long as the Checkpoint it came from.
struct TensorView {
  StoredType type = StoredType::kFloat32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;

  int64_t num_elements() const;
  int64_t num_bytes() const;
};

// Tensors by name, with whatever keeps their bytes alive (a mapping, a torch tensor).
struct TensorFile {
  std::map<std::string, TensorView, std::less<>> tensors;
  std::shared_ptr<const void> storage;
};

// A checkpoint's folder, opened and proven whole: config.json and the first of these that is
// there, alone or as an index with shards (`<name>.index.json`): `model.safetensors`, the
// official `pytorch_model.bin`. safetensors stay memory-mapped: they must not be shortened in place
// while a Checkpoint lives (see MappedFile). Immutable; any thread may read.
class Checkpoint {
 public:
  // Fails with one message that names the file and every tensor that is missing, unexpected or
  // misshapen, with found and expected shapes. config.json decides every size, tensor names and
  // ranks decide variant and revision. Values are not looked at: NaN is legal here. What
  // tools/convert_checkpoint.py mends is refused with the command at the message's end.
  //
  // `lm_head.weight` and `transformer.wte.weight` are tied: either may be absent, and a head equal
  // to the embedding is not kept. One that differs is where the revision's code keeps it, in
  // d1f7621. Buffers that the official code computes from the configuration are ignored.
  static absl::StatusOr<Checkpoint> Open(const std::filesystem::path& folder);

  const ModelConfig& config() const { return config_; }
  Variant variant() const { return variant_; }
  Revision revision() const { return revision_; }
  // dv: rows of the state's second axis; 1 for gpt and vdim1.
  int64_t value_channels() const { return value_channels_; }

  // By the server's own names, whatever the revision: see OwnName in checkpoint_layout.h.
  bool Has(std::string_view name) const;
  const TensorView& Get(std::string_view name) const;  // must exist
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }

  int64_t parameter_count() const;  // tied weights once
  // The type most weights are stored in.
  StoredType stored_type() const;
  // Hex SHA-256 over all tensors' names, types, shapes and bytes in name order. Reads every
  // byte; independent of the file format's padding, order and sharding.
  std::string WeightsSha256() const;

  const std::filesystem::path& folder() const { return folder_; }

  // What a user should know about the files though they can be served; sentences for the log.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  Checkpoint() = default;

  // Open, but for the command.
  static absl::StatusOr<Checkpoint> Read(const std::filesystem::path& folder);

  std::filesystem::path folder_;
  ModelConfig config_;
  Variant variant_ = Variant::kGpt;
  Revision revision_ = Revision::kD1f7621;
  int64_t value_channels_ = 1;
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::vector<std::shared_ptr<const void>> storage_;
  std::vector<std::string> warnings_;
};

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_CHECKPOINT_H_
