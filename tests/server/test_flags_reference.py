"""docs/flags.md is what the flags say."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ["DDL_BUILD_DIR"]) / "tests" / "flags_reference"


def test_is_up_to_date():
    written = (ROOT / "docs" / "flags.md").read_text()
    assert written == subprocess.run([PROGRAM], capture_output=True, text=True, check=True).stdout, "run make flags-reference"
