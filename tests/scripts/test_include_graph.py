"""scripts/include_graph.py: this project's own includes, and small trees with one mistake each."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGETS = pathlib.Path(os.environ["DDL_BUILD_DIR"]) / "targets.tsv"


def check(*arguments):
    return subprocess.run([sys.executable, ROOT / "scripts" / "include_graph.py", *arguments], capture_output=True, text=True)


def test_the_project():
    done = check("--targets", TARGETS)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


# A tree: what each file includes, and what each target has of sources and links.
FILES = {
    "base/check.h": [],
    "model/kernels/kernels.h": [],
    "model/kernels/cpu/copy.cc": ["model/kernels/kernels.h"],
    "model/sampler.h": ["base/check.h"],
    "model/sampler.cc": ["model/sampler.h", "model/kernels/kernels.h"],
    "server/engine/engine.h": ["model/sampler.h"],
    "server/engine/engine.cc": ["server/engine/engine.h", "base/check.h"],
}
TREE_TARGETS = {
    "base": (["base/check.h"], []),
    "kernels": (["model/kernels/kernels.h", "model/kernels/cpu/copy.cc"], []),
    "sampler": (["model/sampler.cc"], ["base", "kernels"]),
    "engine": (["server/engine/engine.cc"], ["sampler"]),
}


def run_on(tree, files, targets):
    for floor in ("base", "model", "server"):
        (tree / floor).mkdir()
    for name, includes in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("".join(f'#include "{include}"\n' for include in includes))
    lines = [f"{target}\tsource\t{source}\n" for target, (sources, _) in targets.items() for source in sources]
    lines += [f"{target}\tlink\t{link}\n" for target, (_, links) in targets.items() for link in links]
    (tree / "targets.tsv").write_text("".join(lines))
    return check("--root", tree, "--targets", tree / "targets.tsv")


def test_a_tree_without_mistakes(tmp_path):
    done = run_on(tmp_path, FILES, TREE_TARGETS)
    assert (done.returncode, done.stderr) == (0, "")
    # base <- sampler, kernels <- sampler <- engine, base <- engine.
    assert done.stdout.splitlines() == [
        "base: 1 rooms, 0 arrows between them",
        "model: 2 rooms, 1 arrows between them",
        "server: 1 rooms, 0 arrows between them",
        "in all: 4 arrows, 0 upward",
    ]


@pytest.mark.parametrize("files, targets, problem", [
    pytest.param({"base/check.h": ["model/sampler.h"]}, {"base": (["base/check.h"], ["sampler"])},
                 "upward, base -> model/sampler: base/check.h includes model/sampler.h", id="to a higher floor"),
    pytest.param({"model/kernels/kernels.h": ["model/sampler.h"]}, {"kernels": (["model/kernels/kernels.h"], ["sampler"])},
                 "upward, model/kernels -> model/sampler: model/kernels/kernels.h includes model/sampler.h", id="a circle"),
    pytest.param({}, {"sampler": (["model/sampler.cc"], ["base"])},
                 "model/sampler.cc includes model/kernels/kernels.h of kernels, which sampler does not link", id="not linked"),
    pytest.param({"server/engine/queue.h": [], "server/engine/engine.cc": ["server/engine/engine.h", "server/engine/queue.h"]}, {},
                 "server/engine/engine.cc includes server/engine/queue.h of no target", id="nobody's header"),
    pytest.param({"server/engine/engine.h": []}, {"engine": (["server/engine/engine.cc"], ["base", "sampler"])},
                 "engine links sampler, of which it includes nothing", id="linked for nothing"),
])
def test_one_mistake(tmp_path, files, targets, problem):
    done = run_on(tmp_path, FILES | files, TREE_TARGETS | targets)
    assert done.returncode == 1
    assert done.stderr.startswith(problem) and done.stderr.count("\n") == 1, done.stderr
