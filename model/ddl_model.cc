#include "model/ddl_model.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/batch_invariance.h"
#include "model/kernels/packed_batch.h"
#include "model/wanted_rows.h"
#include "model/weights.h"

namespace ddl {
namespace {

// Whether the convolution over value channels looks only backwards. Of the official revisions'
// eager code only 2b55f25's ignores the key.
bool ChannelsAreCausal(const Checkpoint& checkpoint, const RunnerOptions& options) {
  return checkpoint.config().ddl_state_dv_shortconv_causal &&
         (checkpoint.revision() != Revision::k2b55f25 || options.obey_dv_shortconv_causal);
}

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// `weight` with zeros added up to [rows, columns]; itself where it has that shape. Zero rows of
// c_fc1 and c_fc2 give silu(0) * 0 = 0, and zero columns of c_proj take them: the products are the
// same.
at::Tensor PaddedTo(int64_t rows, int64_t columns, const at::Tensor& weight) {
  if (weight.size(0) == rows && weight.size(1) == columns) return weight;
  return at::constant_pad_nd(weight, {0, columns - weight.size(1), 0, rows - weight.size(0)});
}

int64_t MaxContextLength(const Checkpoint& checkpoint, const RunnerOptions& options) {
  return options.max_context_length > 0 ? options.max_context_length
                                        : checkpoint.config().block_size;
}

}  // namespace

DdlModel::DdlModel(std::shared_ptr<const Checkpoint> checkpoint_pointer,
                   const RunnerOptions& options, const Device* device)
    : checkpoint_(std::move(checkpoint_pointer)),
      options_(options),
      device_(device),
      dtype_(options.dtype == RunnerDType::kFloat32 ? at::kFloat : at::kBFloat16),
      kernel_type_(options.dtype == RunnerDType::kFloat32 ? kernels::Type::kFloat32
                                                          : kernels::Type::kBFloat16),
      kernels_(device->kernels()),
      rewrite_(checkpoint_->variant() == Variant::kGpt ? kernels::Rewrite::kAdd
                                                       : kernels::Rewrite::kDelta),
      d_(checkpoint_->config().hidden_size),
      dv_(checkpoint_->value_channels()),
      mlp_width_(RoundUp(MlpWidth(checkpoint_->config(), checkpoint_->variant()),
                         device->matmul_multiple())),
      k_eps_(static_cast<float>(checkpoint_->config().ddl_k_eps)),
      residual_multiplier_(static_cast<float>(ResidualMultiplier(checkpoint_->config()))),
      logit_scale_(static_cast<float>(LogitScale(checkpoint_->config()))),
      rotary_(checkpoint_->config(), MaxContextLength(*checkpoint_, options), device->tensors()) {
  const Checkpoint& checkpoint = *checkpoint_;
  const ModelConfig& config = checkpoint.config();
  const at::TensorOptions activations = at::TensorOptions().dtype(dtype_).device(device->tensors());
  const at::TensorOptions floats = activations.dtype(at::kFloat);
  const auto weight = [&](const std::string& name) {
    return WeightAs(checkpoint.Get(name), activations);
  };
  embedding_ = weight("transformer.wte.weight");
  HugePages memory;
  const LinearOptions linear = {.kernels = device->matmul_kernels(),
                                .memory = &memory,
                                .quantization = options.quantization,
                                .rows_at_once = device->matmul_rows()};
  const bool tied = !checkpoint.Has("lm_head.weight");
  head_ = Linear({tied ? embedding_ : weight("lm_head.weight")}, linear);
  if (checkpoint.Has("input_embed.conv.weight")) {
    const TensorView& conv = checkpoint.Get("input_embed.conv.weight");
    input_taps_ = conv.shape[2];
    input_conv_ = KernelFloats(WeightFloats(conv), device->tensors());
  }

  const bool dv_causal = ChannelsAreCausal(checkpoint, options);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string prefix = "transformer.h." + std::to_string(i) + ".";
    layers_.push_back(
        {DeltaResidual::BeforeSublayer(checkpoint, prefix, "attn", dv_causal, device->tensors()),
         Attention(checkpoint, prefix + "attn.", activations, linear, *device, &rotary_),
         DeltaResidual::BeforeSublayer(checkpoint, prefix, "mlp", dv_causal, device->tensors()),
         Linear({PaddedTo(mlp_width_, d_, weight(prefix + "mlp.c_fc1.weight")),
                 PaddedTo(mlp_width_, d_, weight(prefix + "mlp.c_fc2.weight"))},
                linear),
         Linear({PaddedTo(d_, mlp_width_, weight(prefix + "mlp.c_proj.weight"))}, linear)});
  }
  before_head_ = DeltaResidual::BeforeHead(checkpoint, dv_causal, device->tensors());

