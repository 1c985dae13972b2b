#!/usr/bin/env python3
"""Checks which part of the project includes which, and draws it.

    scripts/include_graph.py [--targets FILE] [--arrows] [--root FOLDER]

The floors are base, model and server, from the bottom up; bench and tests stand beside the house, and may include all of it.
A room is a floor's folder, with the folders in it, or a file (.h and .cc) that stands on the floor itself. An arrow goes from
one room to another that it includes. It is upward if it goes to a higher floor; and of those that make a circle, as few are
called upward as leave none without them.

Fails on an upward arrow. With FILE (targets.tsv, which CMake writes into the build folder) also where a target includes a
header of another one that it does not link, or links one of which it includes nothing.
"""

import argparse
import collections
import itertools
import pathlib
import re
import sys

FLOORS = ["base", "model", "server"]
SOURCE = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^#include "((?:%s|bench|tests)/[^"]+)"' % "|".join(FLOORS), re.MULTILINE)


def files_of(root, folders):
    return sorted(path.relative_to(root) for folder in folders for path in (root / folder).rglob("*") if path.suffix in SOURCE)


def includes_of(root, path):
    return [pathlib.PurePosixPath(name) for name in INCLUDE.findall((root / path).read_text())]


def room_of(path):
    """server/engine/engine.h: server/engine. server/config.h: server/config. base/check.h: base."""
    parts = path.with_suffix("").parts
    return parts[0] if parts[0] == "base" else "/".join(parts[:2])


def find_arrows(root):
    """{(from, to): [a line for each include]} between rooms."""
    arrows = collections.defaultdict(list)
    for path in files_of(root, FLOORS):
        for included in includes_of(root, path):
            here, there = room_of(path), room_of(included)
            if here != there:
                arrows[here, there].append(f"{path} includes {included}")
    return dict(arrows)


def circles(arrows):
    """The arrows that are part of a circle."""
    arrows = set(arrows)
    while True:
        begins, ends = {a for a, _ in arrows}, {b for _, b in arrows}
        left = {(a, b) for a, b in arrows if a in ends and b in begins}
        if left == arrows:
            return arrows
        arrows = left


def upward(arrows):
    up = {(a, b) for a, b in arrows if FLOORS.index(a.split("/")[0]) < FLOORS.index(b.split("/")[0])}
    left = circles(set(arrows) - up)
    for count in range(len(left) + 1):
        for removed in itertools.combinations(sorted(left), count):
            if not circles(left - set(removed)):
                return up | set(removed)
    raise AssertionError("no arrows make no circle")


class Target:
    def __init__(self, name):
        self.name = name
        self.sources, self.links = [], []


def read_targets(path):
    """Lines of a target, a kind and a value: `source` with its path from the root, or `link` with another target."""
    targets = {}
    for line in path.read_text().splitlines():
        name, kind, value = line.split("\t")
        target = targets.setdefault(name, Target(name))
        {"source": target.sources, "link": target.links}[kind].append(value)
    return targets


def reachable(targets, start):
    seen, ahead = set(), [start]
    while ahead:
        name = ahead.pop()
        if name in seen or name not in targets:
            continue
        seen.add(name)
        ahead += targets[name].links
    return seen


def check_targets(root, targets):
    """What each target includes against what it links."""
    problems = []
    owners = collections.defaultdict(set)  # of a header: the targets that name it, or the .cc beside it
    for target in targets.values():
        for source in target.sources:
            if not source.endswith((".cc", ".cu")):  # a header, or a table that is included
                owners[pathlib.PurePosixPath(source)].add(target.name)
            for suffix in (".h", ".cuh"):
                header = pathlib.PurePosixPath(source).with_suffix(suffix)
                if (root / header).exists():
                    owners[header].add(target.name)
    for target in targets.values():
        # Tests put their twins in the places of what they test.
        if any(source.startswith("tests/") for source in target.sources):
            continue
        linked = reachable(targets, target.name)
        used = set()
        own = {pathlib.PurePosixPath(source) for source in target.sources}
        own |= {source.with_suffix(".h") for source in own if (root / source.with_suffix(".h")).exists()}
        for path in sorted(own):
            for included in includes_of(root, path):
                used |= owners[included]
                if owners[included] & linked:
                    continue
                named = " or ".join(sorted(owners[included])) or "no target (name it among some target's SOURCES)"
                problems.append(f"{path} includes {included} of {named}, which {target.name} does not link")
        compiled = any(source.endswith(".cc") for source in target.sources)
        if compiled and all(source.split("/")[0] in FLOORS for source in target.sources):
            for link in target.links:
                # One that has nothing to include, for its symbols alone.
                if link in targets and link not in used and any(link in owner for owner in owners.values()):
                    problems.append(f"{target.name} links {link}, of which it includes nothing")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1])
    parser.add_argument("--targets", type=pathlib.Path)
    parser.add_argument("--arrows", action="store_true", help="print every arrow")
    options = parser.parse_args()

    arrows = find_arrows(options.root)
    up = upward(arrows)
    for floor in FLOORS:
        rooms = {room_of(path) for path in files_of(options.root, [floor])}
        within = [pair for pair in arrows if all(room.split("/")[0] == floor for room in pair)]
        print(f"{floor}: {len(rooms)} rooms, {len(within)} arrows between them")
    print(f"in all: {len(arrows)} arrows, {len(up)} upward")
    if options.arrows:
        by_room = collections.defaultdict(list)
        for a, b in sorted(arrows):
            by_room[a].append(b + ("  <-- upward" if (a, b) in up else ""))
        for room, others in by_room.items():
            print(f"{room}\n  -> " + "\n  -> ".join(others))

    problems = [f"upward, {a} -> {b}: " + "; ".join(arrows[a, b]) for a, b in sorted(up)]
    if options.targets:
        problems += check_targets(options.root, read_targets(options.targets))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
