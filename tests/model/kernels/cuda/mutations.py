"""Breaks the CUDA kernels on purpose, one sign, index or barrier at a time, and requires that a named test notices.

Each mutation of a shipped source is compiled for the host (see block.h) and linked in place of the original; the test that
must fail is run on its own. A mutation that survives is a hole in the tests.
"""

import collections
import json
import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[4]
BUILD = pathlib.Path(os.environ["DDL_BUILD_DIR"])
SOURCES = ROOT / "model" / "kernels" / "cuda"

Mutation = collections.namedtuple("Mutation", "file old new test")

DELTA = "CudaDeltaStepTest.EqualsNaiveLoops"
CHUNKS = "CudaDeltaStepTest.BitsDependOnNeitherBatchNorChunks"
ATTENTION = "CudaAttentionTest.InputThenAttentionEqualsNaiveLoops"
LONG = "CudaAttentionTest.LongContextsEqualNaiveLoops"
MANY_SPLITS = "CudaAttentionTest.ContextsOfMoreThanTheMostSplits"
MANY_ROWS = "CudaAttentionTest.InputOfManyRowsHasTheBitsOfFew"
SHIFT_TAILS = "CudaAttentionTest.ShiftTailsByRow"
EXPAND = "CudaRowsTest.ExpandInput"
SWIGLU = "CudaRowsTest.SwiGlu"
GATHER = "CudaRowsTest.GatherRows"
FILL = "CudaRowsTest.FillIds"
CONTEXT = "CudaAttentionTest.GatherContext"
FINISH = "CudaAttentionTest.FinishAttention"
SAMPLING = "CudaSamplingTest.SamplesWhatTheCpuSamples"
NOT_FINITE = "CudaSamplingTest.LogitsThatAreNotFiniteFailTheirRowAlone"

