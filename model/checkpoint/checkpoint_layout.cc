#include "model/checkpoint/checkpoint_layout.h"

#include <charconv>
#include <initializer_list>
#include <utility>

#include "base/problem_list.h"
#include "base/strict_json.h"

namespace ddl {
namespace {

constexpr std::string_view kLayerPrefix = "transformer.h.";
constexpr std::string_view kReadout = "readout.";
constexpr std::string_view kCompress = "compress.";

// What follows "compress." or "readout." in a compressor's tensor; nothing for other names.
std::optional<std::string_view> CompressorPart(std::string_view name) {
  if (name.starts_with(kReadout)) return name.substr(kReadout.size());
  if (!LayerIndex(name)) return std::nullopt;
  name.remove_prefix(kLayerPrefix.size());
  name.remove_prefix(name.find('.') + 1);
  if (!name.starts_with(kCompress)) return std::nullopt;
  return name.substr(kCompress.size());
}

std::optional<CompressLayout> LayoutOf(std::string_view part, size_t rank) {
  if (part == "shortconv.conv.weight") return CompressLayout::kLegacyTc;
  if (part == "shortconv.weight")
    return rank == 3 ? CompressLayout::kLegacyCc : CompressLayout::kTc;
  if (part == "weight") return CompressLayout::kCc;
  return std::nullopt;
}

bool IsTc(CompressLayout layout) {
  return layout == CompressLayout::kTc || layout == CompressLayout::kLegacyTc;
}

// The compressors' kernel size k.
int64_t CompressTaps(const ModelConfig& config, const CheckpointLayout& layout) {
  constexpr int64_t kTcDefault = 4;
  const int64_t fallback = IsTc(layout.compress) ? kTcDefault : config.ddl_value_channels;
  return config.ddl_state_shortconv_kernel_size.value_or(fallback);
}

class ShapeTable {
 public:
  explicit ShapeTable(const ModelConfig& config, const CheckpointLayout& layout)
      : config_(config),
        layout_(layout),
        d_(config.hidden_size),
        dv_(ValueChannels(config, layout)),
        width_(config.num_attention_heads * config.head_dim) {}

  ShapesByName Build() && {
    Add("transformer.wte.weight", {config_.vocab_size, d_});
    Add("ln_f.weight", {d_});
    for (int64_t i = 0; i < config_.num_hidden_layers; ++i) {
      AddLayer(std::string(kLayerPrefix) + std::to_string(i) + ".");
    }
    AddCompressor(std::string(kReadout));
    if (HasInputExpansion(layout_.variant)) {
      Add("input_embed.conv.weight", {d_ * dv_, 1, config_.input_embed_shortconv_kernel_size});
    }
    return std::move(shapes_);
  }

 private:
  void Add(std::string name, Shape shape) { shapes_.emplace(std::move(name), std::move(shape)); }

  void AddLayer(const std::string& layer) {
    Add(layer + "ln_1.weight", {d_});
    Add(layer + "ln_2.weight", {d_});
    AddAttention(layer + "attn.");
    const int64_t m = MlpWidth(config_, layout_.variant);
    Add(layer + "mlp.c_fc1.weight", {m, d_});
    Add(layer + "mlp.c_fc2.weight", {m, d_});
    Add(layer + "mlp.c_proj.weight", {d_, m});
    if (layout_.variant == Variant::kGpt) return;
    AddCompressor(layer + std::string(kCompress));
    AddDelta(layer + "ddl_attn.");
    AddDelta(layer + "ddl_mlp.");
  }

  void AddAttention(const std::string& attn) {
    Add(attn + "c_q.weight", {width_, d_});
    AddShiftable(attn + "c_k.", config_.use_k_shift);
    AddShiftable(attn + "c_v.", config_.use_v_shift);
    Add(attn + "c_proj.weight", {d_, width_});
    if (config_.use_qk_rmsnorm) {
      Add(attn + "q_rms.weight", {config_.head_dim});
      Add(attn + "k_rms.weight", {config_.head_dim});
    }
    if (config_.using_groupnorm) Add(attn + "subln.weight", {config_.head_dim});
    if (config_.use_output_gate) {
      Add(attn + "g_proj.weight", {width_, d_});
      // The group norm takes the place of the gate's own.
      if (!config_.using_groupnorm) Add(attn + "o_norm.weight", {config_.head_dim});
    }
  }

  void AddShiftable(const std::string& projection, bool shifted) {
    Add(projection + (shifted ? "linear.weight" : "weight"), {width_, d_});
    if (shifted) Add(projection + "shift_proj.weight", {config_.num_attention_heads, d_});
  }

  // v_proj is stored, and dead, even if v is constant.
  void AddDelta(const std::string& delta) {
    if (config_.ddl_beta_single_linear) {
      Add(delta + "beta.weight", {1, d_});
      Add(delta + "beta.bias", {1});
    } else {
      Add(delta + "beta_in.weight", {config_.ddl_beta_hidden_size, d_});
      Add(delta + "beta_out.weight", {1, config_.ddl_beta_hidden_size});
      Add(delta + "beta_out.bias", {1});
    }
    Add(delta + "v_proj.weight", {dv_, d_});
    Add(delta + "v_proj.bias", {dv_});
  }

