#include "model/checkpoint/checkpoint_layout.h"

#include <charconv>
#include <initializer_list>
#include <iterator>
#include <utility>

#include "base/problem_list.h"
#include "base/strict_json.h"

namespace ddl {
namespace {

constexpr std::string_view kLayerPrefix = "transformer.h.";
constexpr std::string_view kReadout = "readout.";
constexpr std::string_view kCompress = "compress.";
constexpr std::string_view kInputEmbed = "input_embed.";

// ---- The layouts

// How a tensor of n rows and k columns lies in a file; its elements are in the same order anyway.
enum class Axes {
  kRows,      // (n, k)
  kRowsOne,   // (n, 1, k)
  kChannels,  // (d, n / d, k)
};

struct TensorForm {
  std::string_view ending;  // of its name
  Axes axes = Axes::kRows;
};

// The tensors that not every revision writes alike.
struct RevisionLayout {
  Revision revision;
  TensorForm output;            // of attn. and mlp.: (d, width)
  TensorForm token_compress;    // of compress. and readout. in TC: n = d * dv
  TensorForm channel_compress;  // of compress. and readout. in CC: n = d
  TensorForm expansion;         // of input_embed.: n = d * dv
  bool kernel_is_dv;            // CC: k = dv; otherwise k <= dv
};

// clang-format off
constexpr RevisionLayout kLayouts[] = {
    {Revision::kLegacy,  {"c_proj.weight"}, {"shortconv.conv.weight", Axes::kRowsOne},
     {"shortconv.weight", Axes::kRowsOne}, {"conv.weight", Axes::kRowsOne}, false},
    {Revision::k2b55f25, {"c_proj.weight"}, {"shortconv.weight", Axes::kRows},
     {"weight", Axes::kRows},              {"conv.weight", Axes::kRowsOne}, true},
    {Revision::kD1f7621, {"o_proj.weight"}, {"weight", Axes::kChannels},
     {"weight", Axes::kRows},              {"weight", Axes::kChannels},     false},
};
// clang-format on
constexpr Revision kOwnRevision = Revision::k2b55f25;

const RevisionLayout& LayoutOf(Revision revision) {
  return kLayouts[static_cast<size_t>(revision)];
}

size_t RankOf(Axes axes) { return axes == Axes::kRows ? 2 : 3; }

Shape ShapeOf(Axes axes, int64_t d, int64_t rows, int64_t columns) {
  switch (axes) {
    case Axes::kRows:
      return {rows, columns};
    case Axes::kRowsOne:
      return {rows, 1, columns};
    case Axes::kChannels:
      return {d, rows / d, columns};
  }
  return {};
}

// ---- Names

// The tensors that a name may be of, by what stands before its ending.
enum class Place { kSublayer, kCompressor, kExpansion };

struct PlacedName {
  Place place;
  std::string_view ending;
};

std::optional<PlacedName> PlaceOf(std::string_view name) {
  const auto after = [&](std::string_view prefix, Place place) -> std::optional<PlacedName> {
    if (!name.starts_with(prefix)) return std::nullopt;
    return PlacedName{place, name.substr(prefix.size())};
  };
  if (!LayerIndex(name)) {
    if (const auto readout = after(kReadout, Place::kCompressor)) return readout;
    return after(kInputEmbed, Place::kExpansion);
  }
  name.remove_prefix(kLayerPrefix.size());
  name.remove_prefix(name.find('.') + 1);
  if (const auto compress = after(kCompress, Place::kCompressor)) return compress;
  if (const auto attention = after("attn.", Place::kSublayer)) return attention;
  return after("mlp.", Place::kSublayer);
}

bool IsTc(Variant variant) { return variant == Variant::kTc || variant == Variant::kTcec; }
bool IsCc(Variant variant) { return variant == Variant::kCc || variant == Variant::kCcec; }
bool HasCompressor(Variant variant) { return IsTc(variant) || IsCc(variant); }

// The form that a revision gives to what stands at a place in a variant; null in a variant that has
// nothing there.
const TensorForm* FormAt(Place place, const CheckpointLayout& layout) {
  const RevisionLayout& forms = LayoutOf(layout.revision);
  switch (place) {
    case Place::kSublayer:
      return &forms.output;
    case Place::kCompressor:
      if (!HasCompressor(layout.variant)) return nullptr;
      return IsTc(layout.variant) ? &forms.token_compress : &forms.channel_compress;
    case Place::kExpansion:
      return &forms.expansion;
  }
  return nullptr;
}

// The form of a tensor that not every revision writes alike; null for the others.
const TensorForm* FormOf(std::string_view name, const CheckpointLayout& layout) {
  const std::optional<PlacedName> placed = PlaceOf(name);
  const TensorForm* form = placed ? FormAt(placed->place, layout) : nullptr;
  return form != nullptr && placed->ending == form->ending ? form : nullptr;
}

// ---- Detection

// Sets of layouts, all those of one revision that compress alike being one: a bit each.
constexpr unsigned kEvery = (1u << 2 * std::size(kLayouts)) - 1;

unsigned SetOf(Revision revision, bool tc) {
  return 1u << (2 * static_cast<unsigned>(revision) + (tc ? 1 : 0));
}

// The layouts in which a tensor of this name and rank can be; all for tensors that every revision
// writes alike. A listed name with another rank counts by its name.
unsigned LayoutsWith(std::string_view name, size_t rank) {
  const std::optional<PlacedName> placed = PlaceOf(name);
  if (!placed) return kEvery;
  unsigned by_name = 0, by_rank = 0;
  for (const RevisionLayout& layout : kLayouts) {
    for (const Variant variant : {Variant::kTcec, Variant::kCcec}) {
      const TensorForm& form = *FormAt(placed->place, {variant, layout.revision});
      if (placed->ending != form.ending) continue;
      by_name |= SetOf(layout.revision, IsTc(variant));
      if (rank == RankOf(form.axes)) by_rank |= SetOf(layout.revision, IsTc(variant));
    }
  }
  if (by_rank != 0) return by_rank;
  return by_name != 0 ? by_name : kEvery;
}

// The compressors' kernel size k.
int64_t CompressTaps(const ModelConfig& config, const CheckpointLayout& layout) {
  constexpr int64_t kTcDefault = 4;
  const int64_t fallback = IsTc(layout.variant) ? kTcDefault : config.ddl_value_channels;
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
      AddForm(std::string(kInputEmbed), Place::kExpansion, d_ * dv_,
              config_.input_embed_shortconv_kernel_size);
    }
    return std::move(shapes_);
  }

