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

// How a file writes the compressors. The bare name `compress.shortconv.weight` is ambiguous: rank
// 2 is today's TC, rank 3 the older CC.
enum class CompressLayout {
  kNone,      // gpt, vdim1
  kTc,        // *.shortconv.weight       (d*dv, k)
  kLegacyTc,  // *.shortconv.conv.weight  (d*dv, 1, k)
  kCc,        // *.weight                 (d, k), k = dv
  kLegacyCc,  // *.shortconv.weight       (d, 1, k), k <= dv
};

// What the tensors' names and ranks tell about the model.
struct CheckpointLayout {
  Variant variant = Variant::kGpt;
  CompressLayout compress = CompressLayout::kNone;
};

// Fails if the compressors are written in more than one way. A file that lacks tensors still gets
// the layout it comes closest to, so that what it lacks can be named.
absl::StatusOr<CheckpointLayout> DetectLayout(const ShapesByName& found);

// Whether the state starts from a convolution over token embeddings (EC).
bool HasInputExpansion(Variant variant);

// dv of a model of this layout.
int64_t ValueChannels(const ModelConfig& config, const CheckpointLayout& layout);

// Whether the configuration's sizes are ones that this layout can have.
absl::Status CheckSizes(const ModelConfig& config, const CheckpointLayout& layout);

// Every tensor that the official code would save for this configuration, by its name in this
// layout, except the tied lm_head.weight. CheckSizes holds.
ShapesByName ExpectedShapes(const ModelConfig& config, const CheckpointLayout& layout);

// Index i of "transformer.h.<i>.<rest>"; nothing for other names.
std::optional<int64_t> LayerIndex(std::string_view name);

// Today's official name and shape of a tensor of this layout. An older shape (n, 1, k) loses the
// middle axis.
std::string TodaysName(std::string_view name, const CheckpointLayout& layout);
Shape TodaysShape(std::string_view name, const Shape& shape, const CheckpointLayout& layout);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_CHECKPOINT_LAYOUT_H_
