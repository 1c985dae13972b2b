#ifndef DDL_MODEL_CHECKPOINT_CHECKPOINT_LAYOUT_H_
#define DDL_MODEL_CHECKPOINT_CHECKPOINT_LAYOUT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/checkpoint/model_config.h"

namespace ddl {

using Shape = std::vector<int64_t>;
using ShapesByName = std::map<std::string, Shape, std::less<>>;

std::string ShowShape(const Shape& shape);  // "(128, 1, 4)"

// What is inferred of the model from its tensors' names and ranks. A table in checkpoint_layout.cc
// has the tensors that not all revisions write alike. Without a compressor legacy files are as
// 2b55f25's.
struct CheckpointLayout {
  Variant variant = Variant::kGpt;
  Revision revision = Revision::kD1f7621;

  friend bool operator==(const CheckpointLayout&, const CheckpointLayout&) = default;
};

// Fails if the names are of more than one variant or revision. A file that lacks tensors still gets
// the layout it comes closest to, so that what it lacks can be named.
absl::StatusOr<CheckpointLayout> DetectLayout(const ShapesByName& found);

// Whether the state starts from a convolution over token embeddings (EC).
bool HasInputExpansion(Variant variant);

// dv of a model of this layout.
int64_t ValueChannels(const ModelConfig& config, const CheckpointLayout& layout);

// Whether the configuration's sizes are ones that this layout can have.
absl::Status CheckSizes(const ModelConfig& config, const CheckpointLayout& layout);

// Every tensor that the official code of this layout's revision would save for this configuration,
// by its name there, except lm_head.weight. CheckSizes holds.
ShapesByName ExpectedShapes(const ModelConfig& config, const CheckpointLayout& layout);

// Index i of "transformer.h.<i>.<rest>"; nothing for other names.
std::optional<int64_t> LayerIndex(std::string_view name);

// The name and shape that a tensor of this layout has in the server: those of 2b55f25, where no
// name stands for two things (in d1f7621 `compress.weight` is TC's by rank 3, CC's by rank 2). The
// elements and their order are the same everywhere.
std::string OwnName(std::string_view name, const CheckpointLayout& layout);
Shape OwnShape(std::string_view name, const Shape& shape, const CheckpointLayout& layout);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_CHECKPOINT_LAYOUT_H_
