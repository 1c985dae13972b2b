#ifndef DDL_MODEL_KERNELS_KERNELS_H_
#define DDL_MODEL_KERNELS_KERNELS_H_

#include <cstdint>

// What a DDL transformer computes between its matrix products, as fused ops over raw pointers.
// No torch and no CUDA here, and C++17 only, so that .cu files can include it.
//
// Every tensor is contiguous, last dimension fastest. `void*` tensors hold elements of the call's
// Type; `float*` tensors are float32 whatever the Type. All arithmetic is float32, and a result
// that is stored in bfloat16 is rounded once. A row's result depends on that row's inputs (and on
// its own sequence's past) only, never on which other rows are in the call: that is what makes a
// request's tokens independent of the batch.
//
// Symbols: d hidden_size, dv value channels, k a convolution's taps, H heads, hd head_dim,
// m MLP width. "Eq." and section numbers refer to arXiv 2601.00417 and docs/architecture.md.

namespace ddl::kernels {

enum class Type : uint8_t { kFloat32, kBFloat16 };

struct AttentionPlan;

// The packed ragged batch of one step: `tokens` rows, those of a sequence adjacent and in order.
struct Batch {
  int64_t tokens = 0;
  int64_t sequences = 0;
  const int32_t* row_begin = nullptr;     // [sequences + 1] first row of each sequence
  const int32_t* row_sequence = nullptr;  // [tokens] which sequence a row belongs to
  const int32_t* position = nullptr;      // [tokens] position in the sequence, from 0
  const int32_t* slot = nullptr;          // [sequences] where its tails live
  const int32_t* block_table = nullptr;   // [sequences, block_table_stride] physical K/V blocks
  int64_t block_table_stride = 0;
  // The largest position + 1, of which a device that keeps `position` makes its grids.
  int64_t longest = 0;
  // The slot whose tails a sequence goes on from. Null: its own.
  const int32_t* tail_source = nullptr;  // [sequences]
  // The slot that takes the tails as they are after this row, beside the sequence's own at its
  // last row; -1: none. No slot that any sequence of the batch goes on from. Null: none anywhere.
  const int32_t* row_save = nullptr;  // [tokens]
  // What a device that keeps these arrays has noted of them for its attention, in host memory.
  const AttentionPlan* attention_plan = nullptr;
};

// ---- Input expansion: e_t -> X_t (spec: tcec, ccec; the others repeat e over the channels)

struct ExpandInputArgs {
  Type type = Type::kFloat32;
  int64_t d = 0;
  int64_t dv = 1;
  int64_t taps = 1;                 // ke; 1 with a null conv: repeat
  const void* embedding = nullptr;  // [vocab, d] transformer.wte.weight
  const float* conv = nullptr;      // [d, dv, taps] input_embed.conv.weight, or null
  const int32_t* ids = nullptr;     // [tokens, taps] oldest first, -1 before the sequence's start
  void* x = nullptr;                // out [tokens, d, dv]
};

// ---- One sublayer boundary: rewrite X by the sublayer before, read it for the sublayer after

// How a sublayer's output h enters the state.
enum class Rewrite : uint8_t {
  kNone,   // nothing yet: X as it is
  kAdd,    // X += r h, the additive baseline (dv = 1); r = residual_multiplier
  kDelta,  // X += r beta k (v^T - k^T X), k = h / sqrt(|h|^2 + k_eps^2)
};

// How the state is read as one vector.
enum class Compress : uint8_t {
  kIdentity,  // x_in = X (dv = 1)
  kChannel,   // x_in[i] = sum_j w[i, j] X[i, j]: CC, channel convolution and read vector folded
  kToken,     // x_in[i] = sum_r sum_j w[r, i, j] X_{t-(k-1)+r}[i, j]: TC, likewise, over tokens
};

// What v and beta of the next sublayer are computed from.
struct GateWeights {
  // beta = 2 sigmoid(w_beta . c + b_beta), or 2 sigmoid(w_out . tanh(W_in c) + b_out).
  const float* beta_weight = nullptr;  // [d], or [beta_hidden] (w_out)
  const float* beta_in = nullptr;      // [beta_hidden, d] or null
  int64_t beta_hidden = 0;
  float beta_bias = 0.0f;
  // v = v_scale sigmoid(W_v x_in + b_v), without v_sigmoid W_v x_in + b_v, or the constant.
  const float* v_weight = nullptr;  // [dv, d]; null: v is v_constant
  const float* v_bias = nullptr;    // [dv]
  bool v_sigmoid = true;
  float v_scale = 1.0f;
  float v_constant = 0.0f;
};

// The whole boundary in one call, so that a fused body reads X once and writes it once.
struct DeltaStepArgs {
  Type type = Type::kFloat32;
  int64_t d = 0;
  int64_t dv = 1;
  void* x = nullptr;  // in and out [tokens, d, dv]

  // The sublayer before.
  Rewrite rewrite = Rewrite::kNone;
  const void* h = nullptr;  // [tokens, d] its output
  float k_eps = 0.0f;
  float residual_multiplier = 1.0f;  // r: of the whole update, what it erases and what it writes
  // Out, kDelta only [tokens]: |r beta k (v^T - k^T X)| / |X| of the rewrite, Frobenius, X as it
  // was before; 0 where X was 0. Null: not wanted, and costs nothing.
  float* update_ratio = nullptr;

