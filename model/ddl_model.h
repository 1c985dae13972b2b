#ifndef DDL_MODEL_DDL_MODEL_H_
#define DDL_MODEL_DDL_MODEL_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/attention.h"
#include "model/checkpoint/checkpoint.h"
#include "model/delta_residual.h"
#include "model/device/device.h"
#include "model/hidden_readout.h"
#include "model/kernels/kernels.h"
#include "model/kv_cache.h"
#include "model/linear.h"
#include "model/runner_options.h"

namespace ddl {

// The forward pass of every variant over a packed ragged batch, with its caches:
//
//   X = expand(e)
//   per layer:  boundary (rewrite by the MLP before, compress, ln_1, v, beta) -> attention
//               boundary (rewrite by attention,      compress, ln_2, v, beta) -> MLP
//   boundary (rewrite by the last MLP, readout, ln_f) -> hidden -> logits
//
// Built once per checkpoint; Forward and Logits by one thread at a time. May throw c10::Error:
// ModelRunner turns that into a Status.
class DdlModel {
 public:
  // `device` must outlive the model.
  DdlModel(std::shared_ptr<const Checkpoint> checkpoint, const RunnerOptions& options,
           const Device* device);

  // Replaces the caches by ones of so many K/V blocks; the constructor has made
  // options.kv_num_blocks.
  void MakeCaches(int32_t kv_num_blocks);

  // Steps so far that came from a captured graph.
  int64_t graph_replays() const {
    return decode_graphs_ != nullptr ? decode_graphs_->replays() : 0;
  }

  // Called with the layer and X [tokens, d, dv] once the layer's block has written it.
  using StateObserver = std::function<void(int64_t layer, const at::Tensor& x)>;

  // Gates and updates of every position, attention and MLP of layer 0, of layer 1 ...
  struct Stats {
    std::vector<float> beta;          // [2 * layers, tokens]
    std::vector<float> update_ratio;  // likewise
  };

  // `ids` [tokens, input_taps()]: each position's token last, before it the ones that the input
  // expansion sees, -1 before the start. `wanted`: the rows of the result that will be read, in
  // order, those of a sequence adjacent. The last layer then need not compute the others beyond
  // their K and V. All are in host memory, and need only live during the call.
  // Returns hidden [tokens, d], the final norm's output, overwritten by the next call. `stats`
  // null: not wanted; left empty by the baseline, which has no delta rule.
  at::Tensor Forward(const kernels::Batch& batch, const StepIds& ids,
                     const std::vector<int32_t>& wanted, const StateObserver& observe_state,
                     Stats* stats);

  // Whether a readout convolves over tokens, so that it needs every position of a sequence in
  // order.
  bool ReadsOverTokens(HiddenReadout::Kind kind) const;
  // A readout of x [rows, d, dv], the state after `layer`'s block at positions `start`... of the
  // sequence in `slot` -> [rows, d] or, for kStateFlat, [rows, d * dv]. A readout over tokens keeps
  // tails of its own; FAILED_PRECONDITION if the read before ended elsewhere than at `start`.
  absl::StatusOr<at::Tensor> Read(const HiddenReadout& readout, int64_t layer, const at::Tensor& x,
                                  int32_t slot, int32_t start);

  // hidden [rows, d] -> logits [rows, vocab] in float32, which the next call may overwrite.
  at::Tensor Logits(const at::Tensor& hidden) const;

  // Where a row's results depend on the rows beside it, by trying (batch_invariance.h): "layer 3,
  // mlp.c_proj: ...". Empty: nowhere.
  std::string FindBatchDependence() const;

  // Of the buffers of a step.
  int64_t activation_bytes() const;
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t value_channels() const { return dv_; }
  int64_t input_taps() const { return input_taps_; }
  // Whether convolutions or shifts over tokens remember anything beyond K/V. Their tails have a
  // slot for each sequence, then (from max_sequences on) one for each K/V block.
  bool has_tails() const { return has_tails_; }
  int64_t max_context_length() const { return rotary_.positions(); }
  at::ScalarType dtype() const { return dtype_; }

 private:
  struct Layer {
    DeltaResidual before_attention;
    Attention attention;
    DeltaResidual before_mlp;
    Linear mlp_input;  // c_fc1 and c_fc2
    Linear mlp_output;
  };

  // A step's statistics on the device, as Stats has them.
  struct StatsTensors {
    at::Tensor beta, update_ratio;  // [2 * layers, tokens] float32; undefined: not wanted
  };

  // All of a step's kernels and matrix products: c_ holds what Forward returns. `wanted`, where
  // only some rows are: a batch of these, and of what they need, with their numbers in the step's
  // batch as ids. Null: all.
  void RunLayers(const StepInput& input, const StepInput* wanted,
                 const StateObserver& observe_state, const StatsTensors& stats);
  void ExpandInput(const StepInput& input);
  // One boundary: X takes in `h` (undefined before the first), c_, v_ and beta_ are what the next
  // sublayer reads. `index` numbers the boundaries from 0 to 2 * layers.
  void Boundary(const kernels::Batch& batch, const DeltaResidual& residual, const at::Tensor& h,
                int64_t index, const StatsTensors& stats);
  // c [tokens, d] -> [tokens, d].
  at::Tensor Mlp(const kernels::Batch& batch, const Layer& layer, const at::Tensor& c) const;

  // Constant after construction.
  std::shared_ptr<const Checkpoint> checkpoint_;  // keeps mapped weights alive
  const RunnerOptions options_;
  const Device* const device_;
  at::ScalarType dtype_;
  kernels::Type kernel_type_;
  const kernels::Kernels& kernels_;
  kernels::Rewrite rewrite_;
  int64_t d_ = 0;
  int64_t dv_ = 1;
  int64_t mlp_width_ = 0;  // m, rounded up to the device's multiple
  int64_t input_taps_ = 1;
  bool has_tails_ = false;
  float k_eps_ = 0.0f;
  float residual_multiplier_ = 1.0f;
  float logit_scale_ = 1.0f;
  at::Tensor embedding_;     // [vocab, d]
  KernelFloats input_conv_;  // [d, dv, taps] or empty
  RotaryTable rotary_;
  std::vector<Layer> layers_;
  DeltaResidual before_head_;
  Linear head_;

  // Caches, by block and slot.
  int32_t spare_slot_ = 0;  // of tails, of no sequence
  KvCache kv_cache_;
  Tails compress_tails_;  // TC only
  Tails shift_tails_;     // with shifts only

  // What readouts over tokens remember, by layer and kind; made when one is first asked for.
  struct ReadoutTails {
    Tails tails;               // [slots, 1, (taps - 1) * d]
    std::vector<int32_t> end;  // per slot, the position after the last one read
  };
  std::map<std::pair<int64_t, HiddenReadout::Kind>, ReadoutTails> readout_tails_;

  // Buffers of a step, [max_step_tokens, ...].
  at::Tensor x_;  // [., d, dv]
  at::Tensor c_;  // [., d]
  Attention::Workspace attention_workspace_;
  at::Tensor mlp_ab_;  // [., 2m], or undefined as Linear's out
  at::Tensor mlp_y_;   // [., m]
  at::Tensor h_;       // [., d] what a sublayer gives, or undefined
  at::Tensor logits_;  // [max_sequences, vocab] float32, or undefined
  at::Tensor v_;       // [., dv] float32
  at::Tensor beta_;    // [.] float32

  // Of RunLayers, or null; destroyed before all that it uses.
  std::unique_ptr<DecodeGraphs> decode_graphs_;
};

}  // namespace ddl

#endif  // DDL_MODEL_DDL_MODEL_H_
