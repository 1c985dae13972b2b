#!/usr/bin/env python3
"""Lists the tests that were skipped, with their reasons, from the JUnit files of a test run.

    report_skipped.py [--allow PATTERN] FOLDER

With --allow, exits with status 1 if a reason does not match the pattern (a regular expression).
"""

import argparse
import pathlib
import re
import sys
import xml.etree.ElementTree


def skipped_tests(folder):
    """Yields (test, reason) for each skipped or disabled test in the folder's JUnit files."""
    for path in sorted(folder.glob("*.xml")):
        for case in xml.etree.ElementTree.parse(path).iter("testcase"):
            name = f"{path.stem}: {case.get('classname')}.{case.get('name')}"
            skipped = case.find("skipped")
            if skipped is not None:
                # GoogleTest puts "file:line" before the message, on a line of its own.
                reason = (skipped.get("message") or "").strip().splitlines()
                yield name, " ".join(reason[1:] or reason) or "no reason given"
            elif case.get("status") == "notrun" and case.get("result") == "suppressed":
                yield name, "disabled"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--allow", type=re.compile, metavar="PATTERN")
    parser.add_argument("folder", type=pathlib.Path)
    arguments = parser.parse_args()

    skipped = list(skipped_tests(arguments.folder))
    print(f"{len(skipped)} tests were skipped{':' if skipped else '.'}")
    for name, reason in skipped:
        print(f"  {name}: {reason}")
    if arguments.allow:
        refused = [name for name, reason in skipped if not arguments.allow.search(reason)]
        if refused:
            sys.exit(f"skipped for a reason that does not count: {', '.join(refused)}")


if __name__ == "__main__":
    main()
