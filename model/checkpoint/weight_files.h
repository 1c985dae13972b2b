#ifndef DDL_MODEL_CHECKPOINT_WEIGHT_FILES_H_
#define DDL_MODEL_CHECKPOINT_WEIGHT_FILES_H_

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint/checkpoint.h"

namespace ddl {

// A tensor and the file it is in (a name inside the folder).
struct FiledTensor {
  TensorView view;
  std::string file;
};

// All tensors of a folder, wherever they are.
struct WeightFiles {
  std::filesystem::path path;  // of the one file, or of the index of several
  bool sharded = false;
  std::map<std::string, FiledTensor, std::less<>> tensors;
  std::vector<std::shared_ptr<const void>> storage;
};

// Finds and reads a folder's weights: safetensors before PyTorch's own format, one file before an
// index with shards. Checks that each file is whole and that the shards agree with their index, but
// nothing of the model: `tied` are names of one and the same tensor, of which an index may
// name more than the shards hold.
absl::StatusOr<WeightFiles> ReadWeightFiles(const std::filesystem::path& folder,
                                            std::span<const std::string_view> tied);

// Whether a file is, by its name, weights that tools/convert_checkpoint.py may read.
bool IsWeightFileName(std::string_view name);

// Whether a folder without config.json holds a training run's checkpoint by the look of its files,
// or a folder with a config.json.
bool HoldsTrainingCheckpoint(const std::filesystem::path& folder);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_WEIGHT_FILES_H_
