"""scripts/check_docs.py: what it finds in a small project, and what it leaves alone."""

import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check_docs.py"
LONG = "word " * 32  # 160 characters, the last of them a space


def mistakes(folder, files):
    """What the script says of a project of these files: its lines, without their ends."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "-C", folder, "init", "--quiet"], check=True)
    subprocess.run(["git", "-C", folder, "add", "--all"], check=True)
    done = subprocess.run([sys.executable, SCRIPT, "--root", folder], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if done.stderr else 0)
    return done.stderr.splitlines()


OTHER = {"docs/other.md": "# Some `code` in a Heading, twice\n", "server/engine.h": "", "server/engine.cc": ""}


@pytest.mark.parametrize("name, text, found", [
    ("a line of 160", LONG[:160], None),
    ("a line of 161", LONG[:160] + "x", "README.md:1: a line of 161 characters"),
    ("a line of a code block", f"```\n{LONG}{LONG}\n```", None),
    ("a line after a code block", f"```\n```\n{LONG}{LONG}", "README.md:3: a line of 320 characters"),
    ("a row with two cells of 159", f"|{LONG}|{LONG}|", None),
    ("a row with a cell of 161", f"| a | {LONG}xx |", "README.md:1: a cell of 162 characters"),
    ("a link to a file", "[other](docs/other.md)", None),
    ("a link to a heading", "[other](docs/other.md#some-code-in-a-heading-twice)", None),
    ("a link within the page", "# Here\n[here](#here)", None),
    ("a link to the web", "[there](https://example.org/docs/none.md#none)", None),
    ("a link to no file", "[other](docs/none.md)", "README.md:1: a link to docs/none.md"),
    ("a link to no heading", "[other](docs/other.md#none)", "README.md:1: a link to docs/other.md#none"),
    ("a link in code", "`[other](docs/none.md)`", None),
    ("a file", "see `server/engine.cc`", None),
    ("a stem", "see `server/engine`", None),
    ("a folder", "see `server/`", None),
    ("a pattern", "see `server/*.cc`", None),
    ("a file of no folder of ours", "see `build/engine.cc`", None),
    ("no file", "see `server/scheduler.cc`", "README.md:1: names server/scheduler.cc"),
    ("no pattern", "see `server/*.py`", "README.md:1: names server/*.py"),
])
def test_markdown(tmp_path, name, text, found):
    lines = mistakes(tmp_path, {"README.md": text, **OTHER})
    assert [line[:len(found or "")] for line in lines] == ([found] if found else []), lines


@pytest.mark.parametrize("name, found", [
    ("scripts/run.sh", True), ("CMakeLists.txt", True), ("Makefile", True), ("a/b.yaml", True), ("server/engine.cc", False),
    ("proto/google/rpc/status.proto", False)])
def test_files_whose_comments_are_prose(tmp_path, name, found):
    assert bool(mistakes(tmp_path, {name: f"# {LONG}\n"})) == found


def test_files_that_git_does_not_track(tmp_path):
    (tmp_path / ".gitignore").write_text("/build/\n")
    assert not mistakes(tmp_path, {"build/README.md": LONG + LONG})
