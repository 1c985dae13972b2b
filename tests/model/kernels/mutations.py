"""Breaks the CPU's matrix products and attention on purpose, one sign, index or block at a time, and requires that a named
test notices.

Each mutation is compiled for every instruction set and linked in place of the original; the test that must fail is run on its
own. A mutation that survives is a hole in the tests.
"""

import collections
import json
import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = pathlib.Path(os.environ["DDL_BUILD_DIR"])
SOURCES = ROOT / "model" / "kernels" / "cpu"

# What is compiled of a header is the source that `compiled` names.
Mutation = collections.namedtuple("Mutation", "file old new program test compiled", defaults=[None])

MATMUL = ("kernels_test", "KernelsTest.MatMul")
INT8 = ("kernels_test", "KernelsTest.QuantizedMatMul")
ATTENTION = ("kernels_test", "KernelsTest.AttentionInputAndPagedAttention")
LARGE = ("kernels_test", "KernelsTest.PagedAttentionOfLargeScores")
TILES = ("tiles_test", "EmulatedTilesTest.MultipliesBFloat16AsTheHardwareWasSeenTo")
TILES_INT8 = ("tiles_test", "EmulatedTilesTest.MultipliesInt8")
REFUSES = ("tiles_test", "EmulatedTilesTest.RefusesWhatTheHardwareWould")
SIXTEEN = ("tiles_test", "TileKernelsTest.MatMulSumsSixteenWordsAtATime")

MUTATIONS = [
    # By vectors.
    Mutation("matmul.cc", "panel + x.words * kPanelWidth;", "panel + (x.words - 1) * kPanelWidth;", *MATMUL),
    Mutation("matmul.cc", "high_(low_ + 6 * x.stride)", "high_(low_ + 5 * x.stride)", *MATMUL),
    Mutation("matmul.cc", "w.part[i]), factors, sums.part[i]);", "w.part[i]), -factors, sums.part[i]);", *MATMUL),
    Mutation("matmul.cc", "w.part[i] & 0xffff0000u), second,", "w.part[i] & 0xffff0000u), first,", *MATMUL),
    Mutation("matmul.cc", "if (x.half) {", "if (false) {", *MATMUL),
    Mutation("matmul.cc", "result(row, p * kPanelWidth + j * kLanes, sums);", "result(row, p * kPanelWidth, sums);", *MATMUL),
    Mutation("matmul.cc", "w.part[i] << (24 - 8 * byte)", "w.part[i] << (16 - 8 * byte)", *INT8),
    Mutation("matmul.cc", "first += rows_at_once", "first += rows_at_once + 8", *MATMUL),
    # Packing.
    Mutation("pack_weights.cc", "w == whole && w < end && bytes % kWordBytes != 0", "false", *MATMUL),
    Mutation("pack_weights.cc", "(row - first) * row_bytes", "row * row_bytes", *MATMUL),
    Mutation("pack_weights.cc", "block + kBlock < words ? block + kBlock : words", "block + kBlock - 1", *MATMUL),
    Mutation("pack_weights.cc", "total += value;", "total -= value;", *INT8),
    Mutation("pack_weights.cc", "kShift = 128.5f", "kShift = 128.0f", *INT8),
    Mutation("pack_weights.cc", "*scale = largest / 127.0f;\n  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;\n  // To",
             "*scale = largest / 128.0f;\n  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;\n  // To", *INT8),
    Mutation("matmul.h", "sums.part[i] - 128 * of_weights", "sums.part[i] + 128 * of_weights", *INT8, "matmul.cc"),
    Mutation("matmul.h", "StoreLanes(lanes, n - column,", "StoreLanes(lanes, n - column - 1,", *MATMUL, "matmul.cc"),
    # By tiles.
    Mutation("tile_kernels.h", "for (int64_t w = 0; w < words; w += kTileWords)",
             "for (int64_t w = 0; w + kTileWords < words; w += kTileWords)", *MATMUL, "matmul_tiles.cc"),
    Mutation("tile_kernels.h", "panel + w * kPanelWidth + kTileWords", "panel + w * kPanelWidth", *MATMUL, "matmul_tiles.cc"),
    Mutation("tile_kernels.h", "x + kMaxTileRows * stride + w", "x + stride + w", *MATMUL, "matmul_tiles.cc"),
    Mutation("tile_kernels.h", "Dot::template Add<3, 5, 7>", "Dot::template Add<3, 4, 7>", *MATMUL, "matmul_tiles.cc"),
    Mutation("tile_kernels.h", "tiles.template Zero<2>();", "", *MATMUL, "matmul_tiles.cc"),
    Mutation("matmul_tiles.cc", "first + block * kBlockRows", "first + block * kMaxTileRows", *MATMUL),
    Mutation("matmul_tiles.cc", "result(row + r, ", "result(row, ", *MATMUL),
    Mutation("tile_kernels.h", "tiles.template DotInt8<kC, kA, kB>();", "tiles.template DotBFloat16<kC, kA, kB>();", *INT8,
             "matmul_tiles.cc"),
    # The twin.
    Mutation("emulated_tiles.cc", "HalvesOf(w, true)", "HalvesOf(w, false)", *TILES),
    Mutation("emulated_tiles.cc", "FlushedOfBFloat16(x + 2)", "FlushedOfBFloat16(x)", *TILES),
    Mutation("emulated_tiles.cc", "Flushed(Flushed(LoadVector(sums)) + Flushed(first + second))",
             "Flushed(Flushed(Flushed(LoadVector(sums)) + first) + second)", *TILES),
    Mutation("emulated_tiles.cc", "return Flushed(result);", "return result;", *TILES),
    Mutation("emulated_tiles.cc", "const unsigned char* x = tile_[a][row] + 4 * pair;",
             "const unsigned char* x = tile_[a][row] + 4 * pair + (pair == 15 ? 4 : 0);", *SIXTEEN),
    Mutation("emulated_tiles.cc", "sums[column] += x[i] * w[4 * column + i]", "sums[column] += x[i] * (w[4 * column + i] & 255)",
             *TILES_INT8),
    Mutation("emulated_tiles.cc", "if (config_.bytes[a] != config_.rows[b] * 4)", "if (false)", *REFUSES),
    # Attention by tiles.
    Mutation("attention_tiles.cc", "p + 1 < length ? ValueAt(rows, p + 1)", "p + 1 < length ? ValueAt(rows, p)", *ATTENTION),
    Mutation("attention_tiles.cc", "n + 1 < hd ? lower + block_size : zeros", "n + 1 < hd ? lower : zeros", *ATTENTION),
    Mutation("attention_tiles.cc", "Softmax(batch_.position[row + r] + 1,", "Softmax(batch_.position[row + r] + 2,", *ATTENTION),
    Mutation("attention_tiles.cc", "work.keys + p * work.key_words", "work.keys", *ATTENTION),
    Mutation("attention_tiles.cc", "work.values + n * work.position_words", "work.values", *ATTENTION),
    Mutation("attention_tiles.cc", "positions / 2,\n               work.values", "positions / 2 - kTileWords,\n               work.values",
             *ATTENTION),
    Mutation("attention_tiles.cc", "rows.head == head && !IsStart(row)", "rows.head == head", *ATTENTION),
    Mutation("attention_tiles.cc", "+ first / kPanelWidth * panel_words + first % kPanelWidth",
             "+ first / kPanelWidth * panel_words", *ATTENTION),
    # Attention by vectors.
    Mutation("paged_attention.cc", "p + 1 < end ? v + head_dim : past.zeros", "p + 1 < end ? v : past.zeros", *ATTENTION),
    Mutation("paged_attention.cc", "whole ? first + past.key_stride : past.zeros", "whole ? first : past.zeros", *ATTENTION),
    Mutation("attention.h", "y[n] * inverse + 0.0f", "y[n] + 0.0f", *ATTENTION, "paged_attention.cc"),
    Mutation("attention.h", "weights.part[i] - max", "weights.part[i]", *LARGE, "paged_attention.cc"),
]


