#!/usr/bin/env python3
"""What the compiler made of the CUDA kernels, from their machine code: needs cuobjdump, no GPU.

    scripts/cuda_sass.py [--match TEXT] CUBIN...

Compile with `nvcc -std=c++17 -O3 -arch=sm_90 -I. -cubin FILE.cu`. CUOBJDUMP names the program where it is not in PATH (the
CUDA toolkit has it, and PyPI's nvidia-cuda-cuobjdump). For each kernel:

    instructions   static, without padding
    in flight      the most bytes a thread asks of memory (LDG) before it needs any of them, and in how many loads
    wide           of all LDG and STG those of 16 bytes
    generic        loads and stores of which the compiler knows no address space (LD, ST): shared memory or global, found out each time
    shuffles       SHFL, exchanges within a warp
"""

import argparse
import os
import re
import shutil
import subprocess
import sys

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
REGISTER = re.compile(r"\bR(\d+)\b")


def functions(path, cuobjdump):
    """(mangled name, [(opcode, operands)]) of each kernel."""
    text = subprocess.run([cuobjdump, "-sass", path], capture_output=True, text=True, check=True).stdout
    name, body = None, []
    for line in text.splitlines():
        if match := re.match(r"\s+Function : (\S+)", line):
            if name:
                yield name, body
            name, body = match[1], []
        elif match := INSTRUCTION.match(line):
            if match[2] != "NOP":
                body.append((match[2], match[3]))
    if name:
        yield name, body


def width(opcode):
    return 16 if ".128" in opcode else 8 if ".64" in opcode else 2 if "U16" in opcode or "S16" in opcode else 1 if "U8" in opcode else 4


def in_flight(body):
    """The longest run of global loads before one of their results is read: (bytes, loads)."""
    best, pending, bytes_, loads = (0, 0), set(), 0, 0
    for opcode, operands in body:
        if opcode.startswith("BRA") or opcode.startswith("EXIT"):
            continue  # predicated past: the path falls through
        parts = operands.split(",")
        is_load = opcode.startswith("LDG")
        stores = opcode.startswith(("ST", "RED", "BAR"))
        read = {int(r) for part in (parts if stores else parts[1:]) for r in REGISTER.findall(part)}
        if pending & read or (opcode.startswith("BAR") and pending):
            best = max(best, (bytes_, loads))
            pending, bytes_, loads = set(), 0, 0
        if is_load:
            first = REGISTER.search(parts[0])
            if first:
                size = width(opcode)
                pending |= {int(first[1]) + i for i in range(max(1, size // 4))}
                bytes_, loads = bytes_ + size, loads + 1
    return max(best, (bytes_, loads))


def demangled(names):
    tool = shutil.which("c++filt")
    if not tool or not names:
        return dict(zip(names, names))
    out = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    def short(text):
        text = re.sub(r"\(anonymous namespace\)::|ddl::kernels::cuda::|void ", "", text)
        text = re.sub(r"\((?:int|bool)\)", "", text)
        return text.split("(")[0]
    return {name: short(text) for name, text in zip(names, out)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cubins", nargs="+")
    parser.add_argument("--match", default="", help="only kernels whose name contains this")
    arguments = parser.parse_args()
    cuobjdump = os.environ.get("CUOBJDUMP") or shutil.which("cuobjdump")
    if not cuobjdump:
        sys.exit("cuda_sass: no cuobjdump in PATH (nor in CUOBJDUMP)")
    rows = []
    for cubin in arguments.cubins:
        found = dict(functions(cubin, cuobjdump))
        names = demangled(list(found))
        for mangled, body in found.items():
            if arguments.match not in names[mangled]:
                continue
            memory = [op for op, _ in body if op.startswith(("LDG", "STG"))]
            bytes_, loads = in_flight(body)
            rows.append((names[mangled], len(body), f"{bytes_} B in {loads}", f"{sum(width(op) == 16 for op in memory)} of {len(memory)}",
                         sum(re.match(r"(LD|ST)(\.|$)", op) is not None for op, _ in body),
                         sum(op.startswith("SHFL") for op, _ in body)))
    print("| kernel | instructions | in flight | wide | generic | shuffles |\n|---|---|---|---|---|---|")
    for row in sorted(rows):
        print("| `" + row[0] + "` | " + " | ".join(str(cell) for cell in row[1:]) + " |")


if __name__ == "__main__":
    main()
