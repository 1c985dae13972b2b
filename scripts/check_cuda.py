#!/usr/bin/env python3
"""Reads what `nvcc -Xptxas -v` said, one file for each source and architecture; called by check_cuda.sh.

    check_cuda.py [--write] VERSION LOG...

Prints a line for each log. Exits with status 1 if a kernel spills registers, or if nvcc warned of something. With --write,
replaces the table between the markers of docs/cuda.md.
"""

import argparse
import collections
import pathlib
import re
import subprocess
import sys

DOCUMENT = pathlib.Path("docs/cuda.md")
BEGIN, END = "<!-- check_cuda begin -->", "<!-- check_cuda end -->"

Kernel = collections.namedtuple("Kernel", "name registers shared spills")


def demangle(names):
    """What c++filt makes of the names, without namespaces and parameters."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    readable = []
    for name in text.splitlines():
        name = name.removeprefix("void ").replace("(anonymous namespace)::", "").replace("ddl::kernels::", "")
        readable.append(re.sub(r"\(.*", "", name).replace("cuda::", ""))
    return readable


def kernels_of(text):
    """The kernels that a log reports, in its order."""
    names, kernels = [], []
    # One paragraph a kernel: its name, its stack and spills, its registers and shared memory.
    for match in re.finditer(
        r"Compiling entry function '(\S+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers([^\n]*)",
        text,
        re.DOTALL,
    ):
        shared = re.search(r"(\d+) bytes smem", match[5])
        names.append(match[1])
        kernels.append((int(match[4]), int(shared[1]) if shared else 0, int(match[2]) + int(match[3])))
    return [Kernel(name, *numbers) for name, numbers in zip(demangle(names), kernels)]


def write_table(version, reports):
    """Puts every kernel's registers, shared memory and spills, by architecture, into the document."""
    architectures = sorted({architecture for _, architecture in reports})
    lines = [
        BEGIN,
        f"nvcc {version}; registers by architecture, static shared memory, spilled bytes (the largest of the three).",
        "",
        f"| file | kernel | {' | '.join(architectures)} | shared | spills |",
        f"|---|---|{'---|' * len(architectures)}---|---|",
    ]
    for source in sorted({source for source, _ in reports}):
        by_architecture = [{k.name: k for k in reports[source, a]} for a in architectures]
        for name in sorted(by_architecture[0]):
            versions = [kernels[name] for kernels in by_architecture]
            registers = " | ".join(str(k.registers) for k in versions)
            shared, spills = max(k.shared for k in versions), max(k.spills for k in versions)
            lines.append(f"| {source} | `{name}` | {registers} | {shared} | {spills} |")
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(before + "\n".join(lines + [END]) + after)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("version")
    parser.add_argument("logs", type=pathlib.Path, nargs="+", metavar="LOG")
    arguments = parser.parse_args()

    reports, problems = {}, []
    for log in arguments.logs:
        source, architecture = log.name.rsplit(".", 1)
        text = log.read_text()
        kernels = reports[source + ".cu", architecture] = kernels_of(text)
        if not kernels:
            problems.append(f"{log.name}: no kernel found")
            continue
        if "warning" in text:
            problems.append(f"{log.name}: nvcc warned:\n{text}")
        most = max(kernels, key=lambda kernel: kernel.registers)
        print(f"{source + '.cu':20} {architecture}: {len(kernels):3} kernels, at most {most.registers} registers")
        problems += [
            f"{source}.cu, {architecture}: {kernel.name} spills {kernel.spills} bytes"
            for kernel in kernels
            if kernel.spills
        ]
    if arguments.write:
        write_table(arguments.version, reports)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