def compile_commands(source):
    """How the build compiles a kernel file, for each instruction set: lists without their outputs and inputs."""
    commands = []
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        if pathlib.Path(entry["file"]) != source:
            continue
        words = shlex.split(entry["command"])
        for option in ("-o", "-c", "-MT", "-MF"):
            while option in words:
                del words[words.index(option) : words.index(option) + 2]
        commands.append(([word for word in words if word != "-MD"], entry["directory"]))
    assert commands, f"the build does not compile {source}"
    return commands


def link_command(program):
    """How the build links a test program, as a shell command."""
    listed = subprocess.run(["ninja", "-C", BUILD, "-t", "commands", program], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"-o tests/{program} " in line][-1]


def build(mutation, folder):
    """A test program with one mutated file in place of the original, in every instruction set."""
    original = (SOURCES / mutation.file).read_text()
    assert original.count(mutation.old) == 1, f"{mutation.file} has {original.count(mutation.old)} of: {mutation.old}"
    mutated = folder / "model" / "kernels" / "cpu" / mutation.file
    mutated.parent.mkdir(parents=True)
    mutated.write_text(original.replace(mutation.old, mutation.new))
    kernel_file = mutation.compiled or mutation.file
    source = SOURCES / kernel_file if mutation.compiled else mutated
    objects = []
    for number, (command, directory) in enumerate(compile_commands(SOURCES / kernel_file)):
        objects.append(str(folder / f"mutated{number}.o"))
        first_include = next(i for i, word in enumerate(command) if word.startswith("-I"))
        command.insert(first_include, f"-I{folder}")
        # Hardly optimised: compiling takes longer than running until a test fails.
        subprocess.run([*command, "-O1", "-c", source, "-o", objects[-1]], cwd=directory, check=True)
    # Linked before the library, the mutated objects keep the originals out.
    program = folder / "mutated_test"
    link = link_command(mutation.program).replace(f"-o tests/{mutation.program} ", f"{' '.join(objects)} -o {program} ")
    subprocess.run(link, shell=True, cwd=BUILD, check=True)
    return program


def run(program, test):
    """The output of a test for every parameter, and whether it passed."""
    done = subprocess.run([program, f"--gtest_filter=*{test}:*{test}/*", "--gtest_fail_fast"], cwd=ROOT, capture_output=True,
                          text=True, timeout=600)
    return done.stdout + done.stderr, done.returncode == 0


@pytest.mark.parametrize("program, test", sorted({(mutation.program, mutation.test) for mutation in MUTATIONS}))
def test_passes_unbroken(program, test):
    output, passed = run(BUILD / "tests" / program, test)
    assert passed, output
    assert "[ RUN      ]" in output, f"no test {test}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[f"{m.file}-{n}" for n, m in enumerate(MUTATIONS)])
def test_notices(mutation, tmp_path):
    output, passed = run(build(mutation, tmp_path), mutation.test)
    assert not passed, f"{mutation.test} passes although {mutation.file} has\n{mutation.new}\nfor\n{mutation.old}"