 private:
  void Add(std::string name, Shape shape) { shapes_.emplace(std::move(name), std::move(shape)); }

  void AddForm(const std::string& prefix, Place place, int64_t rows, int64_t columns) {
    const TensorForm& form = *FormAt(place, layout_);
    Add(prefix + std::string(form.ending), ShapeOf(form.axes, d_, rows, columns));
  }

  void AddLayer(const std::string& layer) {
    Add(layer + "ln_1.weight", {d_});
    Add(layer + "ln_2.weight", {d_});
    AddAttention(layer + "attn.");
    const int64_t m = MlpWidth(config_, layout_.variant);
    Add(layer + "mlp.c_fc1.weight", {m, d_});
    Add(layer + "mlp.c_fc2.weight", {m, d_});
    AddForm(layer + "mlp.", Place::kSublayer, d_, m);
    if (layout_.variant == Variant::kGpt) return;
    AddCompressor(layer + std::string(kCompress));
    AddDelta(layer + "ddl_attn.");
    AddDelta(layer + "ddl_mlp.");
  }

  void AddAttention(const std::string& attn) {
    Add(attn + "c_q.weight", {width_, d_});
    AddShiftable(attn + "c_k.", config_.use_k_shift);
    AddShiftable(attn + "c_v.", config_.use_v_shift);
    AddForm(attn, Place::kSublayer, d_, width_);
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
    if (!HasCompressor(layout_.variant)) return;
    AddForm(prefix, Place::kCompressor, IsTc(layout_.variant) ? d_ * dv_ : d_,
            CompressTaps(config_, layout_));
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
  std::map<unsigned, std::string> evidence;  // sets of layouts, with an example of each
  bool has_delta = false, has_compressor = false, expands = false;
  unsigned possible = kEvery;
  for (const auto& [name, shape] : found) {
    const unsigned layouts = LayoutsWith(name, shape.size());
    if (layouts != kEvery) {
      evidence.emplace(layouts, ShowName(name) + ", found " + ShowShape(shape));
    }
    possible &= layouts;
    const std::optional<PlacedName> placed = PlaceOf(name);
    has_compressor |= placed && placed->place == Place::kCompressor;
    expands |= placed && placed->place == Place::kExpansion;
    has_delta |= name.find(".ddl_attn.") != name.npos || name.find(".ddl_mlp.") != name.npos;
  }
  if (possible == 0) {
    ProblemList examples;
    for (const auto& [layouts, example] : evidence) examples.Add(example);
    return absl::InvalidArgumentError(
        examples.Message("tensors of different variants or revisions are mixed:"));
  }
  // The newest that is left; of two kinds of compressors CC.
  CheckpointLayout layout;
  bool tc = false;
  for (const RevisionLayout& candidate : kLayouts) {
    for (const bool is_tc : {true, false}) {
      if ((possible & SetOf(candidate.revision, is_tc)) == 0) continue;
      layout.revision = candidate.revision;
      tc = is_tc;
    }
  }
  if (!has_compressor) {
    layout.variant = has_delta ? Variant::kVdim1 : Variant::kGpt;
  } else if (tc) {
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
  return HasCompressor(layout.variant) ? config.ddl_value_channels : 1;
}

absl::Status CheckSizes(const ModelConfig& config, const CheckpointLayout& layout) {
  if (!HasCompressor(layout.variant)) return absl::OkStatus();
  const int64_t dv = config.ddl_value_channels;
  const std::string tensors = "for the tensors found (variant " +
                              std::string(VariantName(layout.variant)) + ", " +
                              std::string(RevisionName(layout.revision)) + ")";
  if (dv < 2) {
    return absl::InvalidArgumentError("ddl_value_channels: found " + std::to_string(dv) +
                                      ", allowed " + tensors + " is 2 or more");
  }
  const int64_t taps = CompressTaps(config, layout);
  const bool is_dv = LayoutOf(layout.revision).kernel_is_dv;
  if (IsTc(layout.variant) || taps == dv || (taps < dv && !is_dv)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "ddl_state_shortconv_kernel_size: found " + std::to_string(taps) + ", allowed " + tensors +
      " is " + (is_dv ? "only" : "at most") + " ddl_value_channels, " + std::to_string(dv));
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

std::string OwnName(std::string_view name, const CheckpointLayout& layout) {
  const TensorForm* form = FormOf(name, layout);
  if (form == nullptr) return std::string(name);
  const TensorForm& own = *FormAt(PlaceOf(name)->place, {layout.variant, kOwnRevision});
  return std::string(name.substr(0, name.size() - form->ending.size())) + std::string(own.ending);
}

Shape OwnShape(std::string_view name, const Shape& shape, const CheckpointLayout& layout) {
  const TensorForm* form = FormOf(name, layout);
  if (form == nullptr) return shape;
  const TensorForm& own = *FormAt(PlaceOf(name)->place, {layout.variant, kOwnRevision});
  const int64_t channels = form->axes == Axes::kChannels ? shape[1] : 1;
  return ShapeOf(own.axes, shape.front(), shape.front() * channels, shape.back());
}

}  // namespace ddl
