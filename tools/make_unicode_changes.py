"""Writes model/tokenizer/unicode_changes.inc: what Unicode changed between the versions that PCRE2 and others know.

Debian's PCRE2 and Python know Unicode 14; the tokenizers that ours is compared with know Unicode 16, as does the package
unicodedata2 in its version 16.0.0:

    pip install unicodedata2==16.0.0 && python3.11 tools/make_unicode_changes.py >model/tokenizer/unicode_changes.inc
"""

import unicodedata

import unicodedata2


def main():
    assert (unicodedata.unidata_version, unicodedata2.unidata_version) == ("14.0.0", "16.0.0")
    runs = []
    for code_point in range(0x110000):
        old, new = unicodedata.category(chr(code_point)), unicodedata2.category(chr(code_point))
        if old == new:
            continue
        if runs and runs[-1][1] == code_point - 1 and runs[-1][2:] == [old, new]:
            runs[-1][1] = code_point
        else:
            runs.append([code_point, code_point, old, new])
    print("// By tools/make_unicode_changes.py: first, last, category in Unicode 14, category in Unicode 16.")
    for first, last, old, new in runs:
        print(f'{{0x{first:X}, 0x{last:X}, "{old}", "{new}"}},')


main()