  MakeCaches(options.kv_num_blocks);

  // Matrix products of whole slices then read no rows but these.
  const int64_t rows = RoundUp(options.max_step_tokens, std::max<int64_t>(linear.rows_at_once, 1));
  x_ = at::empty({rows, d_, dv_}, activations);
  c_ = at::empty({rows, d_}, activations);
  const int64_t heads_width = int64_t{config.num_attention_heads} * config.head_dim;
  attention_workspace_.y = at::empty({rows, heads_width}, activations);
  mlp_y_ = at::empty({rows, mlp_width_}, activations);
  if (device->tensors().is_cpu()) {  // the allocators of others cache freed memory
    h_ = at::empty({rows, d_}, activations);
    attention_workspace_.h = h_;
    attention_workspace_.qkv = at::empty({rows, 3 * heads_width}, activations);
    mlp_ab_ = at::empty({rows, 2 * mlp_width_}, activations);
    logits_ = at::empty({options.max_sequences, head_.out_features()}, floats);
  }
  v_ = at::empty({rows, dv_}, floats);
  beta_ = at::empty({rows}, floats);
}

int64_t DdlModel::activation_bytes() const {
  int64_t bytes = 0;
  for (const at::Tensor* buffer : {&x_, &c_, &attention_workspace_.qkv, &attention_workspace_.y,
                                   &mlp_ab_, &mlp_y_, &h_, &logits_, &v_, &beta_}) {
    if (buffer->defined()) bytes += static_cast<int64_t>(buffer->nbytes());
  }
  return bytes;
}

std::string DdlModel::FindBatchDependence() const {
  const at::TensorOptions options = embedding_.options();
  const ModelConfig& config = checkpoint_->config();
  const AttentionShape shape = {config.num_attention_heads, config.head_dim,
                                options_.kv_block_size};
  std::string found = ddl::FindBatchDependence(*device_, shape, options);
  if (!found.empty()) return absl::StrCat("attention: ", found);
  for (size_t i = 0; i < layers_.size(); ++i) {
    std::vector<Attention::NamedMatMul> all = layers_[i].attention.MatMuls();
    all.push_back({"mlp.c_fc1, c_fc2", &layers_[i].mlp_input});
    all.push_back({"mlp.c_proj", &layers_[i].mlp_output});
    for (const auto& [name, linear] : all) {
      found = ddl::FindBatchDependence(*linear, options);
      if (!found.empty()) return absl::StrCat("layer ", i, ", ", name, ": ", found);
    }
  }
  found = ddl::FindBatchDependence(head_, options);
  return found.empty() ? found : absl::StrCat("the LM head: ", found);
}

void DdlModel::MakeCaches(int32_t kv_num_blocks) {
  const ModelConfig& config = checkpoint_->config();
  const at::Device device = device_->tensors();
  // The old ones are freed first: a device may not hold both.
  decode_graphs_.reset();
  kv_cache_ = {};
  compress_tails_ = {};
  shift_tails_ = {};
  // The last block, and the last slot of tails with it, belong to no sequence.
  const int64_t blocks = int64_t{kv_num_blocks} + 1;
  kv_cache_ = KvCache({config.num_hidden_layers, blocks, config.num_attention_heads,
                       options_.kv_block_size, config.head_dim},
                      at::TensorOptions().dtype(dtype_).device(device));
  // Slots of sequences, then one for each block.
  const int64_t slots = options_.max_sequences + blocks;
  spare_slot_ = static_cast<int32_t>(slots - 1);
  const Tails::Shape compress_tails = Tails::OfCompress(*checkpoint_);
  const Tails::Shape shift_tails = Tails::OfShifts(*checkpoint_);
  compress_tails_ = Tails(slots, compress_tails, device);
  shift_tails_ = Tails(slots, shift_tails, device);
  has_tails_ = compress_tails.count * compress_tails.width + shift_tails.count > 0;
  decode_graphs_ = device_->MakeDecodeGraphs(
      {.max_rows = std::min(options_.max_sequences, options_.max_step_tokens),
       .longest = max_context_length(),
       .kv_block_size = options_.kv_block_size,
       .block_table_stride =
           (max_context_length() + options_.kv_block_size - 1) / options_.kv_block_size,
       .spare_block = kv_num_blocks,
       .spare_slot = spare_slot_});
}

