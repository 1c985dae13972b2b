"""Streams through the engine in one process, and the service's cost beside them, on a checkpoint that takes no time."""

import json
import re
import subprocess
import sys

import pytest

from server_process import BUILD, ROOT, environment

STREAMS = BUILD / "bin" / "engine_streams"
MODEL = ROOT / "tests" / "data" / "goldens" / "ccec_base"


def run(*command):
    done = subprocess.run(list(map(str, command)), env=environment(), text=True, capture_output=True, timeout=240, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("streams, requests", [(1, 1), (4, 3), (3, 10)])
def test_every_request_is_answered_whole(streams, requests):
    code, out, err = run(STREAMS, f"--model={MODEL}", f"--streams={streams}", f"--requests={requests}", "--prompt_tokens=5",
                         "--output_tokens=7", "--threads=1")
    assert code == 0, err
    result = json.loads(out)
    assert result["output_tokens"] == requests * 7
    assert result["output_tokens_per_second"] == pytest.approx(result["output_tokens"] / result["seconds"])
    # At best all of the streams that there may be at a time share every step.
    assert requests * 7 >= result["steps"] >= -(-requests // streams) * 7
    assert 0 < result["model_seconds"] < result["step_seconds"] < result["seconds"]


BAD = {
    "no model": ([], 2, r"--model is required"),
    "typo": (["--modle=x"], 2, r"unknown flag --modle; did you mean --model"),
    "streams": (["--model=x", "--streams=0"], 2, r"--streams=0: must be 1"),
    "folder": (["--model=/nowhere"], 1, r"/nowhere"),
}


@pytest.mark.parametrize("flags, code, message", BAD.values(), ids=BAD)
def test_mistakes_get_a_line(flags, code, message):
    found, out, err = run(STREAMS, *flags)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert re.search(message, err)


def test_the_service_beside_the_engine():
    code, out, err = run(sys.executable, ROOT / "bench" / "service_cost.py", "--model", ROOT / "models" / "ddl-demo",
                         "--build", BUILD, "--streams", "16", "--rounds", "2", "--threads", "1")
    assert code == 0, err
    ratio, low, high = map(float, re.search(r"^ratio of a round +(\S+) \((\S+)\.\.(\S+)\)$", out, re.MULTILINE).groups())
    assert 0 < low <= ratio <= high
    share = float(re.search(r"^processor time outside the model +(\S+) %", out, re.MULTILINE).group(1))
    assert 0 < share < 100
    assert float(re.search(r"^step thread outside the model, a step +(\S+) us", out, re.MULTILINE).group(1)) > 0
