#!/usr/bin/env python3
"""Checks the project's prose: the length of its lines, and that what it points to is there.

    scripts/check_docs.py [--root FOLDER]

- No line is longer than 160 characters: of Markdown, and of the files whose comments are prose (scripts, CMake, YAML, proto,
  Dockerfile, Makefile). Code blocks of Markdown show what programs print. A row of a table, which cannot be broken, may be
  longer, but none of its cells.
- A relative link of Markdown leads to a file of the project, and its #anchor to a heading there.
- A path in backticks that begins with a folder of the project, such as `server/engine/scheduler.cc`, is there: a file, a
  folder, a pattern with *, or a stem of a .h or .cc.

Looks at the files that git tracks. Prints each mistake with its file and line, and fails if there is one.
"""

import argparse
import fnmatch
import pathlib
import re
import subprocess
import sys

LONGEST = 160
PROSE = {".md", ".sh", ".txt", ".cmake", ".yaml", ".yml", ".proto", ".cfg", ".env", ".service", ".toml"}
PROSE_NAMES = {"Dockerfile", "Makefile"}
# What the official code and others wrote, and data.
NOT_OURS = ("tests/data/", "tests/deploy/schemas/", "proto/google/", "LICENSE")

LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
FENCE = re.compile(r"^\s*(```|~~~)")


def tracked_files(root):
    """Paths of the files in git's index that are still there, relative to the root."""
    listing = subprocess.run(["git", "-C", root, "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    return [name for name in listing.split("\0") if name and (root / name).exists()]


def slug(heading):
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def prose_lines(text):
    """(number, line) of the lines of Markdown outside code blocks."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(text):
    return {slug(line.lstrip("#")) for _, line in prose_lines(text) if re.match(r"#{1,6} ", line)}


def overlong(name, text):
    is_markdown = name.endswith(".md")
    for number, line in prose_lines(text) if is_markdown else enumerate(text.splitlines(), 1):
        is_row = is_markdown and line.startswith("|")
        length = max(len(part.strip()) for part in line.split("|")) if is_row else len(line)
        if length > LONGEST:
            yield f"{name}:{number}: {'a cell' if is_row else 'a line'} of {length} characters, at most {LONGEST} are allowed"


def broken_links(root, name, text):
    for number, line in prose_lines(text):
        for target in LINK.findall(CODE.sub("", line)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            there = (root / name).parent / path if path else root / name
            if not there.exists():
                yield f"{name}:{number}: a link to {target}, but there is no such file"
            elif anchor and anchor not in anchors(there.read_text()):
                yield f"{name}:{number}: a link to {target}, but no heading there has this anchor"


def is_there(path, files, folders):
    if path.rstrip("/") in folders or path in files:
        return True
    if "*" in path:
        return bool(fnmatch.filter(files, path))
    return path + ".h" in files or path + ".cc" in files


def lost_paths(name, text, files, folders):
    roots = {folder for folder in folders if "/" not in folder}
    for number, line in prose_lines(text):
        for code in CODE.findall(line):
            if re.fullmatch(r"[\w.*-]+/[\w./*-]*", code) and code.split("/")[0] in roots and not is_there(code, files, folders):
                yield f"{name}:{number}: names {code}, which is not in the project"


def check(root):
    names = tracked_files(root)
    files = set(names)
    folders = {str(folder) for name in names for folder in pathlib.PurePosixPath(name).parents} - {"."}
    for name in names:
        path = root / name
        if name.startswith(NOT_OURS) or not (path.suffix in PROSE or path.name in PROSE_NAMES):
            continue
        text = path.read_text()
        yield from overlong(name, text)
        if path.suffix == ".md":
            yield from broken_links(root, name, text)
            yield from lost_paths(name, text, files, folders)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent, metavar="FOLDER")
    mistakes = list(check(parser.parse_args().root))
    print(*mistakes, sep="\n", end="\n" if mistakes else "", file=sys.stderr)
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