void DdlModel::ExpandInput(const StepInput& input) {
  kernels::ExpandInputArgs args;
  args.type = kernel_type_;
  args.d = d_;
  args.dv = dv_;
  args.taps = input_taps_;
  args.embedding = embedding_.const_data_ptr();
  args.conv = input_conv_.data();
  args.ids = input.ids;
  args.x = x_.data_ptr();
  kernels_.ExpandInput(input.batch, args);
}

void DdlModel::Boundary(const kernels::Batch& batch, const DeltaResidual& residual,
                        const at::Tensor& h, int64_t index, const StatsTensors& stats) {
  kernels::DeltaStepArgs args;
  args.type = kernel_type_;
  args.d = d_;
  args.dv = dv_;
  args.x = x_.data_ptr();
  args.rewrite = h.defined() ? rewrite_ : kernels::Rewrite::kNone;
  args.h = h.defined() ? h.const_data_ptr() : nullptr;
  args.k_eps = k_eps_;
  args.residual_multiplier = residual_multiplier_;
  residual.Describe(args);
  if (residual.taps() > 1) {
    args.tail = compress_tails_.data(index);
    args.tail_stride = compress_tails_.stride();
  }
  args.c = c_.data_ptr();
  args.v = v_.data_ptr<float>();
  args.beta = beta_.data_ptr<float>();
  if (stats.update_ratio.defined() && index > 0) {
    args.update_ratio = stats.update_ratio.select(0, index - 1).data_ptr<float>();
  }
  kernels_.DeltaStep(batch, args);
  if (stats.beta.defined() && args.gates) {
    stats.beta.select(0, index).copy_(beta_.narrow(0, 0, batch.tokens));
  }
}

at::Tensor DdlModel::Mlp(const kernels::Batch& batch, const Layer& layer,
                         const at::Tensor& c) const {
  const at::Tensor ab = layer.mlp_input(c, mlp_ab_);
  const at::Tensor y = mlp_y_.narrow(0, 0, c.size(0));
  kernels::SwiGluArgs args;
  args.type = kernel_type_;
  args.m = mlp_width_;
  args.ab = ab.const_data_ptr();
  args.y = y.data_ptr();
  kernels_.SwiGlu(batch, args);
  return layer.mlp_output(y, h_);
}

at::Tensor DdlModel::Forward(const kernels::Batch& batch, const StepIds& ids,
                             const std::vector<int32_t>& wanted, const StateObserver& observe_state,
                             Stats* stats) {
  const auto layers = [this](const StepInput& input) { RunLayers(input, nullptr, nullptr, {}); };
  const bool plain = observe_state == nullptr && stats == nullptr;
  if (plain && decode_graphs_ != nullptr && decode_graphs_->Run(batch, ids, layers)) {
    return c_.narrow(0, 0, batch.tokens);
  }
  StatsTensors stats_tensors;
  if (stats != nullptr && rewrite_ == kernels::Rewrite::kDelta) {
    stats_tensors.beta =
        at::empty({2 * static_cast<int64_t>(layers_.size()), batch.tokens}, v_.options());
    stats_tensors.update_ratio = at::empty_like(stats_tensors.beta);
  }
  const StepInput input = device_->Upload(batch, ids);
  if (plain && static_cast<int64_t>(wanted.size()) < batch.tokens) {
    const int64_t taps = std::max(layers_.back().before_mlp.taps(), before_head_.taps());
    const WantedRows rows(batch, wanted, taps, spare_slot_);
    const StepInput wanted_input =
        device_->Upload(rows.batch(), {.ids = rows.rows(), .from = {}, .to = {}});
    RunLayers(input, &wanted_input, observe_state, stats_tensors);
  } else {
    RunLayers(input, nullptr, observe_state, stats_tensors);
  }
  if (stats_tensors.beta.defined()) {
    *stats = {Floats(stats_tensors.beta), Floats(stats_tensors.update_ratio)};
  }
  return c_.narrow(0, 0, batch.tokens);
}