  // The sublayer after.
  Compress compress = Compress::kIdentity;
  const float* compress_weight = nullptr;  // kChannel [d, dv]; kToken [taps, d, dv], oldest first
  int64_t taps = 0;                        // kToken: k
  // kToken: the partial sums of the outputs to come (transposed FIR), a_1 ... a_{k-1}, of each
  // sequence: tail + slot * tail_stride is [taps - 1, d]. Read (from the slot's or tail_source's)
  // unless the sequence starts at position 0, written at its last row (and where row_save says).
  float* tail = nullptr;
  int64_t tail_stride = 0;
  const float* norm_weight = nullptr;  // [d] RMSNorm of what compress gives
  float norm_eps = 0.0f;
  bool gates = false;  // none before the final norm and in the additive baseline
  GateWeights gate;

  void* x_in = nullptr;  // out [tokens, d] what compress gave; null: not wanted
  void* c = nullptr;     // out [tokens, d] its normalised form
  // In: of the sublayer before (kDelta). Out: of the sublayer after (gates).
  float* v = nullptr;     // [tokens, dv]
  float* beta = nullptr;  // [tokens]
};

// ---- Attention

enum class Activation : uint8_t { kIdentity, kSilu, kRelu, kElu1 };

// Paged K/V cache of one layer. K is stored after RoPE and norm, and transposed within a block, so
// that one vector register holds one dimension of neighbouring positions and scores need no
// horizontal sums.
struct KvCache {
  void* k = nullptr;       // [blocks, H, hd, block_size]
  void* v = nullptr;       // [blocks, H, block_size, hd]
  int64_t block_size = 0;  // positions per block
};

// k_t = alpha_t o_{t-1} + (1 - alpha_t) o_t with alpha_t = sigmoid(w_h . c_t) per head;
// o_{-1} = 0.
struct Shift {
  const float* weight = nullptr;  // [H, d] shift_proj.weight; null: no shift
  // tail + slot * tail_stride is [H, hd]: o of the last row so far. float32.
  float* tail = nullptr;
  int64_t tail_stride = 0;
};

// Everything between the q, k, v products and attention: shift, activation, RoPE, RMSNorm per
// head (in this order), and the write of k and v to the cache.
struct AttentionInputArgs {
  Type type = Type::kFloat32;
  int64_t d = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  const void* c = nullptr;  // [tokens, d], for the shifts
  void* qkv = nullptr;      // [tokens, 3, H, hd]; q is replaced by its final form
  Activation q_activation = Activation::kIdentity;
  Activation k_activation = Activation::kIdentity;
  Activation v_activation = Activation::kIdentity;
  Shift k_shift;
  Shift v_shift;
  int64_t rotary_dims = 0;          // even, <= hd
  const float* rope_cos = nullptr;  // [positions, rotary_dims / 2]
  const float* rope_sin = nullptr;
  const float* q_norm = nullptr;  // [hd]; null: no QK norm
  const float* k_norm = nullptr;
  float norm_eps = 0.0f;
  KvCache cache;
};

// y = softmax(q K^T / sqrt(hd)) V over each row's own positions 0...position.
struct PagedAttentionArgs {
  Type type = Type::kFloat32;
  int64_t heads = 0;
  int64_t head_dim = 0;
  const void* q = nullptr;  // row t at q + t * q_stride elements, [H, hd]
  int64_t q_stride = 0;
  KvCache cache;
  // Then, per head: RMSNorm, times silu(gate).
  const float* norm_weight = nullptr;  // [hd] attn.subln or attn.o_norm; null: none
  float norm_eps = 0.0f;
  const void* gate = nullptr;  // [tokens, H, hd] attn.g_proj's output; null: none
  void* y = nullptr;           // out [tokens, H, hd]
};

// ---- MLP: y = silu(a) * b

struct SwiGluArgs {
  Type type = Type::kFloat32;
  int64_t m = 0;
  const void* ab = nullptr;  // [tokens, 2, m] outputs of c_fc1, c_fc2
  void* y = nullptr;         // out [tokens, m]
};

// ---- All of them

// An op is declared in this list and nowhere else: op(batch, args) with the arguments op##Args.
// To add one: its arguments above, its name here, one implementation in cpu/ and one in cuda/.
#define DDL_FOR_EACH_KERNEL(DECLARE) \
  DECLARE(ExpandInput)               \
  DECLARE(DeltaStep)                 \
  DECLARE(AttentionInput)            \
  DECLARE(PagedAttention)            \
  DECLARE(SwiGlu)

// The ops on one device. Every pointer of a call, the Batch's own included, is memory of that
// device. On a GPU a call may return before its kernels have run; they run in the order of the
// calls, and a failed launch is an exception.
class Kernels {
 public:
  virtual ~Kernels();

#define DDL_DECLARE_KERNEL(Op) virtual void Op(const Batch& batch, const Op##Args& args) const = 0;
  DDL_FOR_EACH_KERNEL(DDL_DECLARE_KERNEL)
#undef DDL_DECLARE_KERNEL
};

}  // namespace ddl::kernels

#endif  // DDL_MODEL_KERNELS_KERNELS_H_
