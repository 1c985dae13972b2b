#ifndef DDL_MODEL_KERNELS_CUDA_CUDA_KERNELS_H_
#define DDL_MODEL_KERNELS_CUDA_CUDA_KERNELS_H_

#include <cstdint>

#include "model/kernels/kernels.h"

struct CUstream_st;

// The CUDA twins of kernels.h: the same argument structs, every pointer in them device memory,
// the `Batch`'s own included. No CUDA header and C++17 only, so that any file can include it.
//
// A call enqueues its kernels on `stream` and returns; nothing is allocated and nothing waits, so
// that a sequence of calls can be captured into a CUDA graph. The buffers must live until the
// stream has passed. What only the host can decide (grid sizes, which path) depends on sizes in the
// call, never on values in device memory.
//
// As on the CPU a row's result is a function of that row's inputs and its sequence's past: every
// sum has an order that the other rows in the call do not change, and no sum goes through atomics.
// docs/cuda.md says how each kernel is laid out and what it moves.

namespace ddl::kernels::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// A cudaError_t: 0 when the launch was accepted. Sizes outside what a kernel is written for are
// cudaErrorInvalidValue.
using Error = int;
constexpr Error kSuccess = 0;

Error ExpandInput(Stream stream, int64_t tokens, const ExpandInputArgs& args);

// dv from 1 to 8, d up to 16384, taps up to 64. TC (Compress::kToken) takes one kernel when every
// sequence has one row in the batch, three otherwise; the bits are the same.
Error DeltaStep(Stream stream, const Batch& batch, const DeltaStepArgs& args);

// Shifts take a second kernel, which saves the tails, unless every sequence has one row.
Error AttentionInput(Stream stream, const Batch& batch, const AttentionInputArgs& args);

// Attention over the paged cache, split over the context: into pieces of kPositionsPerSplit, or of
// the least power of two times as many that makes no more than kMaxSplits of them.
// `longest` is the largest number of positions (position + 1) that any row of the call may have;
// it sizes the grid. A captured graph uses the largest there will be: blocks past a row's own end
// return at once. `workspace` has PagedAttentionWorkspaceFloats(...) floats, and `arrivals`
// [tokens, H] is all zeros, before the call's kernel runs and after it; both are null if there are
// 0 floats.
constexpr int64_t kPositionsPerSplit = 64;
constexpr int64_t kMaxSplits = 64;
Error PagedAttention(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                     int64_t longest, float* workspace, int32_t* arrivals);
int64_t PagedAttentionWorkspaceFloats(int64_t tokens, const PagedAttentionArgs& args,
                                      int64_t longest);

// y of rows whose attention another kernel has computed: the norm and the gate of `args`, whose q
// and cache are not read. `attended` [rows, H, hd] is of the type of `args`.
Error FinishAttention(Stream stream, int64_t rows, const PagedAttentionArgs& args,
                      const void* attended);

// The K and V of whole sequences, position by position, for kernels that know nothing of blocks.
struct GatherContextArgs {
  Type type = Type::kFloat32;
  int64_t heads = 0;
  int64_t head_dim = 0;
  KvCache cache;
  // [sequences + 1] where each sequence's positions begin in k and v; it has as many as lie before
  // the next one's.
  const int32_t* position_begin = nullptr;
  void* k = nullptr;  // out [positions, H, hd]
  void* v = nullptr;  // out [positions, H, hd]
};
// `block_table` [sequences, block_table_stride] as in Batch. No sequence has more positions than
// `longest`.
Error GatherContext(Stream stream, int64_t sequences, const int32_t* block_table,
                    int64_t block_table_stride, int64_t longest, const GatherContextArgs& args);

Error SwiGlu(Stream stream, int64_t tokens, const SwiGluArgs& args);

// The rows that sample a token, made adjacent: y[n] = x[rows[n]].
struct GatherRowsArgs {
  Type type = Type::kFloat32;
  int64_t d = 0;
  const void* x = nullptr;        // [tokens, d]
  const int32_t* rows = nullptr;  // [count]
  void* y = nullptr;              // out [count, d]
};
Error GatherRows(Stream stream, int64_t count, const GatherRowsArgs& args);

// Ids that the host does not know yet: ids[to[n]] = sampled[from[n]], or 0 where that is -1, so
// that what reads them finds an id.
struct FillIdsArgs {
  const int32_t* sampled = nullptr;  // as SampleTokensArgs::id
  const int32_t* from = nullptr;     // [count]
  const int32_t* to = nullptr;       // [count] no two the same
  int32_t* ids = nullptr;            // in and out
};
Error FillIds(Stream stream, int64_t count, const FillIdsArgs& args);

// ---- Sampling: the same tokens as Sample in model/sampler.h, so that only they come back

struct SampleBias {
  int32_t id = 0;
  float bias = 0.0f;
};

// One row's sampling; the fields of SamplingParams and SampleRequest. The arrays are device memory.
// Ids outside [0, vocab_size) in them are ignored.
struct SampleRow {
  float temperature = 1.0f;
  int32_t top_k = -1;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  int32_t vocab_size = 0;  // ids at or past it are never sampled
  uint64_t seed = 0;
  uint64_t index = 0;
  const SampleBias* bias = nullptr;  // an id at most once
  const int32_t* banned = nullptr;
  const int32_t* prompt = nullptr;  // what the penalties count
  const int32_t* generated = nullptr;
  int32_t bias_count = 0;
  int32_t banned_count = 0;
  int32_t prompt_count = 0;
  int32_t generated_count = 0;
};

struct SampleTokensArgs {
  int64_t vocab = 0;                // logits of a row; at least every row's vocab_size
  const float* logits = nullptr;    // [count, vocab]
  const SampleRow* rows = nullptr;  // [count]
  void* workspace = nullptr;        // SampleWorkspaceBytes, aligned to 16 bytes
  int32_t* id = nullptr;            // out [count]; -1: the row's logits were not all finite
  float* logprob = nullptr;         // out [count] of the id, as SampledToken has it
};
Error SampleTokens(Stream stream, int64_t count, const SampleTokensArgs& args);
int64_t SampleWorkspaceBytes(int64_t count, int64_t vocab);

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_CUDA_KERNELS_H_