  void AddCompressor(const std::string& prefix) {
    const int64_t taps = CompressTaps(config_, layout_);
    switch (layout_.compress) {
      case CompressLayout::kNone:
        return;
      case CompressLayout::kTc:
        Add(prefix + "shortconv.weight", {d_ * dv_, taps});
        break;
      case CompressLayout::kLegacyTc:
        Add(prefix + "shortconv.conv.weight", {d_ * dv_, 1, taps});
        break;
      case CompressLayout::kCc:
        Add(prefix + "weight", {d_, taps});
        break;
      case CompressLayout::kLegacyCc:
        Add(prefix + "shortconv.weight", {d_, 1, taps});
        break;
    }
    Add(prefix + "read", {dv_});
  }

  const ModelConfig& config_;
  const CheckpointLayout& layout_;
  const int64_t d_;
  const int64_t dv_;
  const int64_t width_;  // of all heads
  ShapesByName shapes_;
};

}  // namespace

std::string ShowShape(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

absl::StatusOr<CheckpointLayout> DetectLayout(const ShapesByName& found) {
  std::map<CompressLayout, std::string> seen;  // with an example of each
  bool has_delta = false;
  bool has_read = false;
  for (const auto& [name, shape] : found) {
    const std::optional<std::string_view> part = CompressorPart(name);
    if (part) {
      has_read = has_read || *part == "read";
      if (const std::optional<CompressLayout> layout = LayoutOf(*part, shape.size())) {
        seen.emplace(*layout, ShowName(name) + ", found " + ShowShape(shape));
      }
    }
    has_delta =
        has_delta || name.find(".ddl_attn.") != name.npos || name.find(".ddl_mlp.") != name.npos;
  }
  if (seen.size() > 1) {
    ProblemList examples;
    for (const auto& [layout, example] : seen) examples.Add(example);
    return absl::InvalidArgumentError(
        examples.Message("compressors of different variants or layouts are mixed:"));
  }
  CheckpointLayout layout;
  if (!seen.empty()) {
    layout.compress = seen.begin()->first;
  } else if (has_read) {
    layout.compress = CompressLayout::kCc;
  }
  if (layout.compress == CompressLayout::kNone) {
    layout.variant = has_delta ? Variant::kVdim1 : Variant::kGpt;
    return layout;
  }
  const bool expands = found.contains("input_embed.conv.weight");
  if (IsTc(layout.compress)) {
    layout.variant = expands ? Variant::kTcec : Variant::kTc;
  } else {
    layout.variant = expands ? Variant::kCcec : Variant::kCc;
  }
  return layout;
}

bool HasInputExpansion(Variant variant) {
  return variant == Variant::kTcec || variant == Variant::kCcec;
}

int64_t ValueChannels(const ModelConfig& config, const CheckpointLayout& layout) {
  return layout.compress == CompressLayout::kNone ? 1 : config.ddl_value_channels;
}

absl::Status CheckSizes(const ModelConfig& config, const CheckpointLayout& layout) {
  if (layout.compress == CompressLayout::kNone) return absl::OkStatus();
  const int64_t dv = config.ddl_value_channels;
  const std::string variant(VariantName(layout.variant));
  if (dv < 2) {
    return absl::InvalidArgumentError("ddl_value_channels: found " + std::to_string(dv) +
                                      ", allowed for the tensors found (variant " + variant +
                                      ") is 2 or more");
  }
  const int64_t taps = CompressTaps(config, layout);
  const bool fits = IsTc(layout.compress) || taps == dv ||
                    (layout.compress == CompressLayout::kLegacyCc && taps < dv);
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "ddl_state_shortconv_kernel_size: found " + std::to_string(taps) +
      ", allowed for the tensors found (variant " + variant + ") is " +
      (layout.compress == CompressLayout::kLegacyCc ? "at most" : "only") +
      " ddl_value_channels, " + std::to_string(dv));
}

ShapesByName ExpectedShapes(const ModelConfig& config, const CheckpointLayout& layout) {
  return ShapeTable(config, layout).Build();
}

std::optional<int64_t> LayerIndex(std::string_view name) {
  if (!name.starts_with(kLayerPrefix)) return std::nullopt;
  name.remove_prefix(kLayerPrefix.size());
  int64_t index = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  const bool followed_by_dot = end != name.data() + name.size() && *end == '.';
  if (error != std::errc() || !followed_by_dot || index < 0) return std::nullopt;
  // "00" or "+1" name no layer.
  const std::string_view digits(name.data(), static_cast<size_t>(end - name.data()));
  if (digits != std::to_string(index)) return std::nullopt;
  return index;
}

std::string TodaysName(std::string_view name, const CheckpointLayout& layout) {
  const auto replace_end = [&](std::string_view older, std::string_view today) {
    if (!CompressorPart(name) || !name.ends_with(older)) return std::string(name);
    return std::string(name.substr(0, name.size() - older.size())) + std::string(today);
  };
  switch (layout.compress) {
    case CompressLayout::kLegacyTc:
      return replace_end("shortconv.conv.weight", "shortconv.weight");
    case CompressLayout::kLegacyCc:
      return replace_end("shortconv.weight", "weight");
    default:
      return std::string(name);
  }
}

Shape TodaysShape(std::string_view name, const Shape& shape, const CheckpointLayout& layout) {
  if (TodaysName(name, layout) == name) return shape;
  return {shape.front(), shape.back()};
}

}  // namespace ddl
