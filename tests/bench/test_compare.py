"""What bench/compare.py makes of its measurements, and the checkpoints that it measures."""

import pathlib
import subprocess
import sys

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import compare


def of_round(decode, prefill):
    return {"decode": {8: decode}, "prefill": prefill}


# Rounds of 3 contestants: what a slow moment of the machine does to all is not in the ratios.
MEASURED = {
    "ddl_server ccec": [of_round(120, 900), of_round(60, 450), of_round(140, 800)],
    "OpenVINO GenAI": [of_round(100, 1000), of_round(40, 500), of_round(50, 1000)],
    "vLLM": [of_round(80, 700), of_round(30, 600), of_round(56, 900)],
    "llama.cpp": [of_round(60, 600), of_round(50, 250), of_round(70, 200)],
    compare.OFFICIAL: [of_round(30, 300), of_round(15, 150), of_round(20, 400)],
}


def test_ratios_are_taken_within_a_round_and_to_the_better_peer_of_it():
    ours = compare.summarise(MEASURED, list(MEASURED)[1:])["ddl_server ccec"]
    decode = ours["ratio_to_better_peer"]["decode 8"]
    assert decode["by_round"] == pytest.approx([120 / 100, 60 / 50, 140 / 70])
    assert [decode["median"], decode["min"], decode["max"]] == pytest.approx([1.2, 1.2, 2.0])
    assert ours["ratio_to_better_peer"]["prefill"]["by_round"] == pytest.approx([900 / 1000, 450 / 600, 800 / 1000])
    assert ours["ratio_to_official_code"]["decode 8"]["by_round"] == pytest.approx([4, 4, 7])
    assert ours["tokens_per_second"]["decode 8"]["median"] == 120


def test_peers_are_not_compared_with_themselves():
    result = compare.summarise(MEASURED, list(MEASURED)[1:])
    assert result["llama.cpp"].keys() == {"tokens_per_second"}


@pytest.mark.parametrize("there, ratios", [
    ([], set()),
    (["OpenVINO GenAI"], {"ratio_to_better_peer"}),
    ([compare.OFFICIAL], {"ratio_to_official_code"}),
])
def test_absent_peers_leave_no_ratio(there, ratios):
    measured = {name: MEASURED[name] for name in ["ddl_server ccec", *there]}
    ours = compare.summarise(measured, there)["ddl_server ccec"]
    assert ours.keys() == {"tokens_per_second"} | ratios


def test_a_peer_that_is_not_installed_is_left_out_with_the_reason(tmp_path, capsys):
    assert compare.find_peers(None, "small") == []
    assert "--peers was not given" in capsys.readouterr().err
    program = tmp_path / "llama-cpp/llama.cpp/build/bin/llama-batched-bench"
    program.parent.mkdir(parents=True)
    program.touch()
    assert [peer.name for peer in compare.find_peers(tmp_path, "small")] == ["llama.cpp"]
    said = capsys.readouterr().err
    assert "without OpenVINO GenAI: " in said and "openvino-venv/bin/python is not there" in said
    assert "without vLLM: " in said and "vllm-venv/bin/python is not there" in said
    assert "without official code: " in said and "llama" not in said


def test_in_8_bits_the_peer_is_one_that_has_them_too(tmp_path, capsys):
    for needed in ("llama-cpp/llama.cpp/build/bin/llama-batched-bench", "openvino-venv/bin/python", "vllm-venv/bin/python"):
        (tmp_path / needed).parent.mkdir(parents=True)
        (tmp_path / needed).touch()
    names = lambda quantization: [peer.name for peer in compare.find_peers(tmp_path, "small", quantization)]
    assert names("none") == ["OpenVINO GenAI", "vLLM", "llama.cpp"]
    assert names("int8") == ["llama.cpp"]
    said = capsys.readouterr().err
    assert "without OpenVINO GenAI: it is not timed in 8 bits" in said and "without vLLM: it is not timed in 8 bits" in said


def test_checkpoints_are_made_once(tmp_path):
    command = [sys.executable, str(BENCH / "make_checkpoints.py"), str(tmp_path), "--sizes=tiny",
               "--variants=gpt,tc"]
    subprocess.run(command, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-gpt", "tiny-tc"]
    kept = (tmp_path / "tiny-tc/model.safetensors").stat()
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stderr.count("is there") == 2
    assert (tmp_path / "tiny-tc/model.safetensors").stat().st_mtime_ns == kept.st_mtime_ns


def test_unknown_variant(tmp_path):
    done = subprocess.run([sys.executable, str(BENCH / "make_checkpoints.py"), str(tmp_path),
                           "--variants=gtp"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "'gtp' is none of gpt, vdim1" in done.stderr