MUTATIONS = [
    # block.cuh
    Mutation("block.cuh", "distance = kWarp / 2; distance > 0; distance /= 2) {\n    value += ",
             "distance = kWarp / 4; distance > 0; distance /= 2) {\n    value += ", DELTA),
    Mutation("block.cuh", "for (int w = 1; w < kWarps; ++w) sum[n]", "for (int w = 2; w < kWarps; ++w) sum[n]", DELTA),
    Mutation("block.cuh", "WarpSums(sum, scratch + threadIdx.x / kWarp * N);\n  __syncthreads();",
             "WarpSums(sum, scratch + threadIdx.x / kWarp * N);", DELTA),
    Mutation("block.cuh", "if (upper) *index += kHalf;", "if (!upper) *index += kHalf;", DELTA),
    Mutation("block.cuh", "upper ? part[n + kHalf] : part[n]) + other", "upper ? part[n] : part[n + kHalf]) + other", DELTA),
    Mutation("block.cuh", "for (int distance = kWarp / kPadded / 2; distance > 0", "for (int distance = kWarp / kPadded / 4; distance > 0",
             DELTA),
    Mutation("block.cuh", "batch.tail_source != nullptr ? batch.tail_source[sequence]",
             "batch.tail_source != nullptr ? batch.slot[sequence]", DELTA),
    Mutation("block.cuh", "1.0f / (1.0f + expf(-x))", "1.0f / (1.0f + expf(x))", SWIGLU),
    Mutation("block.cuh", "value = fmaxf(value, scratch[w]);", "value = scratch[w];", LONG),
    # delta_step.cu
    Mutation("delta_step.cu", "(old_v[j] - inverse_norm * sum[1 + j])", "(old_v[j] + inverse_norm * sum[1 + j])", DELTA),
    Mutation("delta_step.cu", "InverseSqrt(sum[0] + args.k_eps", "InverseSqrt(sum[0] - args.k_eps", DELTA),
    Mutation("delta_step.cu", "sum[1 + j] += value * ToFloat(x_pack[n].element[i * kChannels + j]);",
             "sum[1 + j] += value * ToFloat(x_pack[n].element[i * kChannels]);", DELTA),
    Mutation("delta_step.cu", "if (kCommon || g < groups) body", "if (kCommon || g + 1 < groups) body", DELTA),
    Mutation("delta_step.cu", "args.gate.v_weight != nullptr && args.x_in == nullptr &&", "args.gate.v_weight != nullptr &&", DELTA),
    Mutation("delta_step.cu", "args.gate.beta_in == nullptr && args.gate.v_weight != nullptr", "args.gate.v_weight != nullptr", DELTA),
    Mutation("delta_step.cu", "launch(Shape<96, kMaxThreads / 96>{})", "launch(Shape<64, kMaxThreads / 96>{})", DELTA),
    Mutation("delta_step.cu", "n == j ? sum[2 + n]", "n == 0 ? sum[2 + n]", DELTA),
    Mutation("delta_step.cu", "args.residual_multiplier * args.beta[t];\n    float sum", "args.beta[t];\n    float sum", DELTA),
    Mutation("delta_step.cu", "step[j] = args.residual_multiplier;", "step[j] = 1.0f;", DELTA),
    Mutation("delta_step.cu", "source + before * d + feature", "source + (before + 1) * d + feature", DELTA),
    Mutation("delta_step.cu", "((taps - 1 - back) * d + feature)", "((taps - 2 - back) * d + feature)", DELTA),
    Mutation("delta_step.cu", "const bool carry = source != nullptr && tap + 2 < taps;",
             "const bool carry = source != nullptr && tap + 3 < taps;", DELTA),
    Mutation("delta_step.cu", "sum[1] += weight.element[i] * (norm.element[i] * in.element[i]);",
             "sum[1] += weight.element[i] * in.element[i];", DELTA),
    Mutation("delta_step.cu", "gate.v_weight + j * d + feature",
             "gate.v_weight + feature", DELTA),
    Mutation("delta_step.cu", "args.beta[t_out] = 2.0f * Sigmoid(logit + gate.beta_bias);",
             "args.beta[t_out] = 2.0f * Sigmoid(logit - gate.beta_bias);", DELTA),
    Mutation("delta_step.cu", "    __syncthreads();\n    logit = HiddenLogit", "    logit = HiddenLogit", DELTA),
    Mutation("delta_step.cu", "if (lane == 0) hidden[n] = args.gate.beta_weight[n] * tanhf(dot);\n  }\n  __syncthreads();",
             "if (lane == 0) hidden[n] = args.gate.beta_weight[n] * tanhf(dot);\n  }", DELTA),
    Mutation("delta_step.cu", "for (int back = before < taps - 1 ? before : taps - 1; back > 0; --back) {",
             "for (int back = 1; back <= (before < taps - 1 ? before : taps - 1); ++back) {", CHUNKS),
    Mutation("delta_step.cu", "aligned(args.x, d * dv, group * dv, element_bytes)",
             "aligned(nullptr, d * dv, group * dv, element_bytes)", DELTA),
    # token_tails.cu
    Mutation("token_tails.cu", "const int64_t save = batch.row_save[t];\n  if (save < 0) return;",
             "const int64_t save = batch.row_save[t];\n  if (save <= 5) return;", DELTA),
    Mutation("token_tails.cu", "carried < taps - 1 ? source[carried * d + i] : 0.0f",
             "carried < taps - 2 ? source[carried * d + i] : 0.0f", DELTA),
    Mutation("token_tails.cu", "const int64_t output = end + n;", "const int64_t output = end + n + 1;", DELTA),
    Mutation("token_tails.cu", "LeaveTail<T, kDv>(args, first, t + 1, i, source", "LeaveTail<T, kDv>(args, first, t, i, source",
             DELTA),
    Mutation("token_tails.cu", "aligned(args.x, sizeof(T)) &&", "true &&", DELTA),
    # update_ratio.cu
    Mutation("update_ratio.cu", "return;\n  const float inverse_norm = 1.0f / sqrtf(sum[0] + args",
             "return;\n  const float inverse_norm = 1.0f / sqrtf(sum[0] - args", DELTA),
    Mutation("update_ratio.cu", "args.residual_multiplier * args.beta[t];\n  float step", "args.beta[t];\n  float step", DELTA),
    Mutation("update_ratio.cu", "sum[1] > 0.0f ? sqrtf(sum[0] / sum[1]", "sum[0] > 0.0f ? sqrtf(sum[0] / sum[1]", DELTA),
    Mutation("update_ratio.cu", "(args.v[t * dv + j] - inverse_norm * sum[2 + j])", "(args.v[t * dv + j] - sum[2 + j])", DELTA),
    Mutation("update_ratio.cu", "sum[1] += element * element;", "sum[1] += value * element;", DELTA),
    # expand_input.cu
    Mutation("expand_input.cu", "out.element[n] = e[(channel + n) / dv]", "out.element[n] = e[channel / dv]", EXPAND),
    Mutation("expand_input.cu", "if (ids[r] < 0) continue;", "if (ids[r] <= 0) continue;", EXPAND),
    Mutation("expand_input.cu", "* taps + r]", "* taps + taps - 1 - r]", EXPAND),
    Mutation("expand_input.cu", "ToFloat(e[(channel + n) / dv])", "ToFloat(e[channel / dv])", EXPAND),
    # swiglu.cu
    Mutation("swiglu.cu", "const T* b = a + args.m;", "const T* b = a;", SWIGLU),
    Mutation("swiglu.cu", "args.ab) + t * 2 * args.m", "args.ab) + t * args.m", SWIGLU),
    Mutation("swiglu.cu", "static_cast<int64_t>(blockIdx.y) * kThreads", "static_cast<int64_t>(0) * kThreads", SWIGLU),
    Mutation("swiglu.cu", "if (!IsAligned(args.ab, row, kBytes) ||", "if (false ||", SWIGLU),
    # gather_context.cu
    Mutation("gather_context.cu", "position_begin[sequence] + page * block_size", "position_begin[sequence] + page", CONTEXT),
    Mutation("gather_context.cu", "left < block_size ? static_cast<int>(left)", "left < block_size ? static_cast<int>(left - 1)", CONTEXT),
    Mutation("gather_context.cu", "if (left <= 0) return;", "if (left <= 1) return;", CONTEXT),
    Mutation("gather_context.cu", "block_table[sequence * block_table_stride + page]", "block_table[sequence + page]", CONTEXT),
    Mutation("gather_context.cu", "(block * args.heads + head) * block_size * hd", "(block * args.heads) * block_size * hd",
             CONTEXT),
    Mutation("gather_context.cu", "(begin * args.heads + head) * hd", "(begin * args.heads) * hd", CONTEXT),
    Mutation("gather_context.cu", "k[(dimension + n) * block_size + position]", "k[position * hd + dimension + n]", CONTEXT),
    Mutation("gather_context.cu", "LoadPack<kPack>(v + position * hd + dimension)", "LoadPack<kPack>(v + dimension)", CONTEXT),
    Mutation("gather_context.cu", "i / packs, dimension = i % packs * kPack", "i / packs, dimension = i % packs", CONTEXT),
    Mutation("gather_context.cu", "IsAligned(args.cache.v, row_bytes, 16) && IsAligned(args.k, row_bytes, 16)",
             "true || IsAligned(args.k, row_bytes, 16)", CONTEXT),
    # gather_rows.cu
    Mutation("gather_rows.cu", "static_cast<int64_t>(args.rows[n]) * row_bytes", "n * row_bytes", GATHER),
    Mutation("gather_rows.cu", "at < row_bytes", "at + kBytes < row_bytes", GATHER),
    Mutation("gather_rows.cu", "if (fits(16))", "if (true)", GATHER),
    # fill_ids.cu
    Mutation("fill_ids.cu", "args.sampled[args.from[n]]", "args.sampled[n]", FILL),
    Mutation("fill_ids.cu", "args.ids[args.to[n]]", "args.ids[n]", FILL),
    Mutation("fill_ids.cu", "id >= 0 ? id : 0", "id > 0 ? id : 1", FILL),
    Mutation("fill_ids.cu", "id >= 0 ? id : 0", "id", FILL),
    Mutation("fill_ids.cu", "(blockIdx.x) * kThreads", "(0) * kThreads", FILL),
    Mutation("fill_ids.cu", "if (n >= count) return;", "if (n + 1 >= count) return;", FILL),
    Mutation("fill_ids.cu", "DivideUp(count, kThreads)", "count / kThreads", FILL),
    # attention_input.cu
    Mutation("attention_input.cu", "z[n] = a * cosine[n] - b * sine[n];", "z[n] = a * cosine[n] + b * sine[n];", ATTENTION),
    Mutation("attention_input.cu", "a = z[n], b = z[half + n];", "a = z[n], b = z[n + 1];", ATTENTION),
    Mutation("attention_input.cu", "alpha * previous + (1.0f - alpha) * value", "alpha * value + (1.0f - alpha) * previous",
             ATTENTION),
    Mutation("attention_input.cu", "previous_row = row - 3 * heads * hd;", "previous_row = row - heads * hd;", ATTENTION),
    Mutation("attention_input.cu", "k[n * block_size] = FromFloat<T>(z[n]);", "k[n] = FromFloat<T>(z[n]);", ATTENTION),
    Mutation("attention_input.cu", "args.cache.v) + cache_base + offset * hd;", "args.cache.v) + cache_base + offset;",
             ATTENTION),
    Mutation("attention_input.cu", "const float* norm = which == 0 ?", "const float* norm = which == 1 ?", ATTENTION),
    Mutation("attention_input.cu", "const float* const norm = which == 0 ?", "const float* const norm = which == 1 ?", ATTENTION),
    Mutation("attention_input.cu", "upper ? sine.element[i] : -sine.element[i]", "upper ? -sine.element[i] : sine.element[i]", ATTENTION),
    Mutation("attention_input.cu", "part % kHalf * kElements;", "part * kElements;", ATTENTION),
    Mutation("attention_input.cu", "to[i * block_size] = from[i];", "to[i] = from[i];", ATTENTION),
    Mutation("attention_input.cu", "    __syncwarp();\n    if (looked_up < tokens) {", "    if (looked_up < tokens) {", ATTENTION),
    Mutation("attention_input.cu", "__shfl_sync(kAllLanes, position, n * kTogether + together)",
             "__shfl_sync(kAllLanes, position, together)", MANY_ROWS),
    Mutation("attention_input.cu", "tile + (n * kTogether + together) * kStride", "tile + together * kStride", MANY_ROWS),
    Mutation("attention_input.cu", "const int row_offset = __shfl_sync(kAllLanes, offset, row);",
             "const int row_offset = __shfl_sync(kAllLanes, offset, together);", MANY_ROWS),
    Mutation("attention_input.cu", "      z[n + i] = Activate(activation, value);\n    }\n  }\n  __syncwarp();",
             "      z[n + i] = Activate(activation, value);\n    }\n  }", ATTENTION),
    Mutation("attention_input.cu", "const bool last = t == batch.row_begin[sequence + 1] - 1;",
             "const bool last = t == batch.row_begin[sequence];", ATTENTION),
    Mutation("attention_input.cu", "if (save >= 0) shift.tail[save", "if (save > 0 && last) shift.tail[save", SHIFT_TAILS),
    Mutation("attention_input.cu", "if (saved != nullptr) saved[n + i] = value;",
             "if (saved != nullptr) saved[n + i] = -value;", SHIFT_TAILS),
    # split_attention.cuh
    Mutation("split_attention.cuh", "while (positions * kMaxSplits < length)", "while (positions * kMaxSplits * 2 < length)", MANY_SPLITS),
    Mutation("split_attention.cuh", "Multiply(part_total[1], factor[lane + kWarp])", "part_total[1]", MANY_SPLITS),
    Mutation("split_attention.cuh", "Multiply(part_total[0], factor[lane])", "part_total[0]", LONG),
    Mutation("split_attention.cuh", "MultiplyAdd(factor[s], from[s * (hd + 2)], value)", "Add(from[s * (hd + 2)], value)", LONG),
    Mutation("split_attention.cuh", "if (count == 1) {", "if (count <= 2) {", LONG),
    Mutation("split_attention.cuh", "== count - 1;", "== 0;", LONG),
    Mutation("split_attention.cuh", "if (threadIdx.x == 0) arrivals[item] = 0;", "", LONG),
    Mutation("split_attention.cuh", "value *= Silu(", "value *= Sigmoid(", ATTENTION),
    # paged_attention.cu
    Mutation("paged_attention.cu", "head = item % args.heads;\n  const int length = batch.position[t] + 1;",
             "head = item % args.heads;\n  const int length = batch.position[t] + 2;", ATTENTION),
    Mutation("paged_attention.cu", "total = total * rescale + weight[0];", "total = total + weight[0];", MANY_SPLITS),
    Mutation("paged_attention.cu", "value[i] = sum[i] * rescale;", "value[i] = sum[i];", MANY_SPLITS),
    Mutation("paged_attention.cu", "shared.scratch));\n    const float rescale = expf(largest_before - largest);",
             "shared.scratch));\n    const float rescale = expf(largest - largest_before);", MANY_SPLITS),
    Mutation("paged_attention.cu", "static_cast<int64_t>(n) * block_size);", "static_cast<int64_t>(n));", ATTENTION),
    Mutation("paged_attention.cu", "static_cast<int64_t>(position - block * block_size) * hd;",
             "static_cast<int64_t>(position - block * block_size);", ATTENTION),
    Mutation("paged_attention.cu", "score[i];\n      }\n    }\n    __syncthreads();", "score[i];\n      }\n    }", ATTENTION),
    # plain_attention.cu
    Mutation("plain_attention.cu", "head = item - t * heads;\n  const int length = batch.position[t] + 1;",
             "head = item - t * heads;\n  const int length = batch.position[t] + 2;", LONG),
    Mutation("plain_attention.cu", "total = MultiplyAdd(total, rescale, sum);", "total = Add(total, sum);", MANY_SPLITS),
    Mutation("plain_attention.cu", "value[i] = Multiply(value[i], rescale);", "value[i] = Multiply(value[i], 1.0f);", MANY_SPLITS),
    Mutation("plain_attention.cu", "weight);\n    const float rescale = expf(largest_before - largest);",
             "weight);\n    const float rescale = expf(largest - largest_before);", MANY_SPLITS),
    Mutation("plain_attention.cu", "if (lane + kWarp >= count) scores[1] = -INFINITY;", "", LONG),
    Mutation("plain_attention.cu", "shared.q[slice + n * Shared::kSlices]", "shared.q[slice]", LONG),
    Mutation("plain_attention.cu", "weight + v_slice * kVRows)", "weight)", LONG),
    Mutation("plain_attention.cu", "s < Shared::kVSlices", "s < Shared::kVSlices - 1", LONG),
    Mutation("plain_attention.cu", "    __syncthreads();  // before the next tile's scores, and weights\n", "", MANY_SPLITS),
    Mutation("plain_attention.cu", "args.cache.block_size % 8 == 0", "args.cache.block_size > 0", LONG),
    Mutation("plain_attention.cu", "IsAligned(args.cache.k, 0, 16)", "true", LONG),
    Mutation("plain_attention.cu", "IsAligned(args.cache.v, 0, 16)", "true", LONG),
    # finish_attention.cu
    Mutation("finish_attention.cu", "ToFloat(attended[item * hd + n])", "ToFloat(attended[n])", FINISH),
    Mutation("finish_attention.cu", "FinishHead<T>(args, item, 1.0f, sum, scratch);", "FinishHead<T>(args, item, 2.0f, sum, scratch);",
             FINISH),
    # rank_tokens.cuh
    Mutation("rank_tokens.cuh", "0xffffffffu - static_cast<uint32_t>(id))", "static_cast<uint32_t>(id) + 1u)", SAMPLING),
    Mutation("rank_tokens.cuh", "value[k] = i < n ? x[i] : 0.0f;", "value[k] = i < n ? x[begin] : 0.0f;", SAMPLING),
    Mutation("rank_tokens.cuh", "begin += kAtOnce * kSampleThreads", "begin += 2 * kAtOnce * kSampleThreads", SAMPLING),
    Mutation("rank_tokens.cuh", "(i & run) == 0", "(i & run) != 0", SAMPLING),
    Mutation("rank_tokens.cuh", "key >= threshold && key < bound", "key > threshold && key < bound", SAMPLING),
    Mutation("rank_tokens.cuh", "if (threadIdx.x == 0) decision.bound = threshold;",
             "if (threadIdx.x == 0) decision.bound = threshold + 1;", SAMPLING),
    Mutation("rank_tokens.cuh", "larger > b; --larger) before +=", "larger >= b; --larger) before +=", SAMPLING),
    Mutation("rank_tokens.cuh", "larger > b; --larger) above +=", "larger >= b; --larger) above +=", SAMPLING),
    Mutation("rank_tokens.cuh", "bins.Have(key) && key < bound", "bins.Have(key)", SAMPLING),
    Mutation("rank_tokens.cuh", "bins.Have(key) && key < bound", "key < bound", SAMPLING),
    Mutation("rank_tokens.cuh", "if (bins.Have(key)) AtomicAdd(", "if (bins.begin <= key) AtomicAdd(", SAMPLING),
    Mutation("rank_tokens.cuh", "bits > kBinBits ? bits - kBinBits : 0", "bits > kBinBits ? bits - kBinBits - 1 : 0", SAMPLING),
    Mutation("rank_tokens.cuh", "decision.threshold = bins.BeginOf(b + 1);", "decision.threshold = bins.BeginOf(b);", SAMPLING),
    Mutation("rank_tokens.cuh", "decision.refine = above == 0 ? b : -1;", "decision.refine = b;", SAMPLING),
    Mutation("rank_tokens.cuh", "above = decision.above;", "", SAMPLING),
    Mutation("rank_tokens.cuh", "KeyOf(w, i) >= bound) sum", "KeyOf(w, i) > bound) sum", SAMPLING),
    # sample_tokens.cu
    Mutation("sample_tokens.cu", "Add(logit, -Multiply(row.frequency_penalty, generated))",
             "Add(logit, Multiply(row.frequency_penalty, generated))", SAMPLING),
    Mutation("sample_tokens.cu", "logit > 0.0f ? logit / row.repetition_penalty",
             "logit < 0.0f ? logit / row.repetition_penalty", SAMPLING),
    Mutation("sample_tokens.cu", "if (generated > 0.0f) logit = Add", "if (generated > 1.0f) logit = Add", SAMPLING),
    Mutation("sample_tokens.cu", "while (size > 1 && WeightOf(key[size - 1]) < row.min_p)",
             "while (size > 1 && WeightOf(key[size - 1]) <= row.min_p)", SAMPLING),
    Mutation("sample_tokens.cu", "if (!ranks && w < row.min_p) w = 0.0f;", "if (!ranks && w > row.min_p) w = 0.0f;", SAMPLING),
    Mutation("sample_tokens.cu", "size == 0 || mass < row.top_p * all", "size == 0 || mass <= row.top_k * all", SAMPLING),
    Mutation("sample_tokens.cu", "PhiloxUniform(row.seed, row.index)", "PhiloxUniform(row.index, row.seed)", SAMPLING),
    Mutation("sample_tokens.cu", "if (running > target) break;", "", SAMPLING),
    Mutation("sample_tokens.cu", "    before = running;\n", "", SAMPLING),
    Mutation("sample_tokens.cu", "  part_sum[lane] = sum;\n  __syncwarp();", "  part_sum[lane] = sum;", SAMPLING),
    Mutation("sample_tokens.cu", "shared.sum[warp] = run_sum;\n  __syncthreads();", "shared.sum[warp] = run_sum;", SAMPLING),
    Mutation("sample_tokens.cu", "const int last = begin + (part + 1) * part_length;", "const int last = begin + part_length;", SAMPLING),
    Mutation("sample_tokens.cu", "if (before > target) break;", "break;", SAMPLING),
    Mutation("sample_tokens.cu", "if (!(fabsf(logit) <= kMaxFloat)) bad = 1.0f;", "if (false) bad = 1.0f;", NOT_FINITE),
    Mutation("sample_tokens.cu", "ranked >= row.top_k", "ranked > 0", SAMPLING),
    Mutation("sample_tokens.cu", "if (bound < least) bound = least;", "", SAMPLING),
    Mutation("sample_tokens.cu", "static_cast<double>(row.top_p) * all", "1.0 * all", SAMPLING),
]


