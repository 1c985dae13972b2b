#!/usr/bin/env python3
"""Writes Jane Austen's six novels as plain text, to train the demo model on.

The text is in the public domain; it comes with Debian's package r-cran-janeaustenr. R is not needed, only the
package's file, so either of these will do:

    apt-get install r-cran-janeaustenr
    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb somewhere

Every paragraph becomes one line, with an empty line between paragraphs; titles and chapter headings are left out,
as are the underscores that mark italics. A line "<|endoftext|>" stands between chapters.
"""
import argparse
import pathlib
import re
import struct
import sys
import zlib

RDB = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
END = "<|endoftext|>"
THE_END = re.compile(r"(the end|finis|\*( \*)*)\.?", re.IGNORECASE)
HEADING = re.compile(r"(volume|chapter)\s+([ivxlc]+|\d+)\.?", re.IGNORECASE)


def vectors(rdb: bytes):
    """Yields the string vectors of an R lazy-load database: a list of lists of lines."""
    at = 0
    while at < len(rdb):
        stream = zlib.decompressobj()
        yield lines_of(stream.decompress(rdb[at + 4:]))  # 4 bytes: the length before compression
        at = len(rdb) - len(stream.unused_data)


def lines_of(serial: bytes) -> list[str]:
    """The strings of a serialized R character vector (XDR format, version 3)."""
    if serial[:2] != b"X\n":
        raise ValueError("not R's XDR serialization")
    (name_length,) = struct.unpack(">i", serial[14:18])
    at = 18 + name_length
    kind, size = struct.unpack(">Ii", serial[at:at + 8])
    if kind & 0xFF != 16:
        raise ValueError("not a vector of strings")
    at += 8
    lines = []
    for _ in range(size):
        kind, length = struct.unpack(">Ii", serial[at:at + 8])
        if kind & 0xFF != 9:
            raise ValueError("not a string inside a vector of strings")
        at += 8
        lines.append(serial[at:at + max(length, 0)].decode("utf-8"))
        at += max(length, 0)
    return lines


def chapters(lines: list[str]) -> list[str]:
    """The text of each chapter; what stands before the first one is dropped."""
    found, paragraph = [], []

    def close():
        text = re.sub(r"\s+", " ", " ".join(paragraph).replace("_", "")).strip()
        if text and found and not THE_END.fullmatch(text):
            found[-1].append(text)
        paragraph.clear()

    for line in lines + [""]:
        if HEADING.fullmatch(line.strip()):
            close()
            found.append([])
        elif line.strip():
            paragraph.append(line)
        else:
            close()
    return ["\n\n".join(c) for c in found if c]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("/"),
                        help="folder that the package was unpacked into (default: /, where it is installed)")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="text file to write")
    args = parser.parse_args()
    source = args.root / RDB
    if not source.is_file():
        parser.error(f"{source} is missing: install r-cran-janeaustenr, or unpack it and name the folder with --root")
    texts = [c for book in vectors(source.read_bytes()) for c in chapters(book)]
    args.out.write_text(f"\n{END}\n".join(texts) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(texts)} chapters, {args.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
