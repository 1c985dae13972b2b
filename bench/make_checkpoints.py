#!/usr/bin/env python3
"""Makes random-weight checkpoints of the paper's sizes, every variant, as benchmarks need them. What is there already is kept.

    bench/make_checkpoints.py DIR [--sizes small,medium] [--variants gpt,vdim1,tc,tcec,cc,ccec] [--dtype bfloat16]

Folders are named SIZE-VARIANT, e.g. DIR/small-ccec. In bfloat16, small takes 250 MB a variant and medium 710 MB. Needs numpy.
"""

import argparse
import contextlib
import io
import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import make_random_checkpoint  # noqa: E402
from ddl_config import SIZES, VARIANTS  # noqa: E402


def make(folder, size, variant, dtype="bfloat16"):
    """The folder of a checkpoint, made now unless it is there."""
    path = folder / f"{size}-{variant}"
    if (path / "config.json").exists():
        print(f"{path}: is there", file=sys.stderr)
        return path
    unfinished = folder / f"{path.name}.unfinished"  # a broken-off run must not look like a checkpoint
    shutil.rmtree(unfinished, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it would name the unfinished folder
        status = make_random_checkpoint.main(["--size", size, "--variant", variant, "--dtype", dtype, "--out", str(unfinished)])
    if status != 0:
        sys.exit(status)
    unfinished.rename(path)
    print(f"{path}: made", file=sys.stderr)
    return path


def names(allowed):
    def parse(text):
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return chosen

    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--sizes", type=names(list(SIZES)), default=["small", "medium"], help="comma-separated")
    parser.add_argument("--variants", type=names(VARIANTS), default=list(VARIANTS), help="comma-separated")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for size in arguments.sizes:
        for variant in arguments.variants:
            make(arguments.folder, size, variant, arguments.dtype)


if __name__ == "__main__":
    main()
