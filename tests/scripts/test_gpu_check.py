"""scripts/gpu_check.sh over programs that only pretend: verdicts, time limits, the table, and what it refuses."""

import json
import pathlib
import shutil
import subprocess
import time

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.sh"
NO_GPU = "echo 'skipped, needs a GPU: this machine has no GPU that CUDA can use: no device was found'; exit 77"
PASSES = "echo '[  PASSED  ] 5 tests.'"
WRITES = 'for a in "$@"; do case $a in --json=*) echo {} >"${a#--json=}" ;; esac; done; echo written'
TESTS = ["kernels", "runtime", "attention", "steps", "model_runner"]
PARTS = [f"{name}_test" for name in TESTS] + ["kernels_benchmark", "engine_benchmark", "ncu_kernels", "ncu_decode", "memcheck", "racecheck"]


def bundle(folder, programs):
    """An unpacked bundle whose programs are the given lines of bash."""
    for name in ("bin", "tools", "bench", "python/torch/lib", "python/torch-2.11.0.dist-info"):
        (folder / name).mkdir(parents=True)
    shutil.copy(SCRIPT, folder)
    for name, line in programs.items():
        program = folder / "bin" / name
        program.write_text(f"#!/usr/bin/env bash\n{line}\n")
        program.chmod(0o755)
    (folder / "tools/make_random_checkpoint.py").write_text(
        "import pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "out.mkdir()\n"
        "(out / 'model.safetensors').touch()\n")
    (folder / "bench/plots.py").write_text("print('plots')\n")
    (folder / "python/torch/__init__.py").touch()
    (folder / "python/torch-2.11.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0+cu130\n")
    (folder / "TORCH").write_text("2.11.0\n")
    (folder / "REVISION").write_text("0123456789ab\n")
    return folder


def programs(line=PASSES, **others):
    names = {f"cuda_{name}_device_test": line for name in TESTS} | {"cuda_kernels_benchmark": line, "engine_benchmark": line}
    return names | others


def check(folder, **environment):
    """Its exit code, its output, and the parts by name."""
    done = subprocess.run([folder / "gpu_check.sh", folder, folder / "results"], capture_output=True, text=True, timeout=60, check=False,
                          cwd=folder, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder / "python"), "TMPDIR": str(folder)} | environment)
    parts = folder / "results" / "parts.jsonl"
    lines = parts.read_text().splitlines() if parts.exists() else []
    return done.returncode, done.stdout + done.stderr, {part["part"]: part for part in map(json.loads, lines)}


def test_without_a_gpu_each_part_says_so_in_a_line(tmp_path):
    code, output, parts = check(bundle(tmp_path, programs(NO_GPU)))
    assert code == 77, output
    assert list(parts) == PARTS
    for name, part in parts.items():
        tool = {"ncu": "ncu", "mem": "compute-sanitizer", "rac": "compute-sanitizer"}.get(name[:3])
        assert part["verdict"] == ("not there" if tool else "no GPU"), part
        assert part["line"] == (f"not there: no {tool} in PATH" if tool else NO_GPU.split("'")[1]), part
    table = (tmp_path / "results" / "summary.txt").read_text().splitlines()
    assert [line.split()[0] for line in table] == ["part"] + PARTS
    assert all(line in output for line in table)


def test_verdicts(tmp_path):
    code, output, parts = check(bundle(tmp_path, programs(
        cuda_runtime_device_test="echo 'expected 1'; exit 1",
        cuda_attention_device_test="no_such_library",
        cuda_kernels_benchmark=WRITES, engine_benchmark=WRITES)))
    assert code == 1, output
    verdicts = {name: parts[name]["verdict"] for name in PARTS[:7]}
    assert verdicts == {"kernels_test": "passed", "runtime_test": "failed (1)", "attention_test": "failed (127)", "steps_test": "passed",
                        "model_runner_test": "passed", "kernels_benchmark": "passed", "engine_benchmark": "passed"}
    assert parts["runtime_test"]["line"] == "expected 1"
    assert "plots" in output and "revision 0123456789ab" in output
    assert check(bundle(tmp_path / "passes", programs()))[0] == 0


def test_the_limits_add_up_to_less_than_ten_minutes(tmp_path):
    _, _, parts = check(bundle(tmp_path, programs()))
    assert sum(int(part["limit_s"]) for part in parts.values()) <= 600 - 5


def test_no_part_outlives_the_budget(tmp_path):
    # One that does not heed its end, and one that would.
    slow = bundle(tmp_path, programs(cuda_kernels_device_test="trap '' TERM; while :; do sleep 0.1; done", cuda_runtime_device_test="sleep 60"))
    begin = time.monotonic()
    code, output, parts = check(slow, BUDGET="7")
    assert time.monotonic() - begin < 9
    assert code == 1, output
    assert [parts[name]["verdict"] for name in PARTS[:3]] == ["out of time"] * 3
    assert parts["attention_test"]["line"] == "nothing is left of the 7 s"


@pytest.mark.parametrize("change, said", [
    (lambda folder: (folder / "TORCH").write_text("2.12.0\n"), "built against torch 2.12.0, and python3 has 2.11.0"),
    (lambda folder: shutil.rmtree(folder / "python"), "has no torch, whose libraries the programs need"),
    (lambda folder: shutil.rmtree(folder / "bin"), "is no unpacked bundle: bin/cuda_kernels_device_test is missing"),
], ids=["another torch", "no torch", "no bundle"])
def test_refuses(tmp_path, change, said):
    folder = bundle(tmp_path, programs())
    change(folder)
    code, output, parts = check(folder)
    assert (code, parts) == (2, {}) and said in output, output
    assert len(output.splitlines()) == 1
