"""The in-process benchmark on checkpoints so small that it takes no time."""

import json
import re
import statistics
import subprocess

import pytest

from server_process import BUILD, ROOT, environment

BENCHMARK = BUILD / "bin" / "engine_benchmark"
GOLDENS = ROOT / "tests" / "data" / "goldens"


def run(*arguments, **variables):
    done = subprocess.run([str(BENCHMARK), *map(str, arguments)], env=environment(**variables),
                          text=True, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def test_ratios_are_those_of_the_rounds(tmp_path):
    path = tmp_path / "result.json"
    code, out, err = run(f"--models=base={GOLDENS / 'gpt_base'},{GOLDENS / 'tcec_base'}",
                         "--batches=1,3", "--context=20", "--steps=2", "--prefill=40",
                         "--rounds=3", "--threads=1", f"--json={path}")
    assert code == 0, err
    result = json.loads(path.read_text())
    assert (result["threads"], result["rounds"]) == (1, 3)
    assert [s["scenario"] for s in result["scenarios"]] == [
        "decode batch 1, context 20", "decode batch 3, context 20", "prefill 40"]
    for scenario in result["scenarios"]:
        assert scenario["scenario"] in out
        base, other = scenario["models"]
        assert (base["name"], base["variant"]) == ("base", "gpt")
        assert (other["name"], other["variant"]) == ("tcec_base", "tcec")
        rounds = [model["step_seconds"]["by_round"] for model in (base, other)]
        assert len(rounds[0]) == len(rounds[1]) == 3 and min(map(min, rounds)) > 0
        ratios = [a / b for a, b in zip(*rounds)]
        assert other["speed_ratio_to_first"]["by_round"] == pytest.approx(ratios)
        assert other["speed_ratio_to_first"]["median"] == pytest.approx(statistics.median(ratios))
        assert other["speed_ratio_to_first"]["max"] == pytest.approx(max(ratios))
        assert base["speed_ratio_to_first"]["by_round"] == [1, 1, 1]
        rows = scenario["tokens"] if scenario["kind"] == "prefill" else scenario["batch"]
        assert other["tokens_per_second"] == pytest.approx(
            rows / statistics.median(rounds[1]))
        assert other["bound_seconds"]["min"] > 0
    assert re.search(r"round 3 of 3", err)


BAD_FLAGS = {
    "no models": ([], r"--models is required"),
    "typo": (["--model=x"], r"unknown flag --model; did you mean --models"),
    "batch": (["--models=x", "--batches=0"], r"--batches=0: must be"),
    "nothing": (["--models=x", "--batches=", "--prefill=0"], r"nothing to time"),
    "dtype": (["--models=x", "--dtype=int8"], r"--dtype=int8: must be auto, float32, bfloat16"),
    "device": (["--models=x", "--device=tpu"], r"--device=tpu: must be cpu, cuda"),
    "rounds": (["--models=x", "--rounds=0"], r"--rounds=0: must be 1"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flag(name):
    arguments, pattern = BAD_FLAGS[name]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"engine_benchmark: .+\n", err) and re.search(pattern, err), err


def test_no_checkpoint(tmp_path):
    code, _, err = run(f"--models={tmp_path}", "--bound=false")
    assert code == 1 and "config.json" in err.splitlines()[-1]


def test_no_gpu():
    code, out, err = run(f"--models={GOLDENS / 'gpt_base'}", "--device=cuda",
                         CUDA_VISIBLE_DEVICES="")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"engine_benchmark: this (program was built without CUDA|machine has no GPU.*)\n", err), err