void DdlModel::RunLayers(const StepInput& input, const StepInput* wanted,
                         const StateObserver& observe_state, const StatsTensors& stats) {
  const kernels::Batch* batch = &input.batch;
  const auto num_layers = static_cast<int64_t>(layers_.size());
  const auto observe = [&](int64_t layer) {
    if (observe_state && layer >= 0) observe_state(layer, x_.narrow(0, 0, batch->tokens));
  };
  const auto rows = [&](const at::Tensor& all) { return all.narrow(0, 0, batch->tokens); };
  at::Tensor wanted_rows;
  if (wanted != nullptr && wanted->batch.tokens > 0) {
    wanted_rows = at::from_blob(const_cast<int32_t*>(wanted->ids), {wanted->batch.tokens},
                                at::TensorOptions().dtype(at::kInt).device(x_.device()));
  }

  ExpandInput(input);
  at::Tensor h;
  for (int64_t l = 0; l < num_layers; ++l) {
    const Layer& layer = layers_[l];
    const kernels::KvCache cache = kv_cache_.layer(l);
    Boundary(*batch, layer.before_attention, h, 2 * l, stats);
    observe(l - 1);
    at::Tensor qkv =
        layer.attention.Write(*batch, rows(c_), cache, &shift_tails_, l, attention_workspace_);
    if (wanted != nullptr && l == num_layers - 1) {
      batch = &wanted->batch;
      if (batch->tokens == 0) return;
      for (const at::Tensor* of_rows : {&c_, &x_, &v_, &beta_, &qkv}) {
        of_rows->narrow(0, 0, batch->tokens).copy_(of_rows->index_select(0, wanted_rows));
      }
      qkv = rows(qkv);
    }
    h = layer.attention.Read(*batch, rows(c_), qkv, cache, attention_workspace_);
    Boundary(*batch, layer.before_mlp, h, 2 * l + 1, stats);
    h = Mlp(*batch, layer, rows(c_));
  }
  Boundary(*batch, before_head_, h, 2 * num_layers, stats);
  observe(num_layers - 1);
  if (wanted != nullptr) {
    c_.index_copy_(0, wanted_rows.to(at::kLong), c_.narrow(0, 0, batch->tokens).clone());
  }
}

bool DdlModel::ReadsOverTokens(HiddenReadout::Kind kind) const {
  return before_head_.taps() > 1 &&
         (kind == HiddenReadout::Kind::kFinalNorm || kind == HiddenReadout::Kind::kCompressed);
}

absl::StatusOr<at::Tensor> DdlModel::Read(const HiddenReadout& readout, int64_t layer,
                                          const at::Tensor& x, int32_t slot, int32_t start) {
  using Kind = HiddenReadout::Kind;
  if (readout.kind == Kind::kChannel) return x.select(2, readout.channel);
  if (readout.kind == Kind::kStateFlat) return x.reshape({x.size(0), d_ * dv_});

  // One sequence's boundary that rewrites nothing.
  const auto rows = static_cast<int32_t>(x.size(0));
  kernels::PackedBatch packed(/*block_table_stride=*/0);
  packed.AddSequence(slot, {});
  for (int32_t row = 0; row < rows; ++row) packed.AddRow(start + row);

  kernels::DeltaStepArgs args;
  args.type = kernel_type_;
  args.d = d_;
  args.dv = dv_;
  args.x = x.data_ptr();
  const bool is_final = readout.kind == Kind::kFinalNorm;
  (is_final ? before_head_ : layers_[layer].before_attention).Describe(args);
  args.gates = false;
  if (ReadsOverTokens(readout.kind)) {
    ReadoutTails& memory = readout_tails_[{layer, readout.kind}];
    if (memory.end.empty()) {
      memory.tails =
          Tails(options_.max_sequences, {1, (before_head_.taps() - 1) * d_}, device_->tensors());
      memory.end.resize(options_.max_sequences, 0);
    }
    if (start > 0 && memory.end[slot] != start) {
      return absl::FailedPreconditionError(
          "this readout convolves over tokens, and the positions before were not read for it");
    }
    memory.end[slot] = start + rows;
    args.tail = memory.tails.data(0);
    args.tail_stride = memory.tails.stride();
  }
  const at::Tensor x_in = at::empty({rows, d_}, x.options());
  const at::Tensor c = at::empty({rows, d_}, x.options());
  args.x_in = x_in.data_ptr();
  args.c = c.data_ptr();
  kernels_.DeltaStep(device_->Upload(packed.batch(), {}).batch, args);
  return is_final ? c : x_in;
}

at::Tensor DdlModel::Logits(const at::Tensor& hidden) const {
  const bool fits = logits_.defined() && hidden.size(0) <= logits_.size(0);
  at::Tensor logits = head_.ToFloat(hidden, fits ? logits_ : at::Tensor());
  if (logit_scale_ != 1.0f) logits.mul_(logit_scale_);
  return logits;
}

}  // namespace ddl
