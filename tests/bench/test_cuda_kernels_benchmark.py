"""The benchmark of the CUDA kernels, over the kernels as C++ on this machine: that its calls are right, not how fast they are."""

import json
import re
import subprocess

import pytest

from server_process import BUILD, environment


def run(program, *arguments):
    done = subprocess.run([str(program), *map(str, arguments)],
                          env=environment(CUDA_VISIBLE_DEVICES=""), text=True,
                          capture_output=True, timeout=250, check=False)
    return done.returncode, done.stdout, done.stderr


ON_HOST = BUILD / "tests" / "cuda_kernels_benchmark_on_host"


def test_every_kernel_beside_a_copy(tmp_path):
    path = tmp_path / "kernels.json"
    code, out, err = run(ON_HOST, "--tokens=2,260", "--context=20", f"--json={path}")
    assert code == 0, err
    found = json.loads(path.read_text())
    assert found["gpu"] == "host"
    cases = {(r["kernel"], r["case"], r["tokens"]): r for r in found["results"]}
    for tokens in (2, 260):
        for geometry in ("small", "medium"):
            for variant in ("gpt", "vdim1", "cc", "tc"):
                assert ("DeltaStep", f"{geometry} {variant}", tokens) in cases
            assert ("SwiGlu", geometry, tokens) in cases
    # X in and out, h and c of 260 rows of CC; then its norm, compress, beta and v weights.
    cc = cases["DeltaStep", "small cc", 260]
    assert cc["bytes"] == 260 * 768 * 10 * 2 + 768 * (1 + 4 + 1 + 4) * 4
    assert cc["bytes_per_second"] == pytest.approx(cc["bytes"] / cc["seconds"])
    assert cc["of_copy"] == pytest.approx(cc["bytes_per_second"] / cc["copy_bytes_per_second"])
    assert cases["GatherContext", "medium", 260]["bytes"] == 260 * 1024 * 4 * 2
    assert ("GatherContext", "medium", 2) not in cases  # decodes are attended to in place
    assert ("SampleTokens", "top_p", 2) in cases and ("SampleTokens", "top_p, flat", 2) in cases
    assert "bytes" not in cases["PagedAttention", "small chunks", 260]  # bound by arithmetic
    assert len(out.splitlines()) == 2 + len(cases)


@pytest.mark.parametrize("flag, pattern", [("--tokens=0", r"--tokens=0: must be"),
                                           ("--tokens=", r"--tokens must name a number"),
                                           ("--context=-1", r"--context=-1"),
                                           ("--token=1", r"did you mean --tokens")])
def test_bad_flag(flag, pattern):
    code, out, err = run(ON_HOST, flag)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"cuda_kernels_benchmark: .+\n", err) and re.search(pattern, err), err


@pytest.mark.skipif(not (BUILD / "bin" / "cuda_kernels_benchmark").exists(),
                    reason="needs a GPU, and a build with -D DDL_CUDA=ON")
def test_no_gpu():
    code, out, err = run(BUILD / "bin" / "cuda_kernels_benchmark")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"cuda_kernels_benchmark: this machine has no GPU that CUDA can use: .+\n",
                        err), err