def compile_command(source):
    """How the build compiles a kernel file for the host, as a list, without its output and input."""
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    (entry,) = [e for e in entries if pathlib.Path(e["file"]) == source and "cuda_kernels_on_host" in e["command"]]
    words = shlex.split(entry["command"])
    while "-o" in words:
        del words[words.index("-o") : words.index("-o") + 2]
    del words[words.index("-c") : words.index("-c") + 2]
    # Dependencies would be written beside the build's own.
    for option in ("-MT", "-MF"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    return [word for word in words if word != "-MD"], entry["directory"]


def link_command():
    """How the build links the test program, as a shell command."""
    listed = subprocess.run(["ninja", "-C", BUILD, "-t", "commands", "cuda_kernels_test"], capture_output=True, text=True,
                            check=True).stdout
    return [line for line in listed.splitlines() if "-o tests/cuda_kernels_test " in line][-1]


def compiled_with(mutation):
    """The .cu files that a mutation is compiled into."""
    if mutation.file.endswith(".cu"):
        return [mutation.file]
    if mutation.file == "block.cuh":  # which all include: those that the named test is about
        return {DELTA: ["delta_step.cu"], SWIGLU: ["swiglu.cu"], LONG: ["paged_attention.cu"]}[mutation.test]
    include = f'#include "model/kernels/cuda/{mutation.file}"'
    return sorted(path.name for path in SOURCES.glob("*.cu") if include in path.read_text())


def build(mutation, folder):
    """A test program with one mutated file in place of the original."""
    original = (SOURCES / mutation.file).read_text()
    assert original.count(mutation.old) == 1, f"{mutation.file} has {original.count(mutation.old)} of: {mutation.old}"
    mutated = folder / "model" / "kernels" / "cuda" / mutation.file
    mutated.parent.mkdir(parents=True)
    mutated.write_text(original.replace(mutation.old, mutation.new))
    objects = []
    for name in compiled_with(mutation):
        command, directory = compile_command(SOURCES / name)
        first_include = next(i for i, word in enumerate(command) if word.startswith("-I"))
        command.insert(first_include, f"-I{folder}")
        objects.append(str(folder / f"{name}.o"))
        source = mutated if name == mutation.file else SOURCES / name
        # Not optimised: compiling takes longer than running until a test fails.
        subprocess.run([*command, "-O0", "-c", source, "-o", objects[-1]], cwd=directory, check=True)
    # Linked before the library, the mutated objects keep the originals out.
    program = folder / "mutated_test"
    link = link_command().replace("-o tests/cuda_kernels_test ", f"{' '.join(objects)} -o {program} ")
    subprocess.run(link, shell=True, cwd=BUILD, check=True)
    return program


def run(program, test):
    """The output of the CUDA source's instances of a test, and whether it passed."""
    done = subprocess.run([program, f"--gtest_filter=*{test}/cuda*", "--gtest_fail_fast"], cwd=ROOT, capture_output=True,
                          text=True, timeout=600)
    return done.stdout + done.stderr, done.returncode == 0


@pytest.mark.parametrize("test", sorted({mutation.test for mutation in MUTATIONS}))
def test_passes_unbroken(test):
    output, passed = run(BUILD / "tests" / "cuda_kernels_test", test)
    assert passed, output
    assert "[ RUN      ]" in output, f"no test {test}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[f"{m.file}-{n}" for n, m in enumerate(MUTATIONS)])
def test_notices(mutation, tmp_path):
    output, passed = run(build(mutation, tmp_path), mutation.test)
    assert not passed, f"{mutation.test} passes although {mutation.file} has\n{mutation.new}\nfor\n{mutation.old}"
    # By an expectation, or by the host's own checks of a block.
    assert "[  FAILED  ]" in output or "is stuck" in output or "check failed" in output, output
