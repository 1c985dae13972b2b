"""The plots of the benchmarks for GPUs, from figures that nobody has measured."""

import json
import pathlib
import subprocess
import sys
import types

import pytest

PLOTS = pathlib.Path(__file__).resolve().parents[2] / "bench" / "plots.py"
MADE_UP = "a test's made-up GPU"


def spread(value):
    return {"median": value, "min": value - 0.1, "max": value + 0.1, "by_round": [value]}


def model(variant, ratio):
    return {"name": variant, "variant": variant, "speed_ratio_to_first": spread(ratio)}


ENGINE = {
    "device": "cuda:0",
    "scenarios": [
        {"scenario": "decode batch 1, context 512", "kind": "decode", "batch": 1, "tokens": 512,
         "models": [model("gpt", 1), model("ccec", 0.9)]},
        {"scenario": "prefill 512", "kind": "prefill", "batch": 1, "tokens": 512, "models": [model("gpt", 1), model("ccec", 0.8)]},
    ],
}
KERNELS = {
    "gpu": MADE_UP,
    "results": [
        {"kernel": "DeltaStep", "case": "small cc", "tokens": 1, "seconds": 1e-6, "bytes": 8, "of_copy": 0.5},
        {"kernel": "DeltaStep", "case": "small cc", "tokens": 256, "seconds": 1e-6, "bytes": 8, "of_copy": 0.7},
        {"kernel": "SwiGlu", "case": "medium", "tokens": 256, "seconds": 1e-6, "bytes": 8, "of_copy": 0.8},
        {"kernel": "PagedAttention", "case": "small chunks", "tokens": 256, "seconds": 1e-6},
    ],
}


def plots(folder, *arguments):
    return subprocess.run([sys.executable, PLOTS, *map(str, arguments), str(folder)], capture_output=True, text=True, timeout=240)


@pytest.fixture
def written(tmp_path):
    for name, content in {"kernels": KERNELS, "small": ENGINE}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("with_kernels, with_engine", [(True, True), (True, False), (False, True)])
def test_a_plot_of_each_file(written, with_kernels, with_engine):
    arguments = ["--kernels", written / "kernels.json"] if with_kernels else []
    arguments += ["--engine", f"small={written / 'small.json'}"] if with_engine else []
    done = plots(written, *arguments)
    assert done.returncode == 0, done.stderr
    want = [name for name, there in {"variants.png": with_engine, "kernels.png": with_kernels}.items() if there]
    if "matplotlib is not installed" in done.stderr:
        want = []
    assert done.stdout.split() == [str(written / name) for name in want]
    assert {path.name for path in written.glob("*.png")} == set(want)
    assert all((written / name).read_bytes().startswith(b"\x89PNG") for name in want)


@pytest.mark.parametrize("arguments", [[], ["results.json", "--kernels", "kernels.json"]])
def test_one_kind_of_results_at_a_time(written, arguments):
    done = plots(written, *arguments)
    assert done.returncode == 2
    assert "either RESULTS.json, or --kernels and --engine" in done.stderr


def test_a_table_beside_the_predictions(written):
    (written / "predictions.json").write_text(json.dumps({"ratios": {"small": {"prefill": {"ccec": 0.91}}}, "paper": {"ccec": 0.67}}))
    done = plots(written, "--engine", f"small={written / 'small.json'}", "--predictions", written / "predictions.json")
    assert done.returncode == 0, done.stderr
    assert "| small | decode 1 | ccec | 0.90 |  | 0.67 |" in done.stdout
    assert "| small | prefill | ccec | 0.80 | 0.91 | 0.67 |" in done.stdout


def test_what_is_drawn(monkeypatch):
    """Each kernel that has bytes, in its size's panel, and the GPU's name below."""
    sys.path.insert(0, str(PLOTS.parent))
    import plots as module

    class Axes:
        def __init__(self):
            self.lines, self.title = {}, None

        def plot(self, tokens, shares, marker, label):
            self.lines[label] = dict(zip(tokens, shares))
            return [types.SimpleNamespace(get_color=lambda: "black")]

        def set_title(self, title, fontsize):
            self.title = title

        def __getattr__(self, name):
            return lambda *arguments, **options: None

    panels = [Axes(), Axes()]

    class Pyplot:
        @staticmethod
        def subplots(*arguments, **options):
            return "figure", [panels]

    saved = []
    monkeypatch.setattr(module, "save", lambda pyplot, figure, text, path: saved.append((figure, text, path)))
    module.draw_kernels(Pyplot, KERNELS["gpu"], KERNELS["results"], "kernels.png", {})
    assert [axes.title for axes in panels] == ["small", "medium"]
    assert panels[0].lines == {"DeltaStep cc": {1: 0.5, 256: 0.7}}
    assert panels[1].lines == {"SwiGlu": {256: 0.8}}
    assert saved == [("figure", MADE_UP, "kernels.png")]
