#include "tests/model/kernels/sublayer_calls.h"

#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"

namespace ddl::kernels {
namespace {

constexpr int64_t kBetaHidden = 6;

}  // namespace

DeltaStepCall::DeltaStepCall(Random& random, const RaggedBatch& ragged,
                             const DeltaStepCase& boundary, Type type, int64_t empty_row,
                             float h_scale, float weight_scale)
    : update_ratio(ragged.batch.tokens, -1.0f),
      x_in(type, ragged.batch.tokens * boundary.d),
      c(type, ragged.batch.tokens * boundary.d),
      h_(type, 0) {
  const int64_t tokens = ragged.batch.tokens, d = boundary.d, dv = boundary.dv;
  const int64_t taps = std::max<int64_t>(boundary.taps, 1);
  before.x = random.Values(tokens * d * dv, 1.0f, type);
  std::fill_n(before.x.begin() + empty_row * d * dv, d * dv, 0.0f);
  before.h = random.Values(tokens * d, h_scale, type);
  h_ = Buffer(type, before.h);
  compress_ = random.Values(taps * d * dv, 0.5f);
  norm_ = random.Values(d, 1.0f);
  w_beta_ = random.Values(std::max(d, kBetaHidden), weight_scale);
  w_in_ = random.Values(kBetaHidden * d, weight_scale);
  w_v_ = random.Values(dv * d, weight_scale);
  b_v_ = random.Values(dv, 0.5f);
  v = before.v = random.Values(tokens * dv, 1.0f);
  for (int64_t t = 0; t < tokens; ++t) before.beta.push_back(0.3f + 0.1f * static_cast<float>(t));
  beta = before.beta;
  tail = before.tail = random.Values(ragged.slots() * taps * d, 1.0f);

  args.type = type;
  args.d = d;
  args.dv = dv;
  args.rewrite = boundary.rewrite;
  args.h = h_.data();
  args.k_eps = 0.5f;                 // large, so that leaving it out shows
  args.residual_multiplier = 0.75f;  // likewise
  args.update_ratio = update_ratio.data();
  args.compress = boundary.compress;
  args.compress_weight = compress_.data();
  args.taps = boundary.taps;
  args.tail = tail.data();
  args.tail_stride = taps * d;
  args.norm_weight = norm_.data();
  args.norm_eps = 0.1f;
  args.gates = boundary.gates != Gates::kNone;
  args.gate.beta_weight = w_beta_.data();
  args.gate.beta_in = boundary.gates == Gates::kHidden ? w_in_.data() : nullptr;
  args.gate.beta_hidden = kBetaHidden;
  args.gate.beta_bias = 0.25f;
  args.gate.v_weight = boundary.gates == Gates::kConstant ? nullptr : w_v_.data();
  args.gate.v_bias = b_v_.data();
  args.gate.v_sigmoid = boundary.gates != Gates::kNoSigmoid;
  args.gate.v_scale = 3.0f;
  args.gate.v_constant = 1.75f;
  args.x_in = x_in.data();
  args.c = c.data();
  args.v = v.data();
  args.beta = beta.data();
}

void DeltaStepCall::ExpectEqualsNaive(const RaggedBatch& ragged, const std::vector<float>& x,
                                      const std::string& what) const {
  const RewrittenState want_state = NaiveRewrite(args, before);
  ExpectClose(x, want_state.x, args.type, what + ": X");
  if (args.update_ratio != nullptr) {
    ExpectClose(update_ratio, want_state.update_ratio, Type::kFloat32, what + ": update ratio");
  }
  const StateRead want = NaiveRead(ragged, args, before, x);
  if (args.x_in != nullptr) ExpectClose(x_in.Floats(), want.x_in, args.type, what + ": x_in");
  ExpectClose(c.Floats(), want.c, args.type, what + ": c");
  if (args.gates) {
    ExpectClose(v, want.v, Type::kFloat32, what + ": v");
    ExpectClose(beta, want.beta, Type::kFloat32, what + ": beta");
  } else {
    EXPECT_EQ(v, before.v) << what;
    EXPECT_EQ(beta, before.beta) << what;
  }
  ExpectClose(tail, want.tail, Type::kFloat32, what + ": tail");
}

AttentionLayer::AttentionLayer(Random& random, const AttentionCase& layer_options, Type layer_type,
                               int64_t layer_d, const RaggedBatch& ragged, int64_t positions,
                               float shift_scale)
    : options(layer_options),
      type(layer_type),
      d(layer_d),
      q_norm(random.Values(options.head_dim, 1.0f)),
      k_norm(random.Values(options.head_dim, 1.0f)),
      y_norm(random.Values(options.head_dim, 1.0f)),
      k_alpha(random.Values(options.heads * d, shift_scale)),
      v_alpha(random.Values(options.heads * d, shift_scale)),
      k_cache(type, ragged.blocks() * options.heads * options.head_dim * options.block_size),
      v_cache(type, ragged.blocks() * options.heads * options.head_dim * options.block_size),
      tails(random.Values(ragged.slots() * 2 * options.heads * options.head_dim, 1.0f)) {
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t n = 0; n < options.rotary_dims / 2; ++n) {
      const float angle = 0.3f * static_cast<float>(p) / static_cast<float>(1 + n);
      rope_cos.push_back(std::cos(angle));
      rope_sin.push_back(std::sin(angle));
    }
  }
}

AttentionCall::AttentionCall(Random& random, AttentionLayer& layer, int64_t tokens)
    : qkv_before(random.Values(tokens * 3 * layer.options.heads * layer.options.head_dim, 1.0f,
                               layer.type)),
      c(random.Values(tokens * layer.d, 1.0f, layer.type)),
      gate(random.Values(tokens * layer.options.heads * layer.options.head_dim, 1.0f, layer.type)),
      qkv(layer.type, qkv_before),
      y(layer.type, gate.size()),
      c_(layer.type, c),
      gate_(layer.type, gate) {
  const AttentionCase& options = layer.options;
  const int64_t width = options.heads * options.head_dim;
  input.type = layer.type;
  input.d = layer.d;
  input.heads = options.heads;
  input.head_dim = options.head_dim;
  input.c = c_.data();
  input.qkv = qkv.data();
  input.q_activation = input.k_activation = input.v_activation = options.activation;
  if (options.k_shift) input.k_shift = {layer.k_alpha.data(), layer.tails.data(), 2 * width};
  if (options.v_shift) {
    input.v_shift = {layer.v_alpha.data(), layer.tails.data() + width, 2 * width};
  }
  input.rotary_dims = options.rotary_dims;
  input.rope_cos = layer.rope_cos.data();
  input.rope_sin = layer.rope_sin.data();
  input.q_norm = options.norms ? layer.q_norm.data() : nullptr;
  input.k_norm = options.norms ? layer.k_norm.data() : nullptr;
  input.norm_eps = 0.05f;
  input.cache = {layer.k_cache.data(), layer.v_cache.data(), options.block_size};

  attention.type = layer.type;
  attention.heads = options.heads;
  attention.head_dim = options.head_dim;
  attention.q = qkv.data();
  attention.q_stride = 3 * width;
  attention.cache = input.cache;
  attention.norm_weight = options.norms ? layer.y_norm.data() : nullptr;
  attention.norm_eps = 0.05f;
  attention.gate = options.gate ? gate_.data() : nullptr;
  attention.y = y.data();
}

}  // namespace ddl::kernels
